//! Tables as diesel sees them; `migrations/` is the truth, and a test compares the two.

diesel::table! {
    users (id) {
        id -> Uuid,
        name -> Text,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        email -> Nullable<Text>,
        role -> Text,
        issuer -> Nullable<Text>,
        subject -> Nullable<Text>,
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
        scopes -> Array<Text>,
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
        description -> Text,
        storage_bucket -> Text,
        storage_path -> Text,
        train_rows -> BigInt,
        validation_rows -> BigInt,
        duplicate_rows -> BigInt,
        token_count -> Nullable<BigInt>,
        validated_at -> Nullable<Timestamptz>,
        parent_id -> Nullable<Uuid>,
        origin -> Nullable<Jsonb>,
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
    estimates (id) {
        id -> Uuid,
        user_id -> Uuid,
        job_id -> Nullable<Uuid>,
        version_id -> Nullable<Uuid>,
        tries -> Integer,
        next_try_at -> Nullable<Timestamptz>,
        result -> Nullable<Jsonb>,
        error -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    mlflow_runs (job_id) {
        job_id -> Uuid,
        user_id -> Uuid,
        run_id -> Nullable<Text>,
        last_event_id -> BigInt,
        claimed_by -> Nullable<Uuid>,
        claimed_until -> Nullable<Timestamptz>,
        closed_at -> Nullable<Timestamptz>,
        error -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    model_pulls (id) {
        id -> Uuid,
        user_id -> Uuid,
        repo -> Text,
        revision -> Text,
        commit_hash -> Nullable<Text>,
        name -> Text,
        status -> Text,
        files_total -> Integer,
        files_done -> Integer,
        bytes_total -> BigInt,
        bytes_done -> BigInt,
        failures -> Integer,
        next_try_at -> Timestamptz,
        error -> Nullable<Text>,
        claimed_by -> Nullable<Uuid>,
        claimed_until -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
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
        version_id -> Nullable<Uuid>,
        gpu_config -> Nullable<Text>,
        estimated_cost -> Nullable<Numeric>,
        actual_cost -> Nullable<Numeric>,
        budget_limit -> Nullable<Numeric>,
        validation_dataset_id -> Nullable<Uuid>,
        price_per_hour -> Numeric,
        currency -> Text,
        pause -> Nullable<Jsonb>,
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
        stopped_at -> Nullable<Timestamptz>,
        checkpoint_seconds -> Nullable<Double>,
        swept_at -> Nullable<Timestamptz>,
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
        created_at -> Timestamptz,
        seq -> Nullable<BigInt>,
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
    leaders (singleton) {
        singleton -> Bool,
        holder -> Uuid,
        expires_at -> Timestamptz,
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

diesel::table! {
    audit_log (id) {
        id -> BigInt,
        user_id -> Uuid,
        actor -> Text,
        key_prefix -> Nullable<Text>,
        action -> Text,
        resource_kind -> Text,
        resource_id -> Nullable<Text>,
        outcome -> Text,
        details -> Jsonb,
        ip -> Nullable<Text>,
        trace_id -> Nullable<Text>,
        created_at -> Timestamptz,
        actor_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    training_configs (id) {
        id -> Uuid,
        user_id -> Uuid,
        name -> Text,
        description -> Text,
        template_type -> Text,
        config_json -> Jsonb,
        current_version_id -> Nullable<Uuid>,
        version_count -> Integer,
        latest_published_version -> Integer,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    training_package_versions (id) {
        id -> Uuid,
        user_id -> Uuid,
        package_id -> Uuid,
        version_number -> Nullable<Integer>,
        name -> Text,
        status -> Text,
        revision -> Integer,
        created_at -> Timestamptz,
        created_by -> Uuid,
        published_at -> Nullable<Timestamptz>,
        published_by -> Nullable<Uuid>,
        archived_at -> Nullable<Timestamptz>,
        updated_at -> Timestamptz,
        model_snapshot -> Jsonb,
        config_snapshot -> Jsonb,
        dataset_snapshot -> Jsonb,
        deploy_snapshot -> Jsonb,
        change_summary -> Nullable<Text>,
        parent_version_id -> Nullable<Uuid>,
        is_deployed -> Bool,
        deployment_target -> Nullable<Text>,
        deployment_url -> Nullable<Text>,
        deployment_id -> Nullable<Text>,
        training_status -> Nullable<Text>,
        training_started_at -> Nullable<Timestamptz>,
        training_completed_at -> Nullable<Timestamptz>,
        training_metrics -> Nullable<Jsonb>,
        estimated_cost -> Nullable<Numeric>,
        actual_cost -> Nullable<Numeric>,
        budget_limit -> Nullable<Numeric>,
        cost_alerts_sent -> Jsonb,
    }
}

diesel::table! {
    model_artifacts (id) {
        id -> Uuid,
        user_id -> Uuid,
        job_id -> Uuid,
        attempt -> Integer,
        name -> Text,
        kind -> Text,
        base_model -> Text,
        base_revision -> Text,
        storage_bucket -> Text,
        storage_path -> Text,
        files -> Jsonb,
        size -> BigInt,
        metrics -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        purged_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    deployments (id) {
        id -> Uuid,
        user_id -> Uuid,
        version_id -> Uuid,
        artifact_id -> Nullable<Uuid>,
        target -> Text,
        status -> Text,
        config -> Jsonb,
        failure -> Nullable<Jsonb>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        stopped_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    cost_records (id) {
        id -> Uuid,
        user_id -> Uuid,
        job_id -> Uuid,
        attempt -> Integer,
        kind -> Text,
        gpu_config -> Nullable<Text>,
        seconds -> Double,
        price_per_hour -> Numeric,
        amount -> Numeric,
        currency -> Text,
        started_at -> Timestamptz,
        finished_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    notifications (id) {
        id -> Uuid,
        user_id -> Uuid,
        kind -> Text,
        severity -> Text,
        title -> Text,
        body -> Text,
        data -> Jsonb,
        job_id -> Nullable<Uuid>,
        dedupe_key -> Nullable<Text>,
        read_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        position -> Nullable<BigInt>,
    }
}

diesel::table! {
    webhook_endpoints (id) {
        id -> Uuid,
        user_id -> Uuid,
        url -> Text,
        description -> Text,
        events -> Array<Text>,
        secret -> Bytea,
        enabled -> Bool,
        failures -> Integer,
        disabled_reason -> Nullable<Text>,
        last_delivery_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        previous_secret -> Nullable<Bytea>,
        previous_secret_until -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    webhook_deliveries (id) {
        id -> Uuid,
        user_id -> Uuid,
        endpoint_id -> Uuid,
        event_type -> Text,
        payload -> Jsonb,
        status -> Text,
        attempts -> Integer,
        next_attempt_at -> Timestamptz,
        response_status -> Nullable<Integer>,
        last_error -> Nullable<Text>,
        created_at -> Timestamptz,
        delivered_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    openai_files (id) {
        id -> Uuid,
        user_id -> Uuid,
        filename -> Text,
        purpose -> Text,
        size -> BigInt,
        status -> Text,
        status_details -> Nullable<Text>,
        dataset_id -> Nullable<Uuid>,
        job_id -> Nullable<Uuid>,
        key_id -> Nullable<Uuid>,
        sha256 -> Nullable<Text>,
        created_at -> Timestamptz,
        expires_at -> Nullable<Timestamptz>,
        deleted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    openai_jobs (job_id) {
        job_id -> Uuid,
        user_id -> Uuid,
        model -> Text,
        fine_tuned_model -> Text,
        method -> Jsonb,
        seed -> BigInt,
        metadata -> Nullable<Jsonb>,
        model_deleted_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    openai_uploads (id) {
        id -> Uuid,
        user_id -> Uuid,
        filename -> Text,
        size -> BigInt,
        status -> Text,
        lifetime -> Nullable<BigInt>,
        file_id -> Nullable<Uuid>,
        created_at -> Timestamptz,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    openai_upload_parts (id) {
        id -> Uuid,
        upload_id -> Uuid,
        user_id -> Uuid,
        size -> BigInt,
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
    audit_log,
    training_configs,
    training_package_versions,
    model_artifacts,
    deployments,
    cost_records,
    notifications,
    webhook_endpoints,
    webhook_deliveries,
    openai_files,
    openai_jobs,
    openai_uploads,
    openai_upload_parts,
);
