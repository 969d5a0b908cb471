import { describe, expect, it } from 'vitest'
import type { Job } from '@/api/types'
import { goesInParts, nameOf } from '@/datasets/upload'
import { turns } from '@/datasets/rows'
import { filterLog, parseLog } from '@/jobs/logLines'
import { arrange, jobSearch } from '@/jobs/search'
import { formatBytes, formatDuration, formatMetric, formatMoney, formatRelative } from '@/lib/format'
import { matcher } from '@/lib/hotkeys'
import { match } from '@/shell/match'
import { FIELDS, follows, meaning, read, shown, toYaml, write } from '@/wizard/fields'

describe('formats', () => {
  it('suit their language', () => {
    expect(formatBytes(1_234_567, 'en')).toBe('1.2 MB')
    expect(formatDuration(3725, 'en')).toBe('1 hr 2 min')
    expect(formatDuration(3725, 'ko')).toBe('1시간 2분')
    expect(formatDuration(null, 'en')).toBe('–')
    expect(formatMetric(0.000_021, 'en')).toBe('2.10e-5')
    expect(formatMetric(1.234_56, 'en')).toBe('1.235')
    expect(formatMoney(0.0021, 'USD', 'en')).toBe('$0.0021')
    expect(formatMoney(3, 'USD', 'en')).toBe('$3.00')
    const now = Date.UTC(2026, 0, 1, 1)
    expect(formatRelative(new Date(now - 3 * 60_000).toISOString(), 'en', now)).toBe('3 minutes ago')
    expect(formatRelative(new Date(now - 3_600_000).toISOString(), 'ko', now)).toBe('1시간 전')
  })
})

describe('the settings of a configuration', () => {
  const rate = FIELDS.find((field) => field.path === 'training.learning_rate')
  const modules = FIELDS.find((field) => field.path === 'lora.target_modules')
  if (!rate || !modules) throw new Error('fields are gone')

  it('are read, written and taken away by path', () => {
    const config = write(write({}, 'training.learning_rate', 1), 'lora.r', 8)
    expect(config).toEqual({ training: { learning_rate: 1 }, lora: { r: 8 } })
    expect(read(config, 'training.learning_rate')).toBe(1)
    expect(write(config, 'lora.r', undefined)).toEqual({ training: { learning_rate: 1 } })
    expect(read({ training: 3 }, 'training.learning_rate')).toBeUndefined()
  })

  it('mean what was typed', () => {
    expect(meaning(rate, ' 2e-4 ')).toBe(0.0002)
    expect(meaning(rate, '2e-')).toBe('2e-')
    expect(meaning(rate, '')).toBeUndefined()
    expect(meaning(modules, 'q_proj, v_proj')).toEqual(['q_proj', 'v_proj'])
    expect(meaning(modules, 'all-linear')).toBe('all-linear')
    expect(shown(modules, { lora: { target_modules: ['q_proj', 'v_proj'] } })).toBe('q_proj, v_proj')
    expect(shown(rate, {})).toBe(0.0002)
  })

  it('follow a preset when they have all of it', () => {
    const preset = { method: 'sft', lora: { r: 8 } }
    expect(follows({ method: 'sft', lora: { r: 8, lora_alpha: 1 } }, preset)).toBe(true)
    expect(follows({ method: 'sft', lora: { r: 9 } }, preset)).toBe(false)
  })

  it('are shown as YAML', () => {
    expect(toYaml({ method: 'sft', lora: { target_modules: ['a'], x: null }, n: 1 })).toBe('method: "sft"\nlora:\n  target_modules: ["a"]\nn: 1')
  })
})

describe('rows', () => {
  it('show what is trained on', () => {
    const row = { messages: [{ role: 'user', content: 'q' }, { role: 'assistant', content: 'no', weight: 0 }, { role: 'assistant', content: [{ type: 'text', text: 'yes' }] }] }
    expect(turns('chat_jsonl', row)).toEqual([
      { role: 'user', text: 'q', trained: false },
      { role: 'assistant', text: 'no', trained: false },
      { role: 'assistant', text: 'yes', trained: true },
    ])
    expect(turns('instruction_jsonl', { instruction: 'a', input: 'b', output: 'c' }).map((turn) => [turn.text, turn.trained])).toEqual([['a\n\nb', false], ['c', true]])
    expect(turns('text', 'plain')).toEqual([{ role: 'text', text: 'plain', trained: true }])
    const pair = { input: { messages: [{ role: 'user', content: 'q' }] }, preferred_output: [{ role: 'assistant', content: 'good' }], non_preferred_output: [{ role: 'assistant', content: 'bad' }] }
    expect(turns('preference_jsonl', pair).map((turn) => [turn.text, turn.side])).toEqual([['q', undefined], ['good', 'chosen'], ['bad', 'rejected']])
    expect(turns('preference_jsonl', { prompt: 'q', chosen: 'good', rejected: 'bad' }).map((turn) => turn.text)).toEqual(['q', 'good', 'bad'])
  })
})

describe('jobs', () => {
  const job = (name: string, loss: number, created_at: string) => ({ id: name, name, model: 'm', dataset: 'd', created_at, progress: { loss, step: 0 }, cost: {} }) as unknown as Job
  const jobs = [job('alpha', 2, '2026-01-01'), job('Beta', 1, '2026-01-02')]

  it('are arranged as the URL says', () => {
    expect(arrange(jobs, {}).map((one) => one.name)).toEqual(['Beta', 'alpha'])
    expect(arrange(jobs, { sort: 'name', up: true }).map((one) => one.name)).toEqual(['alpha', 'Beta'])
    expect(arrange(jobs, { sort: 'loss' }).map((one) => one.name)).toEqual(['alpha', 'Beta'])
    expect(arrange(jobs, { q: 'bet' }).map((one) => one.name)).toEqual(['Beta'])
  })

  it('a URL that says nonsense asks for nothing', () => {
    expect(jobSearch({ state: 'flying', sort: 'x', up: 'yes', q: 3 })).toEqual({})
    expect(jobSearch({ state: 'failed', sort: 'loss', up: true, q: 'a' })).toEqual({ state: 'failed', sort: 'loss', up: true, q: 'a' })
  })
})

describe('a log', () => {
  it('has levels, which go on to lines without one', () => {
    const lines = parseLog('2026 INFO begin\n2026 ERROR broke\n   at line 3\n2026 WARN hm\n')
    expect(lines.map((line) => line.level)).toEqual(['info', 'error', 'error', 'warn'])
    expect(filterLog(lines, 'error', '').map((line) => line.number)).toEqual([2, 3])
    expect(filterLog(lines, 'warn', 'HM').map((line) => line.number)).toEqual([4])
  })
})

describe('uploads', () => {
  it('go in parts when they are large JSON lines without a second file', () => {
    const file = (name: string, size: number) => Object.defineProperty(new File([], name), 'size', { value: size })
    expect(goesInParts(file('a.jsonl', 20 << 20), null)).toBe(true)
    expect(goesInParts(file('a.jsonl', 1 << 20), null)).toBe(false)
    expect(goesInParts(file('a.txt', 20 << 20), null)).toBe(false)
    expect(goesInParts(file('a.jsonl', 20 << 20), file('b.jsonl', 1))).toBe(false)
    expect(nameOf(file('My Data (1).jsonl', 1))).toBe('my-data-1')
  })
})

describe('keys', () => {
  const press = (key: string, target: EventTarget = document.body, init: KeyboardEventInit = {}) => {
    const event = new KeyboardEvent('keydown', { key, ...init })
    Object.defineProperty(event, 'target', { value: target })
    return event
  }
  it('are sequences, and not what one types', () => {
    const done: string[] = []
    const run = matcher({ 'g j': () => done.push('jobs'), 'mod+k': () => done.push('palette'), '?': () => done.push('help') })
    run(press('g'), 0)
    run(press('j'), 100)
    run(press('g'), 1000)
    run(press('j'), 5000)
    const input = document.createElement('input')
    run(press('?', input), 6000)
    run(press('k', input, { ctrlKey: true }), 6100)
    run(press('?'), 6200)
    expect(done).toEqual(['jobs', 'palette', 'help'])
  })
})

it('the palette finds by letters, whole words first', () => {
  const titles = ['modern-english', 'Models', 'Costs', 'my model'].map((title) => ({ title }))
  expect(match(titles, 'mod').map((one) => one.title)).toEqual(['modern-english', 'Models', 'my model'])
  expect(match(titles, 'mdl').map((one) => one.title)).toEqual(['Models', 'my model', 'modern-english'])
  expect(match(titles, 'zz')).toEqual([])
})
