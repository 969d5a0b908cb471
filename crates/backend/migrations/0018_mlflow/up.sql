-- How far each job has been told to the MLflow server of MLFLOW_TRACKING_URI.
CREATE TABLE mlflow_runs (
    job_id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    -- MLflow's name for the run; null until it exists there with its parameters.
    run_id text,
    -- Events up to here were sent.
    last_event_id bigint NOT NULL DEFAULT 0,
    -- One backend at a time works on a run.
    claimed_by uuid,
    claimed_until timestamptz,
    -- When everything had been sent, or sending was given up and why.
    closed_at timestamptz,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT mlflow_runs_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX mlflow_runs_open_idx ON mlflow_runs (updated_at) WHERE closed_at IS NULL;

CREATE TRIGGER touch BEFORE UPDATE ON mlflow_runs FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

ALTER TABLE mlflow_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE mlflow_runs FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON mlflow_runs TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON mlflow_runs TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE, DELETE ON mlflow_runs TO hone_system;
GRANT SELECT ON mlflow_runs TO hone_app;
