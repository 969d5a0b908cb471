REVOKE UPDATE ON webhook_deliveries FROM hone_app;
ALTER TABLE webhook_endpoints DROP COLUMN previous_secret, DROP COLUMN previous_secret_until;
