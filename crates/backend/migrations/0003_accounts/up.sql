-- Who a user is outside, what a key may do, and who did what.
ALTER TABLE users
    ADD COLUMN email text,
    ADD COLUMN role text NOT NULL DEFAULT 'user' CONSTRAINT users_role_check CHECK (role IN ('user', 'admin')),
    -- The identity provider's name for the user: `iss` and `sub` of its tokens.
    ADD COLUMN issuer text,
    ADD COLUMN subject text,
    ADD CONSTRAINT users_identity_check CHECK ((issuer IS NULL) = (subject IS NULL)),
    ADD CONSTRAINT users_identity_key UNIQUE (issuer, subject);

-- `*` is everything; the keys there are may go on doing everything.
ALTER TABLE api_keys
    ADD COLUMN scopes text[] NOT NULL DEFAULT '{*}',
    ADD CONSTRAINT api_keys_scopes_check CHECK (array_position(scopes, NULL) IS NULL),
    ADD CONSTRAINT api_keys_tenant_key UNIQUE (user_id, id);
GRANT INSERT, UPDATE ON api_keys TO hone_app;

-- Who did what. Rows are added and read, never changed: no role has the right, and the trigger stops the owner.
CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT audit_log_user_fkey REFERENCES users (id),
    actor text NOT NULL CONSTRAINT audit_log_actor_check CHECK (actor IN ('user', 'admin', 'system')),
    -- First characters of the API key that was used.
    key_prefix text,
    action text NOT NULL,
    resource_kind text NOT NULL,
    resource_id text,
    outcome text NOT NULL DEFAULT 'done' CONSTRAINT audit_log_outcome_check CHECK (outcome IN ('done', 'refused')),
    details jsonb NOT NULL DEFAULT '{}',
    ip text,
    trace_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_log_page_idx ON audit_log (user_id, id DESC);
CREATE INDEX audit_log_resource_idx ON audit_log (resource_kind, resource_id, id DESC);

CREATE FUNCTION hone_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only added, never changed or removed', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_TABLE_NAME || '_append_only';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION hone_append_only();

ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON audit_log TO hone_system USING (true) WITH CHECK (true);
CREATE POLICY tenant ON audit_log TO hone_app
    USING (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid)
    WITH CHECK (user_id = NULLIF(current_setting('app.user_id', true), '')::uuid);
GRANT SELECT, INSERT ON audit_log TO hone_app, hone_system;
