import { useMemo } from 'react'
import { useTranslation } from 'react-i18next'
import * as format from '@/lib/format'

/** The formatters in the language that is shown. */
export function useFormat() {
  const { i18n } = useTranslation()
  const language = i18n.language
  return useMemo(
    () => ({
      count: (value: number) => format.formatCount(value, language),
      compact: (value: number) => format.formatCompact(value, language),
      metric: (value: number | null | undefined) => format.formatMetric(value, language),
      bytes: (value: number) => format.formatBytes(value, language),
      duration: (seconds: number | null | undefined) => format.formatDuration(seconds, language),
      relative: (at: string) => format.formatRelative(at, language),
      time: (at: string) => format.formatTime(at, language),
      day: (at: string) => format.formatDay(at, language),
      money: (amount: number | null | undefined, currency = 'USD') => format.formatMoney(amount, currency, language),
      percent: (share: number) => format.formatPercent(share, language),
    }),
    [language],
  )
}
