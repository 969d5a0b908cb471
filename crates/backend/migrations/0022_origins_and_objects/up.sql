-- Datasets that were made of another one.
ALTER TABLE datasets
    ADD COLUMN parent_id uuid,
    -- How: which file, which part of it, by which ratio and seed.
    ADD COLUMN origin jsonb,
    ADD CONSTRAINT datasets_parent_fkey FOREIGN KEY (user_id, parent_id) REFERENCES datasets (user_id, id),
    ADD CONSTRAINT datasets_origin_check CHECK ((parent_id IS NULL) = (origin IS NULL));
CREATE INDEX datasets_parent_idx ON datasets (parent_id);

-- When the stored objects of a deleted artifact were removed, and what the sweeper looks for.
ALTER TABLE model_artifacts ADD COLUMN purged_at timestamptz;
CREATE INDEX model_artifacts_sweep_idx ON model_artifacts (deleted_at) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
