-- Outgoing webhooks: rotation of secrets, and what their owner may do with deliveries.

ALTER TABLE webhook_endpoints
    -- Signs too until then, so that the receiver has time to learn the new one.
    ADD COLUMN previous_secret bytea,
    ADD COLUMN previous_secret_until timestamptz;

-- To deliver again, and to give up what a deleted endpoint waits for.
GRANT UPDATE ON webhook_deliveries TO hone_app;
