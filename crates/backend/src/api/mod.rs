//! HTTP: routes, handlers, the OpenAPI document and who may call what.
//!
//! A handler extracts, makes one call, and maps the result. Its name is the operation's id.

pub mod account;
pub mod authz;
pub mod datasets;
pub mod jobs;
pub mod models;
pub mod openapi;

use crate::state::AppState;
use actix_web::web;

/// All routes of the API.
pub fn configure(config: &mut web::ServiceConfig, state: &AppState) {
    config
        .app_data(web::Data::new(state.clone()))
        .service(openapi::get_openapi)
        .service(account::get_me)
        .service(datasets::upload_dataset)
        .service(datasets::create_dataset)
        .service(datasets::complete_dataset)
        .service(datasets::list_datasets)
        .service(datasets::get_dataset)
        .service(datasets::delete_dataset)
        .service(datasets::preview_dataset)
        .service(models::create_model)
        .service(models::complete_model)
        .service(models::list_models)
        .service(models::get_model)
        .service(models::download_model)
        .service(jobs::create_job)
        .service(jobs::list_jobs)
        .service(jobs::get_job)
        .service(jobs::list_metrics)
        .service(jobs::list_checkpoints)
        .service(jobs::list_artifacts);
}
