import type { Job } from '@/api/types'

/** Share of the steps that are done; null before the trainer has counted them. */
export function share(job: Job): number | null {
  if (job.state === 'succeeded') return 1
  const { step, total_steps: total } = job.progress
  return total ? step / total : null
}

/** Seconds from the first report to the end, or to now. */
export function elapsed(job: Job, now = Date.now()): number | null {
  if (!job.started_at) return null
  const end = job.finished_at ? new Date(job.finished_at).getTime() : now
  return (end - new Date(job.started_at).getTime()) / 1000
}
