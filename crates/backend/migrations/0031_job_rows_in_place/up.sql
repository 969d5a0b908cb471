-- Every report changes its job's row. With room for the new version on the same page no index has to learn of it (HOT);
-- on full pages two of three changes went into every index, and the table grew by megabytes a second.
ALTER TABLE training_jobs SET (fillfactor = 60);
ALTER TABLE job_attempts SET (fillfactor = 80);
