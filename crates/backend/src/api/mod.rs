//! HTTP: routes, handlers, the OpenAPI document and who may call what.
//!
//! A handler extracts, makes one call, and maps the result. Its name is the operation's id.

pub mod account;
pub mod artifacts;
pub mod audit;
pub mod authz;
pub(crate) mod body;
pub mod catalog;
pub mod costs;
pub mod datasets;
pub mod docs;
pub mod guard;
pub mod hub;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod notifications;
pub mod openapi;
pub mod packages;
mod precondition;
pub mod users;
pub mod versions;
pub mod webhooks;

use actix_web::web;

/// All routes of the API. They run behind [`guard::enforce`], which serves only what the OpenAPI document names.
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .service(openapi::get_openapi)
        .service(account::get_me)
        .service(keys::create_key)
        .service(keys::list_keys)
        .service(keys::get_key)
        .service(keys::update_key)
        .service(keys::delete_key)
        .service(users::list_users)
        .service(users::create_user)
        .service(users::update_user)
        .service(users::delete_user)
        .service(audit::list_audit)
        .service(datasets::upload_dataset)
        .service(datasets::create_dataset)
        .service(datasets::complete_dataset)
        .service(datasets::dataset_uploads)
        .service(datasets::list_datasets)
        .service(datasets::get_dataset)
        .service(datasets::update_dataset)
        .service(datasets::split_dataset)
        .service(datasets::get_dataset_usage)
        .service(datasets::get_dataset_statistics)
        .service(datasets::delete_dataset)
        .service(datasets::preview_dataset)
        // Before the names of models.
        .service(hub::search_models)
        .service(hub::list_popular_models)
        .service(hub::list_cached_models)
        .service(hub::pull_model)
        .service(hub::list_model_pulls)
        .service(hub::get_model_pull)
        .service(hub::cancel_model_pull)
        .service(models::create_model)
        .service(models::complete_model)
        .service(models::list_models)
        .service(models::get_model)
        .service(models::download_model)
        .service(jobs::create_job)
        .service(jobs::estimate_job)
        .service(jobs::list_jobs)
        .service(jobs::get_job)
        .service(jobs::list_metrics)
        .service(jobs::list_checkpoints)
        .service(jobs::list_artifacts)
        .service(artifacts::list_model_artifacts)
        .service(artifacts::get_model_artifact)
        .service(artifacts::download_model_artifact)
        .service(artifacts::get_artifact_lineage)
        .service(artifacts::delete_model_artifact)
        .service(packages::create_package)
        .service(packages::list_packages)
        .service(packages::get_package)
        .service(packages::update_package)
        .service(packages::delete_package)
        .service(packages::get_latest_version)
        .service(versions::create_version)
        .service(versions::list_versions)
        .service(versions::get_version)
        .service(versions::update_version)
        .service(versions::save_version)
        .service(versions::delete_version)
        .service(versions::publish_version)
        .service(versions::archive_version)
        .service(versions::restore_version)
        .service(versions::fork_version)
        .service(versions::launch_version)
        .service(versions::get_version_estimate)
        .service(versions::deploy_version)
        .service(versions::compare_versions)
        .service(catalog::list_presets)
        .service(catalog::list_gpu_configs)
        .service(webhooks::create_webhook)
        .service(webhooks::list_webhooks)
        .service(webhooks::get_webhook)
        .service(webhooks::update_webhook)
        .service(webhooks::delete_webhook)
        .service(webhooks::rotate_webhook)
        .service(webhooks::test_webhook)
        .service(webhooks::list_webhook_deliveries)
        .service(webhooks::redeliver_webhook)
        .service(costs::list_costs)
        .service(costs::summarize_costs)
        .service(notifications::list_notifications)
        .service(notifications::stream_notifications)
        .service(notifications::count_unread_notifications)
        .service(notifications::read_notifications)
        .service(notifications::read_notification)
        .service(notifications::delete_notification);
}
