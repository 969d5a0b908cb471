import { useQuery } from '@tanstack/react-query'
import { useTranslation } from 'react-i18next'
import { sparklineQuery } from '@/api/queries'
import { isActive, isOver, type Job } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { Progress } from '@/ui/layout'
import { Sparkline } from '@/ui/status'
import { share } from './progress'

/** The curve of the training loss as a line in a list. */
export function LossLine({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  const { data } = useQuery({ ...sparklineQuery(job.id, isOver(job.state)), enabled: job.progress.step > 0 })
  const values = (data?.items ?? []).flatMap((point) => point.values['train_loss'] ?? [])
  return <Sparkline values={values} label={t('jobs.lossLine', { from: format.metric(values[0]), to: format.metric(values.at(-1)) })} />
}

export function ProgressCell({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  const done = share(job)
  const { step, total_steps: total, eta_seconds: eta } = job.progress
  return (
    <div className="flex w-36 flex-col gap-1">
      <Progress value={done ?? (isActive(job.state) ? null : 0)} label={t('jobs.progressOf', { name: job.name })} />
      <span className="tabular text-xs text-muted">
        {total ? t('jobs.steps', { step: format.count(step), total: format.count(total) }) : '–'}
        {isActive(job.state) && eta ? ` · ${t('jobs.left', { time: format.duration(eta) })}` : ''}
      </span>
    </div>
  )
}
