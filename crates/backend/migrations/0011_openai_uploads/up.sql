-- Files that the OpenAI-compatible API receives in parts. The parts lie in storage under their ids until the upload is
-- completed in the order the client names.

CREATE TABLE openai_uploads (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT openai_uploads_user_fkey REFERENCES users (id),
    filename text NOT NULL,
    size bigint NOT NULL,
    status text NOT NULL CONSTRAINT openai_uploads_status_check
        CHECK (status IN ('pending', 'completing', 'completed', 'cancelled', 'expired')),
    -- Seconds the file may live.
    lifetime bigint,
    -- What it became.
    file_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT openai_uploads_tenant_key UNIQUE (user_id, id)
);
CREATE INDEX openai_uploads_expiry_idx ON openai_uploads (expires_at) WHERE status IN ('pending', 'completing');

CREATE TABLE openai_upload_parts (
    id uuid PRIMARY KEY,
    upload_id uuid NOT NULL,
    user_id uuid NOT NULL,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT openai_upload_parts_upload_fkey
        FOREIGN KEY (user_id, upload_id) REFERENCES openai_uploads (user_id, id) ON DELETE CASCADE
);
CREATE INDEX openai_upload_parts_upload_idx ON openai_upload_parts (upload_id);

DO $$
DECLARE
    tenant text := 'user_id = NULLIF(current_setting(''app.user_id'', true), '''')::uuid';
    target text;
BEGIN
    FOREACH target IN ARRAY ARRAY['openai_uploads', 'openai_upload_parts'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', target);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', target);
        EXECUTE format('CREATE POLICY system ON %I TO hone_system USING (true) WITH CHECK (true)', target);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO hone_system', target);
        EXECUTE format('CREATE POLICY tenant ON %I TO hone_app USING (%s) WITH CHECK (%s)', target, tenant, tenant);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO hone_app', target);
    END LOOP;
END
$$;
GRANT UPDATE ON openai_uploads TO hone_app;
