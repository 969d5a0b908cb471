import type { Job, JobState } from '@/api/types'

export const STATES: readonly JobState[] = [
  'validating', 'queued', 'starting', 'running', 'finalizing', 'retry_wait', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled',
]
export const SORTS = ['created', 'name', 'loss', 'progress', 'cost'] as const
export type JobSort = (typeof SORTS)[number]

/** What of the table stands in the URL. */
export interface JobSearch {
  state?: JobState
  q?: string
  sort?: JobSort
  up?: true
}

export function jobSearch(search: Record<string, unknown>): JobSearch {
  const q = search['q']
  return {
    state: STATES.find((state) => state === search['state']),
    q: typeof q === 'string' && q !== '' ? q : undefined,
    sort: SORTS.find((sort) => sort === search['sort']),
    up: search['up'] === true ? true : undefined,
  }
}

const value: Record<JobSort, (job: Job) => number | string> = {
  created: (job) => job.created_at,
  name: (job) => job.name.toLowerCase(),
  loss: (job) => job.progress.eval_loss ?? job.progress.loss ?? Number.POSITIVE_INFINITY,
  progress: (job) => (job.progress.total_steps ? job.progress.step / job.progress.total_steps : 0),
  cost: (job) => job.cost.actual ?? 0,
}

/** The rows that the search asks for, in its order. */
export function arrange(jobs: Job[], { q, sort = 'created', up }: JobSearch): Job[] {
  const wanted = q?.toLowerCase()
  const fits = (job: Job) => !wanted || [job.name, job.model, job.dataset, job.id].some((text) => text.toLowerCase().includes(wanted))
  const of = value[sort]
  const sign = up ? 1 : -1
  return jobs.filter(fits).toSorted((a, b) => (of(a) < of(b) ? -sign : of(a) > of(b) ? sign : 0))
}
