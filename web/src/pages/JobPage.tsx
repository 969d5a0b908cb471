import { useQuery } from '@tanstack/react-query'
import { Link, useNavigate, useParams, useSearch } from '@tanstack/react-router'
import { useTranslation } from 'react-i18next'
import { checkpointsQuery, jobQuery } from '@/api/queries'
import { isActive, isOver, type Job } from '@/api/types'
import { CurvePanel } from '@/curves/CurvePanel'
import { useFormat } from '@/i18n/useFormat'
import { Downloads } from '@/jobs/Downloads'
import { Events } from '@/jobs/Events'
import { JobActions } from '@/jobs/JobActions'
import { Log } from '@/jobs/Log'
import { elapsed, share } from '@/jobs/progress'
import { useJobStream, type Live } from '@/jobs/useJobStream'
import type { JobTab } from '@/router'
import { Ago } from '@/ui/Ago'
import { Card, Empty, Facts, Loaded, Mono, Notice, PageHeader, Progress, SkeletonRows, Table, Td } from '@/ui/layout'
import { Badge, JobBadge } from '@/ui/status'
import { Tabs } from '@/ui/Tabs'
import { useTitle } from './useTitle'

export function JobPage() {
  const { id } = useParams({ from: '/app/jobs/$id' })
  return <Loaded query={useQuery(jobQuery(id))} skeleton={<SkeletonRows rows={10} />}>{(job) => <Detail key={job.id} job={job} />}</Loaded>
}

function Detail({ job }: { job: Job }) {
  const { t } = useTranslation()
  const live = useJobStream(job)
  const tab = useSearch({ from: '/app/jobs/$id' }).tab ?? 'curves'
  const navigate = useNavigate({ from: '/jobs/$id' })
  useTitle(job.name)
  return (
    <>
      <PageHeader
        above={<Link to="/jobs" className="hover:underline">{t('nav.jobs')}</Link>}
        title={
          <span className="flex flex-wrap items-center gap-2">
            {job.name}
            <JobBadge state={job.state} />
            <LinkBadge job={job} live={live} />
          </span>
        }
        lead={<JobLead job={job} />}
        actions={<JobActions job={job} />}
      />
      <Verdict job={job} />
      <Figures job={job} />
      <div className="mt-5">
        <Tabs<JobTab>
          value={tab}
          onChange={(next) => void navigate({ search: { tab: next === 'curves' ? undefined : next }, replace: true })}
          tabs={[
            { value: 'curves', label: t('job.curves'), content: <CurvePanel job={job.id} points={live.points} whole={live.whole} /> },
            { value: 'events', label: t('job.events'), content: <Events events={live.events} /> },
            { value: 'log', label: t('job.log'), content: <Log job={job} /> },
            { value: 'checkpoints', label: t('job.results'), content: <Results job={job} /> },
            { value: 'config', label: t('job.config'), content: <Config job={job} /> },
          ]}
        />
      </div>
    </>
  )
}

function JobLead({ job }: { job: Job }) {
  const { t } = useTranslation()
  return (
    <>
      {job.model} · <Link to="/data/$id" params={{ id: job.dataset_id }} className="hover:underline">{job.dataset}</Link>
      {job.attempt > 1 && ` · ${t('job.attempt', { attempt: job.attempt, max: job.max_attempts })}`}
    </>
  )
}

/** Whether what is shown comes as it happens. A broken connection says nothing about the training. */
function LinkBadge({ job, live }: { job: Job; live: Live }) {
  const { t } = useTranslation()
  if (isOver(job.state) || live.link === 'over') return null
  return live.link === 'live' ? <Badge tone="success">{t('job.live')}</Badge> : <Badge tone="warning">{t('job.reconnecting')}</Badge>
}

function Verdict({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  if (job.failure) {
    const { code, message } = job.failure
    const retrying = !isOver(job.state)
    return (
      <div className="mb-4">
        <Notice tone={retrying ? 'warning' : 'danger'} title={t(retrying ? 'job.retrying' : 'job.failed', { reason: t(`failure.${code}.meaning`) })}>
          <p className="whitespace-pre-wrap">{message}</p>
          <p className="mt-1.5">
            <span className="font-medium">{t('job.remedy')}</span> {t(`failure.${code}.remedy`)}{' '}
            <a href={`/docs/errors#failure-${code}`} className="font-medium text-accent-text hover:underline">
              {code}
            </a>
          </p>
        </Notice>
      </div>
    )
  }
  if (job.pause) {
    return (
      <div className="mb-4">
        <Notice tone="warning" title={t(`pause.${job.pause.reason}`)}>
          {job.pause.limit != null ? t('pause.limit', { limit: format.money(job.pause.limit, job.cost.currency) }) : job.pause.message}
        </Notice>
      </div>
    )
  }
  return null
}

function Figures({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  const { progress, cost } = job
  const gain = progress.eval_loss != null && progress.initial_eval_loss ? progress.eval_loss / progress.initial_eval_loss - 1 : null
  const figures: [string, string, string?][] = [
    [t('job.step'), progress.total_steps ? `${format.count(progress.step)} / ${format.count(progress.total_steps)}` : format.count(progress.step), t('job.epoch', { epoch: format.metric(progress.epoch) })],
    [t('metric.train_loss'), format.metric(progress.loss)],
    [t('metric.eval_loss'), format.metric(progress.eval_loss), gain === null ? undefined : t('job.sinceStart', { change: `${gain > 0 ? '+' : ''}${format.percent(gain)}` })],
    [t('metric.tokens_per_second'), progress.tokens_per_second ? format.compact(progress.tokens_per_second) : '–'],
    [t('job.time'), format.duration(elapsed(job)), isActive(job.state) && progress.eta_seconds ? t('jobs.left', { time: format.duration(progress.eta_seconds) }) : undefined],
    [t('jobs.cost'), format.money(cost.actual ?? 0, cost.currency), cost.budget_limit ? t('job.budget', { limit: format.money(cost.budget_limit, cost.currency) }) : cost.estimated != null ? t('job.estimated', { cost: format.money(cost.estimated, cost.currency) }) : undefined],
  ]
  return (
    <section aria-label={t('job.figures')} className="rounded-lg border bg-surface">
      {isActive(job.state) && (
        <div className="flex items-center gap-3 border-b px-4 py-2.5">
          <Progress value={share(job)} label={t('jobs.progressOf', { name: job.name })} className="flex-1" />
          <span className="tabular text-xs whitespace-nowrap text-muted">
            {progress.phase ? t(`phase.${progress.phase}`) : t(`jobState.${job.state}`)}
            {share(job) !== null && ` · ${format.percent(share(job) ?? 0)}`}
          </span>
        </div>
      )}
      <dl className="grid grid-cols-2 sm:grid-cols-3 lg:grid-cols-6">
        {figures.map(([name, value, note]) => (
          <div key={name} className="px-4 py-3">
            <dt className="text-xs text-muted">{name}</dt>
            <dd className="tabular mt-0.5 text-base font-semibold">{value}</dd>
            {note && <dd className="tabular text-xs text-muted">{note}</dd>}
          </div>
        ))}
      </dl>
    </section>
  )
}

function Results({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  const checkpoints = useQuery(checkpointsQuery(job.id))
  return (
    <div className="flex flex-col gap-3">
      {job.state === 'succeeded' && <Downloads job={job.id} />}
      <Card title={t('job.checkpoints')} flush>
        <Loaded query={checkpoints}>
          {(rows) =>
            rows.length === 0 ? (
              <Empty title={t('job.noCheckpoints')}>{t('job.noCheckpointsLead')}</Empty>
            ) : (
              <Table label={t('job.checkpoints')} head={[t('job.step'), t('job.attemptName'), t('common.size'), t('job.storage'), t('jobs.created')]}>
                {rows.map((row) => (
                  <tr key={row.prefix}>
                    <Td className="tabular font-medium">{format.count(row.step)}</Td>
                    <Td className="tabular">{row.attempt}</Td>
                    <Td className="tabular whitespace-nowrap">{format.bytes(row.size)}</Td>
                    <Td>
                      <Mono className="text-muted">{row.prefix}</Mono>
                    </Td>
                    <Td className="text-muted">
                      <Ago at={row.created_at} />
                    </Td>
                  </tr>
                ))}
              </Table>
            )
          }
        </Loaded>
      </Card>
    </div>
  )
}

function Config({ job }: { job: Job }) {
  const { t } = useTranslation()
  const format = useFormat()
  return (
    <div className="grid gap-3 lg:grid-cols-[1fr_1.4fr]">
      <Card title={t('job.about')}>
        <Facts
          items={[
            [t('common.id'), <Mono key="id">{job.id}</Mono>],
            [t('job.model'), job.model],
            [t('job.revision'), <Mono key="revision">{job.model_revision}</Mono>],
            [t('job.dataset'), job.dataset],
            [t('job.seed'), String(job.config.training?.seed ?? '–')],
            [t('job.hardware'), job.gpu_config ?? t('job.thisMachine')],
            [t('job.price'), t('job.perHour', { price: format.money(job.cost.price_per_hour, job.cost.currency) })],
            [t('jobs.created'), format.time(job.created_at)],
            [t('job.started'), job.started_at ? format.time(job.started_at) : '–'],
            [t('job.finished'), job.finished_at ? format.time(job.finished_at) : '–'],
          ]}
        />
      </Card>
      <Card title={t('job.configuration')}>
        <pre tabIndex={0} aria-label={t('job.configuration')} className="max-h-[32rem] overflow-auto font-mono text-xs leading-5">
          {JSON.stringify(job.config, null, 2)}
        </pre>
      </Card>
    </div>
  )
}
