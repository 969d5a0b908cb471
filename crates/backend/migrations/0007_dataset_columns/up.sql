-- What validation found, in columns that lists and packages can show without reading reports.
ALTER TABLE datasets
    ADD COLUMN description text NOT NULL DEFAULT '',
    ADD COLUMN storage_bucket text NOT NULL DEFAULT 'lora-datasets',
    -- Key prefix of the files.
    ADD COLUMN storage_path text,
    ADD COLUMN train_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN validation_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN duplicate_rows bigint NOT NULL DEFAULT 0,
    ADD COLUMN token_count bigint,
    ADD COLUMN validated_at timestamptz;

-- Row security would hide the rows from an owner that is no superuser; filling in is not a change.
ALTER TABLE datasets NO FORCE ROW LEVEL SECURITY, DISABLE TRIGGER touch;
UPDATE datasets SET storage_path = 'datasets/' || user_id || '/' || id || '/';
UPDATE datasets d SET
    train_rows = coalesce(f.train, 0),
    validation_rows = coalesce(f.validation, 0),
    duplicate_rows = coalesce(f.duplicates, 0),
    token_count = f.tokens,
    validated_at = d.updated_at
FROM (
    SELECT id,
        (SELECT sum((x -> 'report' ->> 'rows')::bigint) FROM jsonb_array_elements(files) x WHERE x ->> 'split' = 'train') AS train,
        (SELECT sum((x -> 'report' ->> 'rows')::bigint) FROM jsonb_array_elements(files) x WHERE x ->> 'split' = 'validation') AS validation,
        (SELECT sum((x -> 'report' ->> 'duplicates')::bigint) FROM jsonb_array_elements(files) x) AS duplicates,
        (SELECT sum((x -> 'report' -> 'tokens' ->> 'total')::bigint) FROM jsonb_array_elements(files) x) AS tokens
    FROM datasets WHERE status = 'ready'
) f WHERE f.id = d.id;
ALTER TABLE datasets FORCE ROW LEVEL SECURITY, ENABLE TRIGGER touch;
ALTER TABLE datasets ALTER COLUMN storage_path SET NOT NULL;
