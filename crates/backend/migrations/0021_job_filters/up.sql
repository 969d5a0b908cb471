-- Pages of the jobs in one state: the newest of a rare state without reading all others.
CREATE INDEX training_jobs_state_idx ON training_jobs (user_id, state, created_at DESC, id DESC) WHERE deleted_at IS NULL;
