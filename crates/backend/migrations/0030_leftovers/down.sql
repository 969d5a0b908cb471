DROP INDEX job_attempts_unswept_idx;
ALTER TABLE job_attempts DROP COLUMN swept_at;
