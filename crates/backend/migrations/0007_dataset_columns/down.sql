ALTER TABLE datasets DROP COLUMN description, DROP COLUMN storage_bucket, DROP COLUMN storage_path,
    DROP COLUMN train_rows, DROP COLUMN validation_rows, DROP COLUMN duplicate_rows, DROP COLUMN token_count,
    DROP COLUMN validated_at;
