import { useInfiniteQuery, useQuery } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { CircleDollarSign } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import type { Schemas } from '@/api/client'
import { costsQuery, costSummaryQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { Button } from '@/ui/Button'
import { Segmented } from '@/ui/form'
import { Card, Empty, Loaded, PageHeader, Table, Td } from '@/ui/layout'
import { daysAgo } from './month'
import { useTitle } from './useTitle'

const SPANS = ['7', '30', '90'] as const
const GROUPS = ['day', 'package', 'gpu_config'] as const

export function CostsPage() {
  const { t } = useTranslation()
  const [span, setSpan] = useState<(typeof SPANS)[number]>('30')
  const [group, setGroup] = useState<(typeof GROUPS)[number]>('day')
  const from = daysAgo(Number(span))
  const summary = useQuery(costSummaryQuery(group, from))
  useTitle(t('nav.costs'))
  return (
    <>
      <PageHeader
        title={t('nav.costs')}
        lead={t('costs.lead')}
        actions={<Segmented label={t('costs.span')} value={span} onChange={setSpan} options={SPANS.map((value) => ({ value, label: t('costs.days', { count: Number(value) }) }))} />}
      />
      <div className="flex flex-col gap-3">
        <Card title={t('costs.spent')} actions={<Segmented label={t('costs.by')} value={group} onChange={setGroup} options={GROUPS.map((value) => ({ value, label: t(`costs.${value}`) }))} />}>
          <Loaded query={summary}>{(data) => <Summary summary={data} />}</Loaded>
        </Card>
        <Records from={from} />
      </div>
    </>
  )
}

function Summary({ summary }: { summary: Schemas['CostSummary'] }) {
  const { t } = useTranslation()
  const format = useFormat()
  if (summary.groups.length === 0) return <Empty icon={CircleDollarSign} title={t('costs.none')}>{t('costs.noneLead')}</Empty>
  const most = Math.max(...summary.groups.map((group) => group.amount), 1e-9)
  const name = (group: Schemas['CostSum']) => (summary.group_by === 'day' && group.key ? format.day(group.key) : (group.label ?? group.key ?? t('costs.without')))
  return (
    <>
      <div className="mb-4 flex flex-wrap gap-6">
        {summary.total.map((total) => (
          <div key={total.currency}>
            <p className="tabular text-xl font-semibold">{format.money(total.amount, total.currency)}</p>
            <p className="text-xs text-muted">
              {t('costs.jobs', { count: total.jobs })} · {format.duration(total.seconds)}
            </p>
          </div>
        ))}
      </div>
      <ul className="flex flex-col gap-1.5">
        {summary.groups.map((group) => (
          <li key={`${group.key}${group.currency}`} className="grid grid-cols-[9rem_minmax(0,1fr)_auto] items-center gap-3">
            <span className="truncate text-muted">{name(group)}</span>
            <span aria-hidden className="h-2 rounded-full bg-hover">
              <span className="block h-full rounded-full bg-accent" style={{ width: `${(100 * group.amount) / most}%` }} />
            </span>
            <span className="tabular text-right">
              {format.money(group.amount, group.currency)} <span className="text-xs text-muted">· {format.duration(group.seconds)}</span>
            </span>
          </li>
        ))}
      </ul>
    </>
  )
}

function Records({ from }: { from: string }) {
  const { t } = useTranslation()
  const format = useFormat()
  const query = useInfiniteQuery(costsQuery(from))
  return (
    <Card title={t('costs.records')} flush>
      <Loaded query={query}>
        {({ pages }) => {
          const records = pages.flatMap((page) => page.items)
          return records.length === 0 ? (
            <Empty title={t('costs.none')} />
          ) : (
            <Table label={t('costs.records')} head={[t('job.name'), t('job.attemptName'), t('job.hardware'), t('job.started'), t('job.time'), t('job.price'), t('costs.amount')]}>
              {records.map((record) => (
                <tr key={`${record.job_id}${record.attempt}`}>
                  <Td>
                    <Link to="/jobs/$id" params={{ id: record.job_id }} className="font-medium hover:underline">
                      {record.job_name}
                    </Link>
                  </Td>
                  <Td className="tabular">{record.attempt}</Td>
                  <Td className="text-muted">{record.gpu_config ?? t('job.thisMachine')}</Td>
                  <Td className="tabular whitespace-nowrap text-muted">{format.time(record.started_at)}</Td>
                  <Td className="tabular whitespace-nowrap">{format.duration(record.seconds)}</Td>
                  <Td className="tabular whitespace-nowrap text-muted">{t('job.perHour', { price: format.money(record.price_per_hour, record.currency) })}</Td>
                  <Td className="tabular whitespace-nowrap">{format.money(record.amount, record.currency)}</Td>
                </tr>
              ))}
            </Table>
          )
        }}
      </Loaded>
      {query.hasNextPage && (
        <div className="border-t p-3 text-center">
          <Button size="sm" busy={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
            {t('actions.loadMore')}
          </Button>
        </div>
      )}
    </Card>
  )
}
