// What the charts draw, from points of the API and of the live stream. No drawing here.
import type { MetricPoint, StreamMessage } from '@/api/types'

export const METRICS = ['train_loss', 'eval_loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'memory_bytes', 'gpu_utilization', 'gpu_memory_bytes', 'eval_accuracy', 'eval_f1'] as const
export type Metric = (typeof METRICS)[number]

/** One chart: the curves that share its axis. */
export interface ChartSpec {
  id: string
  metrics: Metric[]
  /** How values are written. */
  unit: 'number' | 'bytes' | 'percent'
  /** Whether smoothing and a logarithmic axis make sense. */
  noisy?: boolean
}

export const CHARTS: ChartSpec[] = [
  { id: 'loss', metrics: ['train_loss', 'eval_loss'], unit: 'number', noisy: true },
  { id: 'learningRate', metrics: ['learning_rate'], unit: 'number' },
  { id: 'gradNorm', metrics: ['grad_norm'], unit: 'number', noisy: true },
  { id: 'speed', metrics: ['tokens_per_second'], unit: 'number', noisy: true },
  { id: 'memory', metrics: ['memory_bytes', 'gpu_memory_bytes'], unit: 'bytes' },
  { id: 'quality', metrics: ['eval_accuracy', 'eval_f1'], unit: 'percent' },
  { id: 'gpu', metrics: ['gpu_utilization'], unit: 'number' },
]

/** Charts that have something to show; the first four are always there. */
export const chartsOf = (points: MetricPoint[]): ChartSpec[] =>
  CHARTS.filter((chart, at) => at < 4 || points.some((point) => chart.metrics.some((metric) => metric in point.values)))

/**
 * Points with those of new messages. A step may be told in several messages with different metrics. A later attempt
 * goes on from a checkpoint: what the one before it did after that is dropped.
 */
export function append(points: MetricPoint[], messages: StreamMessage[]): MetricPoint[] {
  const next = [...points]
  for (const message of messages) {
    if (message.stream !== 'event' || message.event.type !== 'metrics') continue
    const { step, epoch, values, at } = message.event
    let last = next.at(-1)
    if (last && message.attempt > last.attempt) {
      while (last && last.step >= step) {
        next.pop()
        last = next.at(-1)
      }
    }
    if (last && last.attempt > message.attempt) continue
    if (last?.step === step) next[next.length - 1] = { ...last, values: { ...last.values, ...values } }
    else if (!last || step > last.step) next.push({ attempt: message.attempt, step, epoch, at, values })
  }
  return next
}

/** Exponential moving average that counts absent values out and does not lean to its beginning; `weight` 0 to 0.99. */
export function smooth(values: (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return values
  let [mean, trust] = [0, 0]
  return values.map((value) => {
    if (value === null) return null
    mean = weight * mean + (1 - weight) * value
    trust = weight * trust + (1 - weight)
    return mean / trust
  })
}

export type Axis = 'step' | 'time'

/** Columns as uPlot takes them: x, then each metric with `null` where it was not measured. Time is seconds from the start. */
export function columns(points: MetricPoint[], metrics: readonly Metric[], axis: Axis): { x: number[]; ys: (number | null)[][] } {
  const kept = points.filter((point) => metrics.some((metric) => metric in point.values))
  const start = points[0] ? new Date(points[0].at).getTime() : 0
  let before = Number.NEGATIVE_INFINITY
  // A clock that was set back must not make the line run backwards.
  const time = (point: MetricPoint) => (before = Math.max(before, (new Date(point.at).getTime() - start) / 1000))
  return {
    x: kept.map((point) => (axis === 'step' ? point.step : time(point))),
    ys: metrics.map((metric) => kept.map((point) => point.values[metric] ?? null)),
  }
}

export interface Summary {
  first: number
  last: number
  min: number
  max: number
}

/** What a curve says in numbers; null without one. */
export function summarize(values: (number | null)[]): Summary | null {
  const there = values.filter((value) => value !== null)
  const [first, last] = [there[0], there.at(-1)]
  if (first === undefined || last === undefined) return null
  let [min, max] = [first, first]
  for (const value of there) [min, max] = [Math.min(min, value), Math.max(max, value)]
  return { first, last, min, max }
}

/** At most `count` rows, evenly spread, first and last among them. */
export function thin<T>(rows: T[], count: number): T[] {
  if (rows.length <= count) return rows
  const step = (rows.length - 1) / (count - 1)
  return Array.from({ length: count }, (_, at) => rows[Math.round(at * step)]).filter((row) => row !== undefined)
}
