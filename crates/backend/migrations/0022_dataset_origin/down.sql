ALTER TABLE datasets DROP COLUMN origin, DROP COLUMN parent_id;
