DROP TABLE audit_log;
DROP FUNCTION hone_append_only();
REVOKE INSERT, UPDATE ON api_keys FROM hone_app;
ALTER TABLE api_keys DROP CONSTRAINT api_keys_tenant_key, DROP COLUMN scopes;
ALTER TABLE users DROP COLUMN subject, DROP COLUMN issuer, DROP COLUMN role, DROP COLUMN email;
