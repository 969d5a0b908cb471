//! Tables as diesel sees them; `migrations/` is the truth, and a test compares the two.

diesel::table! {
    users (id) {
        id -> Uuid,
        name -> Text,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    api_keys (id) {
        id -> Uuid,
        user_id -> Uuid,
        name -> Text,
        prefix -> Text,
        key_hash -> Bytea,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        last_used_at -> Nullable<Timestamptz>,
        expires_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    datasets (id) {
        id -> Uuid,
        user_id -> Uuid,
        name -> Text,
        status -> Text,
        format -> Nullable<Text>,
        files -> Jsonb,
        uploads -> Jsonb,
        row_count -> BigInt,
        size -> BigInt,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        purged_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    models (name, revision) {
        name -> Text,
        revision -> Text,
        user_id -> Uuid,
        status -> Text,
        size -> BigInt,
        files -> Jsonb,
        uploads -> Jsonb,
        info -> Nullable<Jsonb>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    training_jobs (id) {
        id -> Uuid,
        user_id -> Uuid,
        name -> Text,
        state -> Text,
        framework -> Text,
        config -> Jsonb,
        model_name -> Text,
        model_revision -> Text,
        dataset_id -> Uuid,
        dataset_name -> Text,
        spec -> Jsonb,
        attempt -> Integer,
        max_attempts -> Integer,
        epoch -> BigInt,
        progress -> Jsonb,
        failure -> Nullable<Jsonb>,
        retry_at -> Nullable<Timestamptz>,
        lease_expires_at -> Nullable<Timestamptz>,
        last_contact_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        started_at -> Nullable<Timestamptz>,
        finished_at -> Nullable<Timestamptz>,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    job_attempts (job_id, attempt) {
        job_id -> Uuid,
        attempt -> Integer,
        user_id -> Uuid,
        epoch -> BigInt,
        instance_id -> Nullable<Uuid>,
        runtime -> Nullable<Jsonb>,
        last_seq -> BigInt,
        outcome -> Nullable<Text>,
        exit_code -> Nullable<Integer>,
        failure -> Nullable<Jsonb>,
        checkpoint_prefix -> Nullable<Text>,
        checkpoint_step -> Nullable<BigInt>,
        manifest -> Nullable<Jsonb>,
        started_at -> Timestamptz,
        claimed_at -> Nullable<Timestamptz>,
        finished_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    job_events (id) {
        id -> BigInt,
        job_id -> Uuid,
        user_id -> Uuid,
        attempt -> Integer,
        seq -> Nullable<BigInt>,
        body_hash -> Nullable<Bytea>,
        body -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    metrics_points (job_id, attempt, step, name) {
        job_id -> Uuid,
        attempt -> Integer,
        step -> BigInt,
        name -> Text,
        user_id -> Uuid,
        epoch -> Double,
        value -> Double,
        at -> Timestamptz,
    }
}

diesel::table! {
    dead_letters (id) {
        id -> BigInt,
        job_id -> Uuid,
        user_id -> Uuid,
        attempt -> Integer,
        seq -> Nullable<BigInt>,
        reason -> Text,
        body -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    idempotency_keys (user_id, key) {
        user_id -> Uuid,
        key -> Text,
        body_hash -> Bytea,
        status -> Nullable<SmallInt>,
        reply -> Nullable<Jsonb>,
        created_at -> Timestamptz,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    users,
    api_keys,
    datasets,
    models,
    training_jobs,
    job_attempts,
    job_events,
    metrics_points,
    dead_letters,
    idempotency_keys,
);
