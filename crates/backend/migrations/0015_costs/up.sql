-- What jobs cost: the price is fixed when a job is created, the rest follows from its attempts.

ALTER TABLE training_jobs
    ADD COLUMN price_per_hour numeric(10, 4) NOT NULL DEFAULT 0,
    ADD COLUMN currency text NOT NULL DEFAULT 'USD',
    -- Why a job is paused or about to be.
    ADD COLUMN pause jsonb;

ALTER TABLE job_attempts
    -- When the trainer said its last word; what it costs ends here.
    ADD COLUMN stopped_at timestamptz,
    -- From the end of a step until its checkpoint was durable, as measured last.
    ADD COLUMN checkpoint_seconds double precision;

CREATE INDEX cost_records_time_idx ON cost_records (user_id, started_at);

-- As before, and the estimate may come after the version was published.
CREATE OR REPLACE FUNCTION hone_guard_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- What may still change once a version is published.
    fate text[] := ARRAY['status', 'archived_at', 'is_deployed', 'deployment_target', 'deployment_url', 'deployment_id',
        'training_status', 'training_started_at', 'training_completed_at', 'training_metrics', 'estimated_cost',
        'actual_cost', 'cost_alerts_sent', 'revision', 'updated_at'];
BEGIN
    IF OLD.status = 'draft' THEN
        IF TG_OP = 'UPDATE' AND NEW.status = 'published' THEN
            NEW.version_number = get_next_version_number(NEW.package_id);
            NEW.published_at = clock_timestamp();
        END IF;
    ELSIF TG_OP = 'DELETE' OR NEW.status = 'draft' OR (OLD.status = 'archived' AND NEW.status <> 'archived')
        OR to_jsonb(NEW) - fate <> to_jsonb(OLD) - fate
    THEN
        RAISE EXCEPTION 'version % of package % is % and cannot be changed', OLD.version_number, OLD.package_id, OLD.status
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'training_package_versions_immutable',
            HINT = 'fork or restore it as a new draft';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

-- Only its owner may replace it, and only who may create in the schema.
GRANT CREATE ON SCHEMA public TO hone_system;
SET LOCAL ROLE hone_system;
CREATE OR REPLACE FUNCTION hone_follow_job() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE training_package_versions SET
        training_status = CASE
            WHEN NEW.state IN ('validating', 'queued') THEN 'pending'
            WHEN NEW.state = 'succeeded' THEN 'completed'
            WHEN NEW.state IN ('failed', 'cancelled') THEN NEW.state
            ELSE 'running' END,
        training_started_at = NEW.started_at,
        training_completed_at = NEW.finished_at,
        training_metrics = NEW.progress,
        estimated_cost = coalesce(NEW.estimated_cost, estimated_cost),
        actual_cost = NEW.actual_cost
    WHERE id = NEW.version_id AND user_id = NEW.user_id
    AND NOT EXISTS (SELECT FROM training_jobs newer WHERE newer.version_id = NEW.version_id
        AND (newer.created_at, newer.id) > (NEW.created_at, NEW.id));
    RETURN NULL;
END
$$;
RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM hone_system;
DROP TRIGGER follow ON training_jobs;
CREATE TRIGGER follow AFTER INSERT OR UPDATE OF state, estimated_cost, actual_cost ON training_jobs
    FOR EACH ROW WHEN (NEW.version_id IS NOT NULL) EXECUTE FUNCTION hone_follow_job();
