import { describe, expect, it } from 'vitest'
import type { MetricPoint, StreamMessage } from '@/api/types'
import { append, chartsOf, columns, smooth, summarize, thin } from '@/curves/series'

const at = (second: number) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString()
const point = (step: number, values: Record<string, number>, attempt = 1): MetricPoint => ({ attempt, step, epoch: 0, at: at(step), values })
const message = (id: number, step: number, values: Record<string, number>, attempt = 1): StreamMessage => ({
  id,
  attempt,
  job_id: 'j',
  stream: 'event',
  event: { type: 'metrics', seq: id, at: at(step), step, epoch: 0, values },
})

describe('new messages', () => {
  it('go on behind what is there, and not twice', () => {
    const points = append([point(1, { train_loss: 3 }), point(2, { train_loss: 2 })], [message(1, 2, { train_loss: 2 }), message(2, 3, { train_loss: 1 }), message(3, 3, { eval_loss: 1.5 })])
    expect(points.map((p) => [p.step, p.values])).toEqual([
      [1, { train_loss: 3 }],
      [2, { train_loss: 2 }],
      [3, { train_loss: 1, eval_loss: 1.5 }],
    ])
  })

  it('of a later attempt replace what the one before did after its checkpoint', () => {
    const points = append([], [message(1, 1, { train_loss: 3 }), message(2, 2, { train_loss: 9 }), message(3, 3, { train_loss: 9 }), message(4, 2, { train_loss: 2 }, 2), message(5, 3, { train_loss: 8 })])
    expect(points.map((p) => [p.attempt, p.step, p.values['train_loss']])).toEqual([
      [1, 1, 3],
      [2, 2, 2],
    ])
  })

  it('leave the old points as they are', () => {
    const old = [point(1, { train_loss: 3 })]
    append(old, [message(1, 1, { eval_loss: 1 }), message(2, 2, { train_loss: 1 })])
    expect(old).toEqual([point(1, { train_loss: 3 })])
  })
})

describe('smoothing', () => {
  it('does not lean to the beginning and keeps gaps', () => {
    expect(smooth([5, 5, null, 5], 0.9)).toEqual([5, expect.closeTo(5), null, expect.closeTo(5)])
    // (0.5 * 0.5 * 0 + 0.5 * 4) / (1 - 0.25)
    expect(smooth([0, 4], 0.5)[1]).toBeCloseTo(8 / 3)
    const raw = [1, 2, null]
    expect(smooth(raw, 0)).toBe(raw)
  })
})

describe('columns', () => {
  const points = [point(1, { train_loss: 3 }), point(2, { learning_rate: 1 }), point(4, { train_loss: 2, eval_loss: 1 })]
  it('are those of the metrics that are asked for', () => {
    expect(columns(points, ['train_loss', 'eval_loss'], 'step')).toEqual({ x: [1, 4], ys: [[3, 2], [null, 1]] })
    expect(columns(points, ['train_loss'], 'time').x).toEqual([0, 3])
  })
  it('never run backwards in time', () => {
    const back = [point(5, { train_loss: 1 }), { ...point(6, { train_loss: 1 }), at: at(2) }]
    expect(columns(back, ['train_loss'], 'time').x).toEqual([0, 0])
  })
  it('decide which charts there are', () => {
    expect(chartsOf([]).map((c) => c.id)).toEqual(['loss', 'learningRate', 'gradNorm', 'speed'])
    expect(chartsOf([point(1, { memory_bytes: 1 })]).map((c) => c.id)).toContain('memory')
  })
})

it('a curve in numbers', () => {
  expect(summarize([null, 3, 1, null, 2])).toEqual({ first: 3, last: 2, min: 1, max: 3 })
  expect(summarize([null])).toBeNull()
})

it('thin keeps the ends', () => {
  expect(thin([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4)).toEqual([0, 3, 6, 9])
  expect(thin([1, 2], 4)).toEqual([1, 2])
})
