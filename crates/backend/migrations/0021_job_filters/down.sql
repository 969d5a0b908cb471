DROP INDEX training_jobs_state_idx;
