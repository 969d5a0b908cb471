//! The fine-tuning part of OpenAI's HTTP API, for clients that know only that one: they change the base URL and the key.
//!
//! Everything here is another view of datasets, jobs and models; `docs/API-openai.md` says which, and what is not served.
//! Errors are OpenAI's error objects, whatever goes wrong below these paths.

pub mod auth;
pub mod body;
pub mod error;
pub mod files;
pub mod ids;
pub mod jobs;
pub mod list;
pub mod models;
pub mod results;
pub mod uploads;

use actix_web::web;
use std::borrow::Cow;

/// Cap on bodies in bytes, files apart.
const BODY_LIMIT: usize = 2 << 20;

/// The path in the OpenAPI document of a path that Azure's clients use.
#[must_use]
pub fn canonical(path: &str) -> Cow<'_, str> {
    match path.strip_prefix("/openai/v1").or_else(|| path.strip_prefix("/openai")) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Cow::Owned(format!("/v1{rest}")),
        _ => Cow::Borrowed(path),
    }
}

/// Whether what is below this path speaks OpenAI's dialect.
#[must_use]
pub fn speaks(path: &str) -> bool {
    matches!(path.split('/').nth(1), Some("v1" | "openai"))
}

/// All routes, also below the paths that Azure's clients use.
pub fn configure(config: &mut web::ServiceConfig) {
    // The longer path first: the shorter one would take its requests.
    for path in ["/v1", "/openai/v1", "/openai"] {
        let (payload, paths) = error::extractors(BODY_LIMIT);
        config.service(web::scope(path).app_data(payload).app_data(paths).configure(routes));
    }
}

fn routes(config: &mut web::ServiceConfig) {
    config
        .service(files::routes::create_file)
        .service(files::routes::list_files)
        .service(files::routes::get_file)
        .service(files::routes::delete_file)
        .service(files::routes::get_file_content)
        .service(uploads::routes::create_upload)
        .service(uploads::routes::add_upload_part)
        .service(uploads::routes::complete_upload)
        .service(uploads::routes::cancel_upload)
        .service(jobs::routes::create_fine_tuning_job)
        .service(jobs::routes::list_fine_tuning_jobs)
        .service(jobs::routes::get_fine_tuning_job)
        .service(jobs::routes::cancel_fine_tuning_job)
        .service(jobs::routes::pause_fine_tuning_job)
        .service(jobs::routes::resume_fine_tuning_job)
        .service(jobs::routes::list_fine_tuning_events)
        .service(jobs::routes::list_fine_tuning_checkpoints)
        .service(models::list_openai_models)
        .service(models::get_openai_model)
        .service(models::delete_openai_model);
}
