import { useTranslation } from 'react-i18next'
import type { Schemas } from '@/api/client'
import { useFormat } from '@/i18n/useFormat'

/** How long rows are: bars, and the same in words. */
export function Histogram({ stats }: { stats: Schemas['LengthStats'] }) {
  const { t } = useTranslation()
  const format = useFormat()
  const bins = stats.histogram
  const most = Math.max(1, ...bins.map((bin) => bin.rows))
  const words = t('datasets.lengthWords', { min: format.count(stats.min), p50: format.count(stats.p50), p95: format.count(stats.p95), max: format.count(stats.max) })
  return (
    <>
      <svg role="img" aria-label={words} viewBox={`0 0 ${bins.length * 10} 40`} preserveAspectRatio="none" className="mt-2 h-14 w-full">
        {bins.map((bin, at) => (
          <rect key={bin.up_to} x={at * 10 + 0.5} width={9} y={40 - (38 * bin.rows) / most} height={(38 * bin.rows) / most} fill="var(--curve-1)" />
        ))}
      </svg>
      <p className="tabular text-xs text-muted">{words}</p>
    </>
  )
}
