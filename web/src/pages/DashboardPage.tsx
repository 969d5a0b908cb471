import { useQuery } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { ArrowRight, CircleCheck, CircleDashed, ListTodo, Plus } from 'lucide-react'
import type { ReactNode } from 'react'
import { useTranslation } from 'react-i18next'
import { costSummaryQuery, datasetsQuery, meQuery, modelsQuery, packagesQuery, recentJobsQuery } from '@/api/queries'
import { isActive, type Job } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { LossLine, ProgressCell } from '@/jobs/cells'
import { Ago } from '@/ui/Ago'
import { buttonClass } from '@/ui/Button'
import { Card, Empty, Loaded, PageHeader, Skeleton, Table, Td } from '@/ui/layout'
import { JobBadge } from '@/ui/status'
import { monthStart } from './month'
import { useTitle } from './useTitle'

export function DashboardPage() {
  const { t } = useTranslation()
  const me = useQuery(meQuery).data
  const jobs = useQuery(recentJobsQuery)
  useTitle(t('nav.dashboard'))
  return (
    <>
      <PageHeader
        title={t('nav.dashboard')}
        lead={me && t('dashboard.lead', { name: me.name })}
        actions={
          <Link to="/packages" hash="new" className={buttonClass({ variant: 'primary' })}>
            <Plus aria-hidden />
            {t('packages.new')}
          </Link>
        }
      />
      <Tiles jobs={jobs.data?.items} />
      <FirstSteps jobs={jobs.data?.items} />
      <Card
        flush
        className="mt-4"
        title={t('dashboard.recent')}
        actions={
          <Link to="/jobs" className="inline-flex items-center gap-1 text-xs font-medium text-accent-text hover:underline">
            {t('dashboard.all')}
            <ArrowRight aria-hidden className="size-3.5" />
          </Link>
        }
      >
        <Loaded query={jobs}>{(page) => <Recent jobs={page.items.slice(0, 8)} />}</Loaded>
      </Card>
    </>
  )
}

function Tile({ label, value, note, to }: { label: string; value: ReactNode; note?: ReactNode; to: '/jobs' | '/costs' | '/data' | '/models' }) {
  return (
    <Link to={to} className="rounded-lg border bg-surface p-3.5 hover:border-line-strong">
      <p className="text-xs text-muted">{label}</p>
      <div className="tabular mt-1 text-xl leading-7 font-semibold tracking-tight">{value}</div>
      {note && <p className="mt-0.5 text-xs text-muted">{note}</p>}
    </Link>
  )
}

const WAIT = <Skeleton className="h-7 w-12" />

function Tiles({ jobs }: { jobs: Job[] | undefined }) {
  const { t } = useTranslation()
  const format = useFormat()
  const costs = useQuery(costSummaryQuery('day', monthStart())).data
  const datasets = useQuery(datasetsQuery).data
  const models = useQuery(modelsQuery).data
  const active = jobs?.filter((job) => isActive(job.state))
  const failed = jobs?.filter((job) => job.state === 'failed').length ?? 0
  const total = costs?.total[0]
  const ready = datasets?.items.filter((one) => one.status === 'ready')
  return (
    <div className="grid grid-cols-2 gap-3 lg:grid-cols-4">
      <Tile to="/jobs" label={t('dashboard.active')} value={active ? format.count(active.length) : WAIT} note={failed > 0 ? t('dashboard.failed', { count: failed }) : t('dashboard.noneFailed')} />
      <Tile to="/costs" label={t('dashboard.spent')} value={costs ? format.money(total?.amount ?? 0, total?.currency ?? 'USD') : WAIT} note={total ? t('dashboard.trained', { time: format.duration(total.seconds) }) : undefined} />
      <Tile to="/data" label={t('nav.datasets')} value={ready ? format.count(ready.length) : WAIT} note={ready && t('dashboard.rows', { count: ready.reduce((sum, one) => sum + one.rows, 0) })} />
      <Tile to="/models" label={t('dashboard.models')} value={models ? format.count(models.items.length) : WAIT} />
    </div>
  )
}

/** What a new installation lacks, until a first job was started. */
function FirstSteps({ jobs }: { jobs: Job[] | undefined }) {
  const { t } = useTranslation()
  const models = useQuery(modelsQuery).data?.items
  const datasets = useQuery(datasetsQuery).data?.items
  const packages = useQuery(packagesQuery('')).data?.items
  if (!jobs || jobs.length > 0 || !models || !datasets || !packages) return null
  const steps = [
    { done: models.length > 0, to: '/models', hash: undefined, name: 'model' },
    { done: datasets.some((one) => one.status === 'ready'), to: '/data', hash: 'upload', name: 'dataset' },
    { done: packages.length > 0, to: '/packages', hash: 'new', name: 'package' },
    { done: false, to: '/packages', hash: undefined, name: 'launch' },
  ] as const
  return (
    <Card title={t('first.title')} className="mt-4" flush>
      <ol>
        {steps.map((step) => {
          const Icon = step.done ? CircleCheck : CircleDashed
          return (
            <li key={step.name} className="border-b last:border-0">
              <Link to={step.to} hash={step.hash} className="flex items-center gap-3 px-4 py-2.5 hover:bg-hover">
                <Icon aria-hidden className={step.done ? 'size-4 text-success' : 'size-4 text-muted'} />
                <span className="min-w-0 flex-1">
                  <span className="font-medium">{t(`first.${step.name}`)}</span>
                  {step.done && <span className="sr-only"> ({t('first.done')})</span>}
                  <span className="block text-muted">{t(`first.${step.name}Lead`)}</span>
                </span>
                <ArrowRight aria-hidden className="size-4 text-muted" />
              </Link>
            </li>
          )
        })}
      </ol>
    </Card>
  )
}

function Recent({ jobs }: { jobs: Job[] }) {
  const { t } = useTranslation()
  const format = useFormat()
  if (jobs.length === 0) return <Empty icon={ListTodo} title={t('jobs.none')}>{t('jobs.noneLead')}</Empty>
  return (
    <Table label={t('dashboard.recent')} head={[t('jobs.name'), t('jobs.state'), t('jobs.progress'), t('jobs.loss'), t('jobs.created')]}>
      {jobs.map((job) => (
        <tr key={job.id}>
          <Td>
            <Link to="/jobs/$id" params={{ id: job.id }} className="font-medium hover:underline">
              {job.name}
            </Link>
            <p className="truncate text-xs text-muted">
              {job.model} · {job.dataset}
            </p>
          </Td>
          <Td>
            <JobBadge state={job.state} />
          </Td>
          <Td>
            <ProgressCell job={job} />
          </Td>
          <Td>
            <div className="flex items-center gap-3">
              <LossLine job={job} />
              <span className="tabular text-xs">{format.metric(job.progress.loss)}</span>
            </div>
          </Td>
          <Td className="text-muted">
            <Ago at={job.created_at} />
          </Td>
        </tr>
      ))}
    </Table>
  )
}
