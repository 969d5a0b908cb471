DROP FUNCTION hone_metric_partitions(integer), hone_first_id(timestamp);
ALTER TABLE metrics_points NO FORCE ROW LEVEL SECURITY;
ALTER TABLE metrics_points RENAME TO metrics_points_partitioned;
ALTER TABLE metrics_points_partitioned DROP CONSTRAINT metrics_points_pkey;
DROP INDEX metrics_points_step_idx;

CREATE TABLE metrics_points (
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    step bigint NOT NULL,
    name text NOT NULL,
    user_id uuid NOT NULL,
    epoch double precision NOT NULL,
    value double precision NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT metrics_points_pkey PRIMARY KEY (job_id, attempt, step, name),
    CONSTRAINT metrics_points_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX metrics_points_step_idx ON metrics_points (job_id, step);
INSERT INTO metrics_points SELECT job_id, attempt, step, name, user_id, epoch, value, at FROM metrics_points_partitioned;
DROP TABLE metrics_points_partitioned;

ALTER TABLE metrics_points ENABLE ROW LEVEL SECURITY;
ALTER TABLE metrics_points FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON metrics_points TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON metrics_points TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE, DELETE ON metrics_points TO hone_system;
GRANT SELECT ON metrics_points TO hone_app;
