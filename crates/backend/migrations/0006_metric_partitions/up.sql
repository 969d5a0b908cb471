-- Metric points by the month their job was created in.
--
-- A job's id is a UUID of version 7, whose first 48 bits are the milliseconds of its creation: ranges of ids are
-- ranges of time. So the identity of a point stays (job, attempt, step, name), every query about a job reads one
-- partition, what is written now is in the newest one, and a month is forgotten by dropping a table.

-- Points are copied as they are; row security would hide them from an owner that is no superuser.
ALTER TABLE metrics_points NO FORCE ROW LEVEL SECURITY;
ALTER TABLE metrics_points RENAME TO metrics_points_before;
ALTER TABLE metrics_points_before DROP CONSTRAINT metrics_points_pkey;
DROP INDEX metrics_points_step_idx;

CREATE TABLE metrics_points (
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    step bigint NOT NULL,
    name text NOT NULL,
    user_id uuid NOT NULL,
    epoch double precision NOT NULL,
    value double precision NOT NULL,
    -- The trainer's clock, and ours.
    at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The event that brought the point.
    seq bigint,
    CONSTRAINT metrics_points_pkey PRIMARY KEY (job_id, attempt, step, name),
    CONSTRAINT metrics_points_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
) PARTITION BY RANGE (job_id);
-- Pages of a curve are cut by step over all attempts.
CREATE INDEX metrics_points_step_idx ON metrics_points (job_id, step);

-- Ids that are no time, and months nobody has made a partition for.
CREATE TABLE metrics_points_other PARTITION OF metrics_points DEFAULT;
ALTER TABLE metrics_points_other ENABLE ROW LEVEL SECURITY;
ALTER TABLE metrics_points_other FORCE ROW LEVEL SECURITY;

-- The smallest id of version 7 at a time.
CREATE FUNCTION hone_first_id(p_at timestamp) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM p_at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partitions from this month to `p_ahead` months later; how many it made. Runs as the owner, because only
-- the owner may. A month whose points are among the others already
-- stays there.
CREATE FUNCTION hone_metric_partitions(p_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    month timestamp;
    lower_id uuid;
    upper_id uuid;
    part text;
    made integer := 0;
BEGIN
    FOR ahead IN 0..p_ahead LOOP
        month = date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead);
        part = to_char(month, '"metrics_points_"YYYY"_"MM');
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        lower_id = hone_first_id(month);
        upper_id = hone_first_id(month + interval '1 month');
        BEGIN
            EXECUTE format('CREATE TABLE %I PARTITION OF metrics_points FOR VALUES FROM (%L) TO (%L)', part, lower_id, upper_id);
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part);
            EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', part);
            made = made + 1;
        EXCEPTION
            WHEN check_violation OR duplicate_table THEN NULL;
        END;
    END LOOP;
    RETURN made;
END
$$;
REVOKE EXECUTE ON FUNCTION hone_metric_partitions(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hone_metric_partitions(integer) TO hone_system;
SELECT hone_metric_partitions(2);

INSERT INTO metrics_points (job_id, attempt, step, name, user_id, epoch, value, at, created_at)
    SELECT job_id, attempt, step, name, user_id, epoch, value, at, at FROM metrics_points_before;
DROP TABLE metrics_points_before;

ALTER TABLE metrics_points ENABLE ROW LEVEL SECURITY;
ALTER TABLE metrics_points FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON metrics_points TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON metrics_points TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE, DELETE ON metrics_points TO hone_system;
GRANT SELECT ON metrics_points TO hone_app;
