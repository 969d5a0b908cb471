// The four steps of a package: what state they are in, and what becomes of two people's changes. No pictures here.
import type { Schemas } from '@/api/client'
import type { Steps, Version } from '@/api/types'

export const STEPS = ['model', 'config', 'dataset', 'deploy'] as const
export type StepId = (typeof STEPS)[number]
export type StepStatus = 'not_started' | 'in_progress' | 'completed' | 'error'

export type Messages = Record<string, string>

const say = (error: Schemas['FieldError']): string => (error.suggestion ? `${error.message} (${error.suggestion}?)` : error.message)

const below = (step: StepId, path: string): boolean => path === step || path.startsWith(`${step}.`)

/** The messages of one step by path below it; those of the step as a whole have the path ''. */
export function messagesOf(step: StepId, list: Schemas['FieldError'][] | undefined): Messages {
  const own = (list ?? []).filter((error) => below(step, error.path))
  return Object.fromEntries(own.map((error) => [error.path.slice(step.length + 1), say(error)]))
}

export function statusOf(step: StepId, steps: Steps, validation: Version['validation'], open: StepId | null, tried: ReadonlySet<StepId>): StepStatus {
  const filled = steps[step] != null
  const wrong = Object.keys(messagesOf(step, validation?.errors)).length > 0
  if (wrong && tried.has(step)) return 'error'
  if (open === step) return 'in_progress'
  if (!filled) return 'not_started'
  return wrong ? 'in_progress' : 'completed'
}

export const next = (step: StepId): StepId | null => STEPS[STEPS.indexOf(step) + 1] ?? null

/** Where work goes on: the first step that is not done. */
export function firstOpen(steps: Steps, validation: Version['validation']): StepId {
  return STEPS.find((step) => statusOf(step, steps, validation, null, new Set()) !== 'completed') ?? 'deploy'
}

export interface Content {
  name: string
  change_summary: string
  steps: Steps
}

export const contentOf = (version: Version): Content => ({ name: version.name, change_summary: version.change_summary ?? '', steps: version.steps })

const same = (a: unknown, b: unknown): boolean => stable(a) === stable(b)

/** JSON with the keys in order; absent and null are the same, as in the API. */
export function stable(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(stable).join(',')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value ?? null)
  const entries = Object.entries(value).filter(([, v]) => v != null)
  return `{${entries.toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([k, v]) => `${JSON.stringify(k)}:${stable(v)}`).join(',')}}`
}

export const sameContent = (a: Content, b: Content): boolean => same(a, b)

/** Both changes when they are of different steps; else the steps in which they meet. */
export function merge(base: Content, mine: Content, theirs: Content): { merged: Content; clashes: (StepId | 'name' | 'change_summary')[] } {
  const clashes: (StepId | 'name' | 'change_summary')[] = []
  const choose = <T,>(key: StepId | 'name' | 'change_summary', of: (content: Content) => T): T => {
    const [b, m, t] = [of(base), of(mine), of(theirs)]
    if (same(m, t) || same(b, m)) return t
    if (!same(b, t)) clashes.push(key)
    return m
  }
  return {
    merged: {
      name: choose('name', (content) => content.name),
      change_summary: choose('change_summary', (content) => content.change_summary),
      steps: {
        model: choose('model', (content) => content.steps.model),
        config: choose('config', (content) => content.steps.config),
        dataset: choose('dataset', (content) => content.steps.dataset),
        deploy: choose('deploy', (content) => content.steps.deploy),
      },
    },
    clashes,
  }
}
