-- What users are told, in the application and at addresses of their own.
CREATE TABLE notifications (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT notifications_user_fkey REFERENCES users (id),
    kind text NOT NULL,
    severity text NOT NULL DEFAULT 'info'
        CONSTRAINT notifications_severity_check CHECK (severity IN ('info', 'warning', 'error')),
    title text NOT NULL,
    body text NOT NULL DEFAULT '',
    data jsonb NOT NULL DEFAULT '{}',
    job_id uuid,
    -- The same news twice is one notification.
    dedupe_key text,
    read_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT notifications_dedupe_key UNIQUE (user_id, dedupe_key),
    CONSTRAINT notifications_job_fkey FOREIGN KEY (user_id, job_id) REFERENCES training_jobs (user_id, id)
);
CREATE INDEX notifications_page_idx ON notifications (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX notifications_unread_idx ON notifications (user_id) WHERE read_at IS NULL AND deleted_at IS NULL;
CREATE INDEX notifications_job_idx ON notifications (job_id);

CREATE TABLE webhook_endpoints (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT webhook_endpoints_user_fkey REFERENCES users (id),
    url text NOT NULL,
    description text NOT NULL DEFAULT '',
    -- Types of events; `*` is every one.
    events text[] NOT NULL DEFAULT '{*}'
        CONSTRAINT webhook_endpoints_events_check CHECK (array_position(events, NULL) IS NULL),
    -- Signs deliveries (Standard Webhooks), so it must be readable; never in a reply after the first.
    secret bytea NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    -- Failures in a row, and why deliveries were stopped.
    failures integer NOT NULL DEFAULT 0,
    disabled_reason text,
    last_delivery_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT webhook_endpoints_tenant_key UNIQUE (user_id, id)
);
CREATE INDEX webhook_endpoints_page_idx ON webhook_endpoints (user_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT webhook_deliveries_user_fkey REFERENCES users (id),
    endpoint_id uuid NOT NULL,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CONSTRAINT webhook_deliveries_status_check CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    response_status integer,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    CONSTRAINT webhook_deliveries_endpoint_fkey
        FOREIGN KEY (user_id, endpoint_id) REFERENCES webhook_endpoints (user_id, id) ON DELETE CASCADE
);
CREATE INDEX webhook_deliveries_page_idx ON webhook_deliveries (endpoint_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_user_idx ON webhook_deliveries (user_id);
CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (next_attempt_at) WHERE status = 'pending';

CREATE TRIGGER touch BEFORE UPDATE ON webhook_endpoints FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

DO $$
DECLARE
    tenant text := 'user_id = NULLIF(current_setting(''app.user_id'', true), '''')::uuid';
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY['notifications', 'webhook_endpoints', 'webhook_deliveries'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY system ON %I TO hone_system USING (true) WITH CHECK (true)', target);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO hone_system', target);
        EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s) WITH CHECK (%s)', target, tenant, tenant);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO hone_app', target);
    END LOOP;
END
$$;
GRANT UPDATE ON notifications, webhook_endpoints TO hone_app;
