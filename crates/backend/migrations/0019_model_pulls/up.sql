-- Base models on their way from the Hugging Face Hub into the registry.
CREATE TABLE model_pulls (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT model_pulls_user_fkey REFERENCES users (id),
    repo text NOT NULL,
    -- As it was asked for, and the commit that this was then.
    revision text NOT NULL,
    commit_hash text,
    -- Name in the registry; the revision there is the commit.
    name text NOT NULL,
    status text NOT NULL DEFAULT 'queued'
        CONSTRAINT model_pulls_status_check CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    files_total integer NOT NULL DEFAULT 0,
    files_done integer NOT NULL DEFAULT 0,
    bytes_total bigint NOT NULL DEFAULT 0,
    bytes_done bigint NOT NULL DEFAULT 0,
    -- Failures since the last progress, and when to try again.
    failures integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    error text,
    -- One backend at a time works on a pull.
    claimed_by uuid,
    claimed_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX model_pulls_page_idx ON model_pulls (user_id, created_at DESC, id DESC);
-- Asking twice for what is under way is asking once.
CREATE UNIQUE INDEX model_pulls_open_key ON model_pulls (user_id, repo, revision, name)
    WHERE status IN ('queued', 'running');

CREATE TRIGGER touch BEFORE UPDATE ON model_pulls FOR EACH ROW EXECUTE FUNCTION hone_touch_updated_at();

ALTER TABLE model_pulls ENABLE ROW LEVEL SECURITY;
ALTER TABLE model_pulls FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON model_pulls TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON model_pulls TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT, UPDATE, DELETE ON model_pulls TO hone_system;
GRANT SELECT, INSERT, UPDATE ON model_pulls TO hone_app;
