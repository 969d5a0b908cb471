DROP TABLE idempotency_keys, dead_letters, metrics_points, job_events, job_attempts, training_jobs, models, datasets,
    api_keys, users;
DROP FUNCTION hone_notify_job_events(), hone_notify_jobs(), hone_touch_updated_at();
-- The roles stay: they belong to the server, and other databases may use them.
REVOKE USAGE ON SCHEMA public FROM hone_app, hone_system;
