DROP TRIGGER follow ON training_jobs;
-- Only a function's owner may drop it.
SET LOCAL ROLE hone_system;
DROP FUNCTION hone_archive_version(uuid), hone_follow_job();
RESET ROLE;
DROP VIEW latest_published_versions;
ALTER TABLE training_jobs DROP COLUMN version_id, DROP COLUMN gpu_config, DROP COLUMN estimated_cost,
    DROP COLUMN actual_cost, DROP COLUMN budget_limit;
DROP TABLE cost_records, deployments, model_artifacts;
ALTER TABLE training_configs DROP CONSTRAINT training_configs_current_fkey;
DROP TABLE training_package_versions, training_configs;
DROP FUNCTION get_next_version_number(uuid), hone_guard_version(), update_version_count(),
    update_training_package_versions_updated_at();
