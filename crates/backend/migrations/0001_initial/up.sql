-- The first schema. Rules that hold for every table here:
--   * a tenant table has user_id, FORCE ROW LEVEL SECURITY and a policy for hone_app on app.user_id;
--   * hone_system (callbacks, reconcilers, login) sees every row;
--   * references between tenant tables carry user_id, because foreign keys are checked past row security;
--   * every foreign key has an index, updated_at is set by trigger.

-- Roles belong to the whole server, not to this database: another database may have made them already,
-- or be making them right now.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['hone_app', 'hone_system'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', wanted);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'the role % does not exist and % may not create it; as a superuser run: CREATE ROLE % NOLOGIN; GRANT % TO %',
                        wanted, current_user, wanted, wanted, current_user;
            END;
        END IF;
        IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', wanted, current_user);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION '% is not a member of the role %; as a superuser run: GRANT % TO %',
                        current_user, wanted, wanted, current_user;
            END;
        END IF;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO hone_app, hone_system;

CREATE FUNCTION hone_touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TABLE users (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT users_name_key UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

-- Only the SHA-256 of a key is stored; prefix is what lists show.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT api_keys_user_fkey REFERENCES users (id),
    name text NOT NULL,
    prefix text NOT NULL,
    key_hash bytea NOT NULL CONSTRAINT api_keys_hash_key UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_user_idx ON api_keys (user_id);

-- files: [wire DatasetFile]; uploads: the sessions of an upload straight to storage.
CREATE TABLE datasets (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT datasets_user_fkey REFERENCES users (id),
    name text NOT NULL,
    status text NOT NULL CONSTRAINT datasets_status_check
        CHECK (status IN ('uploading', 'validating', 'ready', 'invalid')),
    format text CONSTRAINT datasets_format_check CHECK (format IN ('chat_jsonl', 'instruction_jsonl', 'text')),
    files jsonb NOT NULL DEFAULT '[]',
    uploads jsonb NOT NULL DEFAULT '[]',
    row_count bigint NOT NULL DEFAULT 0,
    size bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    -- When the stored objects of a deleted dataset were removed.
    purged_at timestamptz,
    CONSTRAINT datasets_tenant_key UNIQUE (user_id, id)
);
CREATE UNIQUE INDEX datasets_name_key ON datasets (user_id, name) WHERE deleted_at IS NULL;
CREATE INDEX datasets_page_idx ON datasets (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

-- What the sweeper looks for.
CREATE INDEX datasets_sweep_idx ON datasets (updated_at)
    WHERE purged_at IS NULL AND (deleted_at IS NOT NULL OR status <> 'ready');

-- The registry of base models. A revision is named by the content of its files, so it is shared: everyone
-- may use it, user_id is who brought it.
CREATE TABLE models (
    name text NOT NULL,
    revision text NOT NULL,
    user_id uuid NOT NULL CONSTRAINT models_user_fkey REFERENCES users (id),
    status text NOT NULL CONSTRAINT models_status_check CHECK (status IN ('uploading', 'ready')),
    size bigint NOT NULL DEFAULT 0,
    files jsonb NOT NULL DEFAULT '[]',
    uploads jsonb NOT NULL DEFAULT '[]',
    info jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT models_pkey PRIMARY KEY (name, revision)
);
CREATE INDEX models_user_idx ON models (user_id);
CREATE INDEX models_page_idx ON models (created_at DESC, name DESC, revision DESC);

-- spec: {"model": ModelSpec, "dataset": DatasetSpec} as they were when the job was created.
CREATE TABLE training_jobs (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT training_jobs_user_fkey REFERENCES users (id),
    name text NOT NULL,
    state text NOT NULL CONSTRAINT training_jobs_state_check CHECK (state IN (
        'validating', 'queued', 'starting', 'running', 'finalizing', 'retry_wait', 'pausing', 'paused',
        'cancelling', 'succeeded', 'failed', 'cancelled')),
    framework text NOT NULL DEFAULT 'candle',
    config jsonb NOT NULL,
    model_name text NOT NULL,
    model_revision text NOT NULL,
    dataset_id uuid NOT NULL,
    dataset_name text NOT NULL,
    spec jsonb NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 3 CONSTRAINT training_jobs_max_attempts_check CHECK (max_attempts > 0),
    epoch bigint NOT NULL DEFAULT 0,
    progress jsonb NOT NULL DEFAULT '{}',
    failure jsonb,
    retry_at timestamptz,
    lease_expires_at timestamptz,
    last_contact_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT training_jobs_tenant_key UNIQUE (user_id, id),
    CONSTRAINT training_jobs_dataset_fkey FOREIGN KEY (user_id, dataset_id) REFERENCES datasets (user_id, id),
    CONSTRAINT training_jobs_model_fkey FOREIGN KEY (model_name, model_revision) REFERENCES models (name, revision)
);
CREATE INDEX training_jobs_dataset_idx ON training_jobs (dataset_id);
CREATE INDEX training_jobs_model_idx ON training_jobs (model_name, model_revision);
CREATE INDEX training_jobs_page_idx ON training_jobs (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
-- The dispatcher and the reconcilers walk the jobs that are not over.
CREATE INDEX training_jobs_live_idx ON training_jobs (state, created_at)
    WHERE state NOT IN ('succeeded', 'failed', 'cancelled');

CREATE TABLE job_attempts (
    job_id uuid NOT NULL,
    attempt integer NOT NULL,
    user_id uuid NOT NULL,
    epoch bigint NOT NULL,
    instance_id uuid,
    runtime jsonb,
    -- Every event up to this seq is applied.
    last_seq bigint NOT NULL DEFAULT 0,
    -- Set once: one outcome per attempt.
    outcome text,
    exit_code integer,
    failure jsonb,
    checkpoint_prefix text,
    checkpoint_step bigint,
    manifest jsonb,
    started_at timestamptz NOT NULL DEFAULT now(),
    claimed_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (job_id, attempt),
    CONSTRAINT job_attempts_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);

-- The log of a job: what its trainers said (seq) and what its state became (seq null). Writers hold the
-- lock on the job's row, so that ids of one job become visible in order and readers can resume after an id.
CREATE TABLE job_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL,
    user_id uuid NOT NULL,
    attempt integer NOT NULL,
    seq bigint,
    body_hash bytea,
    body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT job_events_identity_key UNIQUE (job_id, attempt, seq),
    CONSTRAINT job_events_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX job_events_stream_idx ON job_events (job_id, id);
CREATE INDEX job_events_checkpoint_idx ON job_events (job_id) WHERE body -> 'event' ->> 'type' = 'checkpoint';

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
-- Pages of a curve are cut by step over all attempts.
CREATE INDEX metrics_points_step_idx ON metrics_points (job_id, step);

-- Callbacks that cannot be applied; kept for a person to look at.
CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id uuid NOT NULL,
    user_id uuid NOT NULL,
    attempt integer NOT NULL,
    seq bigint,
    reason text NOT NULL,
    body jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letters_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id) ON DELETE CASCADE
);
CREATE INDEX dead_letters_job_idx ON dead_letters (job_id, id);

-- A create request and its reply. The row is written in the transaction that creates, so a second request
-- with the same key waits for the first one and then replays its reply.
CREATE TABLE idempotency_keys (
    user_id uuid NOT NULL CONSTRAINT idempotency_keys_user_fkey REFERENCES users (id),
    key text NOT NULL,
    body_hash bytea NOT NULL,
    status smallint,
    reply jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_created_idx ON idempotency_keys (created_at);

CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON datasets FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON models FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON training_jobs FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

-- Live streams and the dispatcher listen to these channels. The payload is a job id, never content.
CREATE FUNCTION hone_notify_job_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('hone_job_events', added.job_id::text) FROM (SELECT DISTINCT job_id FROM new_rows) added;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify AFTER INSERT ON job_events REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION hone_notify_job_events();

CREATE FUNCTION hone_notify_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state THEN
        PERFORM pg_notify('hone_jobs', NEW.id::text);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify AFTER INSERT OR UPDATE OF state ON training_jobs
    FOR EACH ROW EXECUTE FUNCTION hone_notify_jobs();

-- Row security. After a COMMIT current_setting('app.user_id', true) is '' and not NULL, hence NULLIF:
-- without a tenant the comparison is NULL and no row is visible.
DO $$
DECLARE
    tenant text := 'user_id = NULLIF(current_setting(''app.user_id'', true), '''')::uuid';
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY[
        'users', 'api_keys', 'datasets', 'models', 'training_jobs', 'job_attempts', 'job_events',
        'metrics_points', 'dead_letters', 'idempotency_keys'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY system ON %I TO hone_system USING (true) WITH CHECK (true)', target);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO hone_system', target);
        EXECUTE format('GRANT SELECT ON %I TO hone_app', target);
        IF target = 'users' THEN
            EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s)', target, replace(tenant, 'user_id =', 'id ='));
        ELSE
            EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s) WITH CHECK (%s)', target, tenant, tenant);
        END IF;
    END LOOP;
END
$$;
-- What a request of a user may change; the rest is for trainers' reports and reconcilers.
GRANT INSERT, UPDATE, DELETE ON datasets, models TO hone_app;
GRANT INSERT, UPDATE ON training_jobs, idempotency_keys TO hone_app;
GRANT INSERT ON job_events TO hone_app;
CREATE POLICY registry ON models FOR SELECT TO hone_app USING (true);
