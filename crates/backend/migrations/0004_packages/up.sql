-- Training packages and their versions, and what comes of them: jobs, artifacts, deployments, costs.
--
-- A draft has no number. It gets the next one of its package when it is published, under the lock on the package's
-- row, so that numbers have no gaps however many publish at once. From then on only the columns that tell what
-- became of the version may change: by policy for hone_app, by trigger for everyone.

CREATE TABLE training_configs (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT training_configs_user_fkey REFERENCES users (id),
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    template_type text NOT NULL DEFAULT 'lora_finetuning',
    -- What a new draft starts from: part of a training configuration.
    config_json jsonb NOT NULL DEFAULT '{}',
    current_version_id uuid,
    -- Kept by trigger: versions of all kinds, and the highest number that is published now (0: none).
    version_count integer NOT NULL DEFAULT 0,
    latest_published_version integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT training_configs_tenant_key UNIQUE (user_id, id)
);
CREATE UNIQUE INDEX training_configs_name_key ON training_configs (user_id, name) WHERE deleted_at IS NULL;
CREATE INDEX training_configs_page_idx ON training_configs (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX training_configs_current_idx ON training_configs (current_version_id);

CREATE TABLE training_package_versions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT training_package_versions_user_fkey REFERENCES users (id),
    package_id uuid NOT NULL,
    version_number integer,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'draft'
        CONSTRAINT training_package_versions_status_check CHECK (status IN ('draft', 'published', 'archived')),
    -- Counts changes, for If-Match.
    revision integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by uuid NOT NULL CONSTRAINT training_package_versions_created_by_fkey REFERENCES users (id),
    published_at timestamptz,
    published_by uuid CONSTRAINT training_package_versions_published_by_fkey REFERENCES users (id),
    archived_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- One snapshot for each step of the workflow.
    model_snapshot jsonb NOT NULL DEFAULT '{}',
    config_snapshot jsonb NOT NULL DEFAULT '{}',
    dataset_snapshot jsonb NOT NULL DEFAULT '{}',
    deploy_snapshot jsonb NOT NULL DEFAULT '{}',
    change_summary text,
    parent_version_id uuid,
    is_deployed boolean NOT NULL DEFAULT false,
    deployment_target text
        CONSTRAINT training_package_versions_target_check CHECK (deployment_target IN ('local', 'hf_space')),
    deployment_url text,
    deployment_id text,
    training_status text CONSTRAINT training_package_versions_training_status_check
        CHECK (training_status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    training_started_at timestamptz,
    training_completed_at timestamptz,
    training_metrics jsonb,
    estimated_cost numeric(10, 2),
    actual_cost numeric(10, 2),
    budget_limit numeric(10, 2),
    cost_alerts_sent jsonb NOT NULL DEFAULT '[]',
    CONSTRAINT training_package_versions_tenant_key UNIQUE (user_id, id),
    CONSTRAINT training_package_versions_number_key UNIQUE (package_id, version_number),
    CONSTRAINT training_package_versions_number_check CHECK ((status = 'draft') = (version_number IS NULL)),
    CONSTRAINT training_package_versions_published_check CHECK ((status = 'draft') = (published_at IS NULL)),
    CONSTRAINT training_package_versions_package_fkey
        FOREIGN KEY (user_id, package_id) REFERENCES training_configs (user_id, id),
    CONSTRAINT training_package_versions_parent_fkey
        FOREIGN KEY (user_id, parent_version_id) REFERENCES training_package_versions (user_id, id)
);
ALTER TABLE training_configs ADD CONSTRAINT training_configs_current_fkey
    FOREIGN KEY (user_id, current_version_id) REFERENCES training_package_versions (user_id, id)
    ON DELETE SET NULL (current_version_id);

CREATE INDEX idx_package_versions_package ON training_package_versions (package_id, version_number DESC);
CREATE INDEX idx_package_versions_status ON training_package_versions (status);
CREATE INDEX idx_package_versions_user ON training_package_versions (created_by);
CREATE INDEX idx_package_versions_deployment ON training_package_versions (deployment_target) WHERE is_deployed;
CREATE INDEX idx_package_versions_training_status ON training_package_versions (training_status);
CREATE INDEX idx_package_versions_parent ON training_package_versions (parent_version_id);
CREATE INDEX idx_package_versions_config_snapshot ON training_package_versions USING gin (config_snapshot jsonb_path_ops);
CREATE INDEX idx_package_versions_model_snapshot ON training_package_versions USING gin (model_snapshot jsonb_path_ops);
CREATE INDEX idx_package_versions_dataset_snapshot ON training_package_versions USING gin (dataset_snapshot jsonb_path_ops);
CREATE INDEX training_package_versions_published_by_idx ON training_package_versions (published_by);
CREATE INDEX training_package_versions_page_idx ON training_package_versions (user_id, created_at DESC, id DESC);

-- Number of the next version of a package. The lock makes publishers of one package wait for one another; what is
-- counted after it includes what the one before has committed.
CREATE FUNCTION get_next_version_number(p_package_id uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    highest integer;
BEGIN
    PERFORM FROM training_configs WHERE id = p_package_id FOR NO KEY UPDATE;
    SELECT max(version_number) INTO highest FROM training_package_versions WHERE package_id = p_package_id;
    RETURN coalesce(highest, 0) + 1;
END
$$;

CREATE FUNCTION hone_guard_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- What may still change once a version is published.
    fate text[] := ARRAY['status', 'archived_at', 'is_deployed', 'deployment_target', 'deployment_url', 'deployment_id',
        'training_status', 'training_started_at', 'training_completed_at', 'training_metrics', 'actual_cost',
        'cost_alerts_sent', 'revision', 'updated_at'];
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
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON training_package_versions
    FOR EACH ROW EXECUTE FUNCTION hone_guard_version();

CREATE FUNCTION update_training_package_versions_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = clock_timestamp();
    NEW.revision = OLD.revision + 1;
    RETURN NEW;
END
$$;
CREATE TRIGGER set_updated_at BEFORE UPDATE ON training_package_versions
    FOR EACH ROW EXECUTE FUNCTION update_training_package_versions_updated_at();

CREATE FUNCTION update_version_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed uuid := CASE WHEN TG_OP = 'DELETE' THEN OLD.package_id ELSE NEW.package_id END;
    added integer := CASE TG_OP WHEN 'INSERT' THEN 1 WHEN 'DELETE' THEN -1 ELSE 0 END;
BEGIN
    UPDATE training_configs SET
        version_count = version_count + added,
        latest_published_version = coalesce((SELECT max(version_number) FROM training_package_versions
            WHERE package_id = changed AND status = 'published'), 0)
    WHERE id = changed;
    RETURN NULL;
END
$$;
CREATE TRIGGER update_config_version_count AFTER INSERT OR DELETE OR UPDATE OF status ON training_package_versions
    FOR EACH ROW EXECUTE FUNCTION update_version_count();

-- Each package's newest version that is published now.
CREATE VIEW latest_published_versions WITH (security_invoker = true) AS
    SELECT DISTINCT ON (package_id) package_id, user_id, id AS version_id, version_number, published_at
    FROM training_package_versions WHERE status = 'published' ORDER BY package_id, version_number DESC;
GRANT SELECT ON latest_published_versions TO hone_app, hone_system;

ALTER TABLE training_jobs
    -- The version the job was launched from.
    ADD COLUMN version_id uuid,
    -- Id of a GPU configuration; null: this machine's processors.
    ADD COLUMN gpu_config text,
    ADD COLUMN estimated_cost numeric(12, 4),
    ADD COLUMN actual_cost numeric(12, 4),
    ADD COLUMN budget_limit numeric(12, 4)
        CONSTRAINT training_jobs_budget_check CHECK (budget_limit > 0),
    ADD CONSTRAINT training_jobs_version_fkey
        FOREIGN KEY (user_id, version_id) REFERENCES training_package_versions (user_id, id);
CREATE INDEX training_jobs_version_idx ON training_jobs (version_id, created_at DESC);

CREATE TABLE model_artifacts (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT model_artifacts_user_fkey REFERENCES users (id),
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CONSTRAINT model_artifacts_kind_check CHECK (kind IN ('adapter', 'model', 'gguf')),
    base_model text NOT NULL,
    base_revision text NOT NULL,
    storage_bucket text NOT NULL DEFAULT 'lora-models',
    -- Key prefix of the files; `files` are their paths below it, with sizes and digests.
    storage_path text NOT NULL,
    files jsonb NOT NULL DEFAULT '[]',
    size bigint NOT NULL DEFAULT 0,
    metrics jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT model_artifacts_tenant_key UNIQUE (user_id, id),
    CONSTRAINT model_artifacts_job_key UNIQUE (job_id, attempt, kind),
    CONSTRAINT model_artifacts_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id)
);
CREATE INDEX model_artifacts_page_idx ON model_artifacts (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

CREATE TABLE deployments (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT deployments_user_fkey REFERENCES users (id),
    version_id uuid NOT NULL,
    artifact_id uuid,
    target text NOT NULL CONSTRAINT deployments_target_check CHECK (target IN ('local', 'hf_space')),
    status text NOT NULL DEFAULT 'requested' CONSTRAINT deployments_status_check
        CHECK (status IN ('requested', 'starting', 'running', 'failed', 'stopped')),
    config jsonb NOT NULL DEFAULT '{}',
    failure jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    CONSTRAINT deployments_tenant_key UNIQUE (user_id, id),
    CONSTRAINT deployments_version_fkey
        FOREIGN KEY (user_id, version_id) REFERENCES training_package_versions (user_id, id),
    CONSTRAINT deployments_artifact_fkey FOREIGN KEY (user_id, artifact_id) REFERENCES model_artifacts (user_id, id)
);
CREATE INDEX deployments_version_idx ON deployments (version_id);
CREATE INDEX deployments_artifact_idx ON deployments (artifact_id);
CREATE INDEX deployments_page_idx ON deployments (user_id, created_at DESC, id DESC);
-- Asking again while the first request waits is the same request.
CREATE UNIQUE INDEX deployments_requested_key ON deployments (version_id, target) WHERE status = 'requested';

-- What an attempt used and what that costs. amount = seconds / 3600 * price_per_hour.
CREATE TABLE cost_records (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT cost_records_user_fkey REFERENCES users (id),
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    kind text NOT NULL DEFAULT 'compute' CONSTRAINT cost_records_kind_check CHECK (kind IN ('compute', 'storage')),
    gpu_config text,
    seconds double precision NOT NULL CONSTRAINT cost_records_seconds_check CHECK (seconds >= 0),
    price_per_hour numeric(10, 4) NOT NULL,
    amount numeric(14, 6) NOT NULL CONSTRAINT cost_records_amount_check CHECK (amount >= 0),
    currency text NOT NULL DEFAULT 'USD',
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cost_records_attempt_key UNIQUE (job_id, attempt, kind),
    CONSTRAINT cost_records_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id)
);
CREATE INDEX cost_records_page_idx ON cost_records (user_id, created_at DESC, id DESC);

CREATE TRIGGER touch BEFORE UPDATE ON training_configs FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON model_artifacts FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON deployments FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON cost_records FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

DO $$
DECLARE
    tenant text := 'user_id = NULLIF(current_setting(''app.user_id'', true), '''')::uuid';
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY[
        'training_configs', 'training_package_versions', 'model_artifacts', 'deployments', 'cost_records'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY system ON %I TO hone_system USING (true) WITH CHECK (true)', target);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO hone_system', target);
        EXECUTE format('GRANT SELECT ON %I TO hone_app', target);
        IF target = 'training_package_versions' THEN
            EXECUTE format('CREATE POLICY tenant_select ON %I FOR SELECT TO hone_app USING (%s)', target, tenant);
            EXECUTE format('CREATE POLICY tenant_insert ON %I FOR INSERT TO hone_app WITH CHECK (%s AND status = ''draft'')',
                target, tenant);
            EXECUTE format('CREATE POLICY tenant_update ON %I FOR UPDATE TO hone_app USING (%s AND status = ''draft'') WITH CHECK (%s)',
                target, tenant, tenant);
            EXECUTE format('CREATE POLICY tenant_delete ON %I FOR DELETE TO hone_app USING (%s AND status = ''draft'')',
                target, tenant);
        ELSE
            EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s) WITH CHECK (%s)', target, tenant, tenant);
        END IF;
    END LOOP;
END
$$;
GRANT INSERT, UPDATE ON training_configs, deployments TO hone_app;
GRANT INSERT, UPDATE, DELETE ON training_package_versions TO hone_app;
GRANT UPDATE ON model_artifacts TO hone_app;

-- The next two change a published version, which hone_app may not: they run as hone_system, on rows they find by
-- tenant themselves.
CREATE FUNCTION hone_archive_version(p_version_id uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE training_package_versions SET status = 'archived', archived_at = clock_timestamp()
        WHERE id = p_version_id AND status = 'published'
        AND user_id = NULLIF(current_setting('app.user_id', true), '')::uuid;
    RETURN FOUND;
END
$$;

-- A version shows how the newest job that was launched from it goes.
CREATE FUNCTION hone_follow_job() RETURNS trigger
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
        actual_cost = NEW.actual_cost
    WHERE id = NEW.version_id AND user_id = NEW.user_id
    AND NOT EXISTS (SELECT FROM training_jobs newer WHERE newer.version_id = NEW.version_id
        AND (newer.created_at, newer.id) > (NEW.created_at, NEW.id));
    RETURN NULL;
END
$$;
CREATE TRIGGER follow AFTER INSERT OR UPDATE OF state, actual_cost ON training_jobs
    FOR EACH ROW WHEN (NEW.version_id IS NOT NULL) EXECUTE FUNCTION hone_follow_job();

REVOKE EXECUTE ON FUNCTION hone_archive_version(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hone_archive_version(uuid) TO hone_app;
-- A new owner must be allowed to create in the schema for as long as it takes to become it.
GRANT CREATE ON SCHEMA public TO hone_system;
ALTER FUNCTION hone_archive_version(uuid) OWNER TO hone_system;
ALTER FUNCTION hone_follow_job() OWNER TO hone_system;
REVOKE CREATE ON SCHEMA public FROM hone_system;
