ALTER TABLE job_attempts RESET (fillfactor);
ALTER TABLE training_jobs RESET (fillfactor);
