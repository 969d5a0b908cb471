-- When what an ended attempt left half done was removed from storage.
ALTER TABLE job_attempts ADD COLUMN swept_at timestamptz;
CREATE INDEX job_attempts_unswept_idx ON job_attempts (finished_at) WHERE swept_at IS NULL AND finished_at IS NOT NULL;
