import type { Schemas } from '@/api/client'
import type { Job } from '@/api/types'

/** A new job that does what an earlier one did. */
export function clone(job: Job): Schemas['CreateJob'] {
  return {
    config: { ...job.config, model: `${job.model}@${job.model_revision}` },
    gpu_config: job.gpu_config,
    budget_limit: job.cost.budget_limit,
    max_attempts: job.max_attempts,
    trainer: job.trainer,
  }
}
