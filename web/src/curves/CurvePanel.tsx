import { useQuery } from '@tanstack/react-query'
import { ChartLine, RotateCcw } from 'lucide-react'
import { useDeferredValue, useMemo, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api, body } from '@/api/client'
import type { MetricPoint } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { Button } from '@/ui/Button'
import { Segmented } from '@/ui/form'
import { Card, Empty, Table, Td } from '@/ui/layout'
import { Chart, type Line } from './Chart'
import { chartsOf, columns, smooth, summarize, thin, type Axis, type ChartSpec } from './series'

/** Most steps that a closer look asks for. */
const DETAIL = 5_000

interface Look {
  weight: number
  log: boolean
  axis: Axis
  table: boolean
}

export function CurvePanel({ job, points, whole }: { job: string; points: MetricPoint[]; whole: boolean }) {
  const { t } = useTranslation()
  const [look, setLook] = useState<Look>({ weight: 0.6, log: false, axis: 'step', table: false })
  const [range, setRange] = useState<[number, number] | null>(null)
  const detail = useDetail(job, whole ? null : look.axis === 'step' ? range : null)
  const shown = useDeferredValue(detail ?? points)
  const change = (changed: Partial<Look>) => setLook({ ...look, ...changed })

  if (points.length === 0) return <Card flush><Empty icon={ChartLine} title={t('curves.none')}>{t('curves.noneLead')}</Empty></Card>
  return (
    <div className="flex flex-col gap-3">
      <div className="flex flex-wrap items-center gap-x-4 gap-y-2">
        <label className="flex items-center gap-2 text-xs text-muted">
          {t('curves.smoothing')}
          <input type="range" min={0} max={0.98} step={0.02} value={look.weight} onChange={(event) => change({ weight: Number(event.target.value) })} className="w-28 accent-(--accent)" />
          <output className="tabular w-8">{look.weight.toFixed(2)}</output>
        </label>
        <Segmented label={t('curves.scale')} value={look.log ? 'log' : 'linear'} onChange={(value) => change({ log: value === 'log' })} options={[{ value: 'linear', label: t('curves.linear') }, { value: 'log', label: t('curves.log') }]} />
        <Segmented
          label={t('curves.axis')}
          value={look.axis}
          onChange={(axis) => {
            setRange(null)
            change({ axis })
          }}
          options={[{ value: 'step', label: t('curves.step') }, { value: 'time', label: t('curves.time') }]}
        />
        <Segmented label={t('curves.view')} value={look.table ? 'table' : 'chart'} onChange={(value) => change({ table: value === 'table' })} options={[{ value: 'chart', label: t('curves.chart') }, { value: 'table', label: t('curves.table') }]} />
        {range ? (
          <Button size="sm" onClick={() => setRange(null)}>
            <RotateCcw aria-hidden />
            {t('curves.reset')}
          </Button>
        ) : (
          <span className="text-xs text-muted max-md:hidden">{t('curves.zoomHint')}</span>
        )}
      </div>
      <div className="grid gap-3 lg:grid-cols-2">
        {chartsOf(shown).map((chart, at) => (
          <ChartCard key={chart.id} chart={chart} points={shown} look={look} range={range} onZoom={setRange} job={job} wide={at === 0} />
        ))}
      </div>
    </div>
  )
}

/** Every step of a stretch, where the curve as a whole has means. */
function useDetail(job: string, range: [number, number] | null): MetricPoint[] | undefined {
  const [from, to] = range ? [Math.max(0, Math.floor(range[0]) - 1), Math.ceil(range[1])] : [0, 0]
  return useQuery({
    queryKey: ['jobs', 'one', job, 'detail', from, to],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}/metrics', { params: { path: { id: job }, query: { after_step: from, limit: to - from } }, signal })),
    enabled: range !== null && to - from <= DETAIL,
    staleTime: 60_000,
  }).data?.items
}

interface CardProps {
  chart: ChartSpec
  points: MetricPoint[]
  look: Look
  range: [number, number] | null
  onZoom: (range: [number, number] | null) => void
  job: string
  wide: boolean
}

function ChartCard({ chart, points, look, range, onZoom, job, wide }: CardProps) {
  const { t } = useTranslation()
  const format = useFormat()
  const formatY = { number: format.metric, bytes: format.bytes, percent: format.percent }[chart.unit]
  const formatX = (value: number) => (look.axis === 'step' ? format.count(value) : format.duration(value))
  const { x, ys } = useMemo(() => columns(points, chart.metrics, look.axis), [points, chart, look.axis])
  const there = chart.metrics.map((metric, at) => ({ metric, at, summary: summarize(ys[at] ?? []) })).filter((one) => one.summary !== null)

  const lines = useMemo(() => {
    const made: Line[] = []
    chart.metrics.forEach((metric, at) => {
      const values = ys[at] ?? []
      const count = values.filter((value) => value !== null).length
      if (count === 0) return
      const sparse = metric.startsWith('eval_')
      const smoothed = chart.noisy && !sparse && look.weight > 0 && count > 2
      const base = { label: t(`metric.${metric}`), color: at + 1, sparse: sparse || count < 3 }
      if (smoothed) made.push({ ...base, values, ghost: true }, { ...base, values: smooth(values, look.weight) })
      else made.push({ ...base, values })
    })
    return made
  }, [chart, ys, look.weight, t])

  const words = there
    .map(({ metric, summary }) => summary && t('curves.summary', { name: t(`metric.${metric}`), first: formatY(summary.first), last: formatY(summary.last), min: formatY(summary.min), max: formatY(summary.max) }))
    .join(' ')

  return (
    <Card
      className={wide ? 'lg:col-span-2' : undefined}
      title={t(`chart.${chart.id}`)}
      actions={there.map(({ metric, at, summary }) => (
        <span key={metric} className="tabular flex items-center gap-1.5 text-xs">
          <span aria-hidden className="h-0.5 w-3 rounded-full" style={{ background: `var(--curve-${at + 1})` }} />
          <span className="text-muted">{t(`metric.${metric}`)}</span>
          {summary && <span className="font-medium">{formatY(summary.last)}</span>}
        </span>
      ))}
    >
      {there.length === 0 ? (
        <p className="py-8 text-center text-muted">{t('curves.notMeasured')}</p>
      ) : look.table ? (
        <Table label={t(`chart.${chart.id}`)} head={[look.axis === 'step' ? t('curves.step') : t('curves.time'), ...there.map(({ metric }) => t(`metric.${metric}`))]}>
          {thin(x.map((value, row) => ({ value, row })), 20).map(({ value, row }) => (
            <tr key={row}>
              <Td className="tabular">{formatX(value)}</Td>
              {there.map(({ metric, at }) => {
                const cell = ys[at]?.[row]
                return (
                  <Td key={metric} className="tabular">
                    {cell === null || cell === undefined ? '–' : formatY(cell)}
                  </Td>
                )
              })}
            </tr>
          ))}
        </Table>
      ) : (
        <Chart x={x} lines={lines} height={wide ? 240 : 168} log={look.log && chart.noisy === true} formatX={formatX} formatY={formatY} sync={`job-${job}`} range={range} onZoom={onZoom} label={words} />
      )}
      <p className="sr-only">{words}</p>
    </Card>
  )
}
