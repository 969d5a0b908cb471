-- Held-out rows may be those of another dataset. And what the OpenAI-compatible API under /v1 knows beyond datasets and
-- jobs: a file of purpose fine-tune is a dataset, a fine-tuning job is a training job.

ALTER TABLE training_jobs ADD COLUMN validation_dataset_id uuid;
ALTER TABLE training_jobs ADD CONSTRAINT training_jobs_validation_dataset_fkey
    FOREIGN KEY (user_id, validation_dataset_id) REFERENCES datasets (user_id, id);
CREATE INDEX training_jobs_validation_dataset_idx ON training_jobs (validation_dataset_id);

-- dataset_id: where the rows are (fine-tune); job_id: whose steps it lists (fine-tune-results, and id = job_id).
CREATE TABLE openai_files (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT openai_files_user_fkey REFERENCES users (id),
    filename text NOT NULL,
    purpose text NOT NULL CONSTRAINT openai_files_purpose_check CHECK (purpose IN ('fine-tune', 'fine-tune-results')),
    size bigint NOT NULL,
    status text NOT NULL CONSTRAINT openai_files_status_check CHECK (status IN ('processed', 'error')),
    status_details text,
    dataset_id uuid,
    job_id uuid,
    -- Key and content of the request that made it, to know the client's own retry of it.
    key_id uuid,
    sha256 text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    deleted_at timestamptz,
    CONSTRAINT openai_files_dataset_fkey FOREIGN KEY (user_id, dataset_id) REFERENCES datasets (user_id, id),
    CONSTRAINT openai_files_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX openai_files_page_idx ON openai_files (user_id, created_at DESC, id DESC);
CREATE INDEX openai_files_dataset_idx ON openai_files (dataset_id);
CREATE INDEX openai_files_job_idx ON openai_files (job_id);
CREATE INDEX openai_files_expiry_idx ON openai_files (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;

-- method: as resolved, {"type": "supervised", "supervised": {"hyperparameters": {…}}}.
CREATE TABLE openai_jobs (
    job_id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    model text NOT NULL,
    -- The name its result has once it succeeds.
    fine_tuned_model text NOT NULL,
    method jsonb NOT NULL,
    seed bigint NOT NULL,
    metadata jsonb,
    model_deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT openai_jobs_model_key UNIQUE (user_id, fine_tuned_model),
    CONSTRAINT openai_jobs_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX openai_jobs_page_idx ON openai_jobs (user_id, created_at DESC, job_id DESC);

DO $$
DECLARE
    tenant text := 'user_id = NULLIF(current_setting(''app.user_id'', true), '''')::uuid';
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY['openai_files', 'openai_jobs'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY system ON %I TO hone_system USING (true) WITH CHECK (true)', target);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO hone_system', target);
        EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s) WITH CHECK (%s)', target, tenant, tenant);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %I TO hone_app', target);
    END LOOP;
END
$$;
