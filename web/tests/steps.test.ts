import { describe, expect, it } from 'vitest'
import type { Steps, Version } from '@/api/types'
import { firstOpen, merge, messagesOf, next, stable, statusOf, type Content } from '@/wizard/steps'

const steps: Steps = { model: { name: 'hone-tiny' }, config: { method: 'sft' }, dataset: null, deploy: null }
const wrong: Version['validation'] = {
  errors: [
    { path: 'dataset', message: 'choose a dataset' },
    { path: 'config.training.learning_rate', message: 'must be above 0', suggestion: '0.0002' },
  ],
  warnings: [{ path: 'dataset.train_split', message: 'unusual' }],
}
const none: Version['validation'] = { errors: [], warnings: [] }

describe('steps', () => {
  it('get the messages that concern them, below their own paths', () => {
    expect(messagesOf('config', wrong?.errors)).toEqual({ 'training.learning_rate': 'must be above 0 (0.0002?)' })
    expect(messagesOf('dataset', wrong?.errors)).toEqual({ '': 'choose a dataset' })
    expect(messagesOf('dataset', wrong?.warnings)).toEqual({ train_split: 'unusual' })
    expect(messagesOf('model', wrong?.errors)).toEqual({})
  })

  it('have four states', () => {
    const nobody = new Set<never>()
    expect(statusOf('model', steps, wrong, null, nobody)).toBe('completed')
    expect(statusOf('deploy', steps, wrong, null, nobody)).toBe('not_started')
    expect(statusOf('deploy', steps, wrong, 'deploy', nobody)).toBe('in_progress')
    expect(statusOf('config', steps, wrong, 'config', nobody)).toBe('in_progress')
    expect(statusOf('config', steps, wrong, null, new Set(['config']))).toBe('error')
    // Warnings keep nothing from being completed.
    expect(statusOf('dataset', { ...steps, dataset: { datasets: [] } }, { errors: [], warnings: wrong?.warnings ?? [] }, null, nobody)).toBe('completed')
  })

  it('go on where something is left to do', () => {
    expect(firstOpen({}, none)).toBe('model')
    expect(firstOpen(steps, none)).toBe('dataset')
    expect(firstOpen(steps, wrong)).toBe('config')
    expect([next('model'), next('deploy')]).toEqual(['config', null])
  })
})

describe('two drafts', () => {
  const base: Content = { name: 'a', change_summary: '', steps }

  it('are put together when they changed different steps', () => {
    const mine = { ...base, steps: { ...steps, dataset: { datasets: [] } } }
    const theirs = { ...base, name: 'b', steps: { ...steps, model: { name: 'other' } } }
    expect(merge(base, mine, theirs)).toEqual({ clashes: [], merged: { name: 'b', change_summary: '', steps: { ...steps, dataset: { datasets: [] }, model: { name: 'other' } } } })
  })

  it('clash where both changed the same step to something else', () => {
    const mine = { ...base, steps: { ...steps, model: { name: 'mine' } } }
    const theirs = { ...base, steps: { ...steps, model: { name: 'theirs' } } }
    expect(merge(base, mine, theirs).clashes).toEqual(['model'])
    expect(merge(base, mine, mine).clashes).toEqual([])
  })

  it('are the same whatever the order of keys, and with null for absent', () => {
    expect(stable({ b: 1, a: [{ d: null, c: 2 }] })).toBe(stable({ a: [{ c: 2 }], b: 1, e: undefined }))
    expect(stable({ a: 1 })).not.toBe(stable({ a: '1' }))
  })
})
