//! Who may call what. Handlers enforce it by the extractor they take; tests compare this table with the
//! OpenAPI document and call every operation without credentials.

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No credentials.
    Anyone,
    /// A user, on what belongs to them: an API key.
    User,
    /// The current attempt of the job in the path: its job token.
    Job,
}

/// Operation id to who may call it, sorted by operation.
pub const MATRIX: &[(&str, Access)] = &[
    ("archive_version", Access::User),
    ("cancel_job", Access::User),
    ("compare_versions", Access::User),
    ("complete_dataset", Access::User),
    ("complete_model", Access::User),
    ("create_dataset", Access::User),
    ("create_job", Access::User),
    ("create_model", Access::User),
    ("create_package", Access::User),
    ("create_version", Access::User),
    ("delete_dataset", Access::User),
    ("delete_job", Access::User),
    ("delete_package", Access::User),
    ("delete_version", Access::User),
    ("deploy_version", Access::User),
    ("download_model", Access::User),
    ("estimate_job", Access::User),
    ("fork_version", Access::User),
    ("get_dataset", Access::User),
    ("get_job", Access::User),
    ("get_latest_version", Access::User),
    ("get_logs", Access::User),
    ("get_me", Access::User),
    ("get_model", Access::User),
    ("get_model_artifact", Access::User),
    ("get_openapi", Access::Anyone),
    ("get_package", Access::User),
    ("get_version", Access::User),
    ("launch_version", Access::User),
    ("list_artifacts", Access::User),
    ("list_checkpoints", Access::User),
    ("list_datasets", Access::User),
    ("list_events", Access::User),
    ("list_gpu_configs", Access::User),
    ("list_jobs", Access::User),
    ("list_metrics", Access::User),
    ("list_model_artifacts", Access::User),
    ("list_models", Access::User),
    ("list_packages", Access::User),
    ("list_presets", Access::User),
    ("list_versions", Access::User),
    ("pause_job", Access::User),
    ("preview_dataset", Access::User),
    ("publish_version", Access::User),
    ("report_events", Access::Job),
    ("restore_version", Access::User),
    ("resume_job", Access::User),
    ("save_version", Access::User),
    ("start_job", Access::User),
    ("update_package", Access::User),
    ("update_version", Access::User),
    ("upload_dataset", Access::User),
    ("watch_job", Access::User),
];
