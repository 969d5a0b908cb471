ALTER TABLE datasets DROP COLUMN origin, DROP COLUMN parent_id;
ALTER TABLE model_artifacts DROP COLUMN purged_at;
