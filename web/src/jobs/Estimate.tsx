import { useTranslation } from 'react-i18next'
import type { Schemas } from '@/api/client'
import { useFormat } from '@/i18n/useFormat'
import { Notice } from '@/ui/layout'

/** What a run would need, and whether there is that much. */
export function Estimate({ estimate }: { estimate: Schemas['JobEstimate'] }) {
  const { t } = useTranslation()
  const format = useFormat()
  const facts: [string, string][] = [
    [t('estimate.memory'), estimate.peak_memory_bytes == null ? '–' : estimate.memory_limit_bytes == null ? format.bytes(estimate.peak_memory_bytes) : t('estimate.of', { need: format.bytes(estimate.peak_memory_bytes), have: format.bytes(estimate.memory_limit_bytes) })],
    [t('estimate.time'), format.duration(estimate.total_seconds)],
    [t('jobs.cost'), format.money(estimate.cost, estimate.currency)],
    [t('estimate.steps'), estimate.total_steps == null ? '–' : format.count(estimate.total_steps)],
    [t('estimate.tokens'), estimate.total_tokens == null ? '–' : format.compact(estimate.total_tokens)],
    [t('estimate.trainable'), estimate.trainable_parameters == null ? '–' : format.compact(estimate.trainable_parameters)],
  ]
  return (
    <>
      {!estimate.fits && <Notice tone="danger" title={t('estimate.tooLarge')}>{t('estimate.tooLargeLead')}</Notice>}
      <dl className="grid grid-cols-2 gap-3 sm:grid-cols-3 lg:grid-cols-6">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt className="text-xs text-muted">{name}</dt>
            <dd className="tabular font-semibold">{value}</dd>
          </div>
        ))}
      </dl>
      <p className="text-xs text-muted">
        {t(`estimate.${estimate.basis}`)} {estimate.note}
      </p>
    </>
  )
}
