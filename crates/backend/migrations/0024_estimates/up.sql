-- What is to be estimated in the background, for jobs and published versions, and what came of it. A row is written in the
-- transaction of what it is about; a backend that dies with a rehearsal in hand leaves a row that is due again.
CREATE TABLE estimates (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT estimates_user_fkey REFERENCES users (id),
    job_id uuid CONSTRAINT estimates_job_key UNIQUE,
    version_id uuid CONSTRAINT estimates_version_key UNIQUE,
    tries integer NOT NULL DEFAULT 0,
    -- NULL: nothing more will come of it.
    next_try_at timestamptz DEFAULT now(),
    result jsonb,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT estimates_subject_check CHECK (num_nonnulls(job_id, version_id) = 1),
    CONSTRAINT estimates_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id),
    CONSTRAINT estimates_version_fkey FOREIGN KEY (user_id, version_id)
        REFERENCES training_package_versions (user_id, id) ON DELETE CASCADE
);
CREATE INDEX estimates_due_idx ON estimates (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX estimates_user_idx ON estimates (user_id);
CREATE TRIGGER touch BEFORE UPDATE ON estimates FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

ALTER TABLE estimates ENABLE ROW LEVEL SECURITY;
ALTER TABLE estimates FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON estimates TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON estimates TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE, DELETE ON estimates TO hone_system;
GRANT SELECT, INSERT ON estimates TO hone_app;
