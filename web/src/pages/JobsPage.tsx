import { useInfiniteQuery, useQueryClient } from '@tanstack/react-query'
import { Link, useNavigate, useSearch } from '@tanstack/react-router'
import { useVirtualizer } from '@tanstack/react-virtual'
import { ArrowDown, ArrowUp, Copy, ListTodo, MoreHorizontal, Search, Square } from 'lucide-react'
import { useMemo, useRef, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api, idempotencyKey } from '@/api/client'
import { jobsQuery } from '@/api/queries'
import { canCancel, type Job } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { LossLine, ProgressCell } from '@/jobs/cells'
import { clone } from '@/jobs/clone'
import { arrange, STATES, type JobSearch, type JobSort } from '@/jobs/search'
import { useHotkeys } from '@/lib/hotkeys'
import { cn } from '@/lib/cn'
import { Ago } from '@/ui/Ago'
import { Button, IconButton } from '@/ui/Button'
import { Input, Select } from '@/ui/form'
import { Empty, Failed, PageHeader, SkeletonRows } from '@/ui/layout'
import { Confirm, Menu } from '@/ui/overlay'
import { JobBadge } from '@/ui/status'
import { toast } from '@/ui/toast'
import { useTitle } from './useTitle'

const COLUMNS = 'grid grid-cols-[2rem_minmax(14rem,2fr)_7.5rem_10rem_11rem_6rem_7.5rem_2.5rem] items-center gap-x-3 px-3'
const ROW = 56

export function JobsPage() {
  const { t } = useTranslation()
  const search = useSearch({ from: '/app/jobs' })
  const navigate = useNavigate({ from: '/jobs' })
  const query = useInfiniteQuery(jobsQuery(search.state))
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set())
  const find = useRef<HTMLInputElement>(null)
  const jobs = useMemo(() => arrange(query.data?.pages.flatMap((page) => page.items) ?? [], search), [query.data, search])
  useTitle(t('nav.jobs'))
  useHotkeys({ '/': () => find.current?.focus() })

  const change = (changed: Partial<JobSearch>) => void navigate({ search: (old) => ({ ...old, ...changed }), replace: true })
  const filtered = search.q !== undefined || search.state !== undefined

  return (
    <>
      <PageHeader title={t('nav.jobs')} lead={t('jobs.lead')} />
      <div className="mb-3 flex flex-wrap items-center gap-2">
        <div className="relative w-64 max-w-full">
          <Search aria-hidden className="pointer-events-none absolute top-2 left-2.5 size-4 text-muted" />
          <Input ref={find} type="search" aria-label={t('jobs.find')} placeholder={t('jobs.find')} value={search.q ?? ''} onChange={(event) => change({ q: event.target.value || undefined })} className="pl-8" />
        </div>
        <Select aria-label={t('jobs.state')} value={search.state ?? ''} onChange={(event) => change({ state: STATES.find((state) => state === event.target.value) })} className="w-44!">
          <option value="">{t('jobs.anyState')}</option>
          {STATES.map((state) => (
            <option key={state} value={state}>
              {t(`jobState.${state}`)}
            </option>
          ))}
        </Select>
        {chosen.size > 0 && <Bulk jobs={jobs.filter((job) => chosen.has(job.id))} clear={() => setChosen(new Set())} />}
      </div>
      <div className="overflow-hidden rounded-lg border bg-surface">
        {query.isPending ? (
          <SkeletonRows rows={8} />
        ) : query.error && !query.data ? (
          <div className="p-4">
            <Failed error={query.error} retry={() => void query.refetch()} />
          </div>
        ) : jobs.length === 0 ? (
          <Empty icon={ListTodo} title={t(filtered ? 'jobs.noMatch' : 'jobs.none')} action={filtered && <Button onClick={() => change({ q: undefined, state: undefined })}>{t('actions.clearFilters')}</Button>}>
            {!filtered && t('jobs.noneLead')}
          </Empty>
        ) : (
          <Rows jobs={jobs} search={search} change={change} chosen={chosen} setChosen={setChosen} more={query.hasNextPage && !query.isFetchingNextPage ? () => void query.fetchNextPage() : undefined} />
        )}
      </div>
    </>
  )
}

function Bulk({ jobs, clear }: { jobs: Job[]; clear: () => void }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const [asking, setAsking] = useState(false)
  const [busy, setBusy] = useState(false)
  const running = jobs.filter((job) => canCancel(job.state))

  async function cancel() {
    setBusy(true)
    const results = await Promise.allSettled(running.map((job) => api.POST('/training/jobs/{id}/cancel', { params: { path: { id: job.id } } })))
    const failed = results.filter((result) => result.status === 'rejected')
    if (failed.length > 0) toast.failure(t('jobs.cancelFailed', { count: failed.length }), failed[0]?.reason)
    else toast.success({ title: t('jobs.cancelling', { count: results.length }) })
    setBusy(false)
    setAsking(false)
    clear()
    await client.invalidateQueries({ queryKey: ['jobs'] })
  }

  return (
    <div className="flex items-center gap-2">
      <span className="tabular text-muted">{t('jobs.chosen', { count: jobs.length })}</span>
      <Button size="sm" variant="danger" disabled={running.length === 0} onClick={() => setAsking(true)}>
        <Square aria-hidden />
        {t('jobs.cancelMany', { count: running.length })}
      </Button>
      <Button size="sm" variant="ghost" onClick={clear}>
        {t('actions.clear')}
      </Button>
      <Confirm open={asking} onClose={() => setAsking(false)} busy={busy} title={t('jobs.cancelTitle', { count: running.length })} description={t('jobs.cancelLead')} action={t('jobs.cancel')} onConfirm={() => void cancel()} />
    </div>
  )
}

interface RowsProps {
  jobs: Job[]
  search: JobSearch
  change: (change: Partial<JobSearch>) => void
  chosen: ReadonlySet<string>
  setChosen: (chosen: ReadonlySet<string>) => void
  more?: () => void
}

/** Only the rows that can be seen are there. */
function Rows({ jobs, search, change, chosen, setChosen, more }: RowsProps) {
  const { t } = useTranslation()
  const scroller = useRef<HTMLDivElement>(null)
  const virtual = useVirtualizer({ count: jobs.length, getScrollElement: () => scroller.current, estimateSize: () => ROW, overscan: 8 })
  const items = virtual.getVirtualItems()
  const all = jobs.length > 0 && jobs.every((job) => chosen.has(job.id))

  const head = (sort: JobSort, label: string) => {
    const active = (search.sort ?? 'created') === sort
    const Icon = search.up ? ArrowUp : ArrowDown
    return (
      <div role="columnheader" aria-sort={active ? (search.up ? 'ascending' : 'descending') : 'none'}>
        <button type="button" className="inline-flex items-center gap-1 font-medium hover:text-text" onClick={() => change({ sort, up: active && !search.up ? true : undefined })}>
          {label}
          {active && <Icon aria-hidden className="size-3" />}
        </button>
      </div>
    )
  }
  const toggle = (id: string) => {
    const next = new Set(chosen)
    if (!next.delete(id)) next.add(id)
    setChosen(next)
  }

  return (
    <div ref={scroller} className="max-h-[calc(100dvh-13rem)] overflow-auto" tabIndex={0} role="region" aria-label={t('nav.jobs')} onScroll={() => more && (items.at(-1)?.index ?? 0) > jobs.length - 20 && more()}>
      <div role="table" aria-label={t('nav.jobs')} aria-rowcount={jobs.length + 1} className="min-w-[64rem]">
        <div role="rowgroup" className="sticky top-0 z-10 border-b bg-surface">
          <div role="row" className={cn(COLUMNS, 'h-9 text-xs text-muted')}>
            <div role="columnheader">
              <input type="checkbox" aria-label={t('jobs.chooseAll')} checked={all} onChange={() => setChosen(all ? new Set() : new Set(jobs.map((job) => job.id)))} className="block size-4 accent-(--accent)" />
            </div>
            {head('name', t('jobs.name'))}
            <div role="columnheader">{t('jobs.state')}</div>
            {head('progress', t('jobs.progress'))}
            {head('loss', t('jobs.loss'))}
            {head('cost', t('jobs.cost'))}
            {head('created', t('jobs.created'))}
            <div role="columnheader">
              <span className="sr-only">{t('actions.more')}</span>
            </div>
          </div>
        </div>
        <div role="rowgroup" className="relative" style={{ height: virtual.getTotalSize() }}>
          {items.map((item) => {
            const job = jobs[item.index]
            return (
              job && (
                <div key={job.id} role="row" aria-rowindex={item.index + 2} className={cn(COLUMNS, 'absolute inset-x-0 border-b hover:bg-hover')} style={{ height: ROW, transform: `translateY(${item.start}px)` }}>
                  <JobRow job={job} chosen={chosen.has(job.id)} toggle={() => toggle(job.id)} />
                </div>
              )
            )
          })}
        </div>
      </div>
    </div>
  )
}

function JobRow({ job, chosen, toggle }: { job: Job; chosen: boolean; toggle: () => void }) {
  const { t } = useTranslation()
  const format = useFormat()
  const navigate = useNavigate()
  const client = useQueryClient()
  const run = async (title: string, action: Promise<unknown>) => {
    await action.then(() => client.invalidateQueries({ queryKey: ['jobs'] })).catch((error: unknown) => toast.failure(title, error))
  }
  const again = async () => {
    const { data } = await api.POST('/training/jobs', { body: clone(job), params: { header: { 'Idempotency-Key': idempotencyKey() } } })
    if (data) await navigate({ to: '/jobs/$id', params: { id: data.id } })
  }
  return (
    <>
      <div role="cell">
        <input type="checkbox" aria-label={t('jobs.choose', { name: job.name })} checked={chosen} onChange={toggle} className="block size-4 accent-(--accent)" />
      </div>
      <div role="cell" className="min-w-0">
        <Link to="/jobs/$id" params={{ id: job.id }} className="block truncate font-medium hover:underline">
          {job.name}
        </Link>
        <p className="truncate text-xs text-muted">
          {job.model} · {job.dataset}
        </p>
      </div>
      <div role="cell">
        <JobBadge state={job.state} />
      </div>
      <div role="cell">
        <ProgressCell job={job} />
      </div>
      <div role="cell" className="flex items-center gap-3">
        <LossLine job={job} />
        <span className="tabular text-xs">{format.metric(job.progress.eval_loss ?? job.progress.loss)}</span>
      </div>
      <div role="cell" className="tabular text-xs">
        {format.money(job.cost.actual ?? 0, job.cost.currency)}
      </div>
      <div role="cell" className="text-xs text-muted">
        <Ago at={job.created_at} />
      </div>
      <div role="cell">
        <Menu
          trigger={
            <IconButton label={t('jobs.actionsOf', { name: job.name })}>
              <MoreHorizontal aria-hidden />
            </IconButton>
          }
          items={[
            { label: t('jobs.clone'), icon: <Copy aria-hidden />, onSelect: () => void run(t('jobs.clone'), again()) },
            ...(canCancel(job.state)
              ? [{ label: t('jobs.cancel'), icon: <Square aria-hidden />, danger: true, onSelect: () => void run(t('jobs.cancel'), api.POST('/training/jobs/{id}/cancel', { params: { path: { id: job.id } } })) }]
              : []),
          ]}
        />
      </div>
    </>
  )
}
