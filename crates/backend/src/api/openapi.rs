//! The OpenAPI document, assembled from the handlers.

use super::authz::{Access, MATRIX};
use crate::openai::error::ErrorReply;
use actix_web::{HttpResponse, get};
use std::sync::LazyLock;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, Ref, RefOr, Response, ResponseBuilder,
        path::{Operation, PathItem},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use wire::account::Scope;
use wire::problem::{PROBLEM_JSON, Problem};

#[derive(OpenApi)]
#[openapi(
    info(title = "Hone", description = "Self-hosted fine-tuning: datasets, base models, training packages, training jobs. Below /v1: OpenAI's fine-tuning API."),
    paths(
        get_openapi,
        super::account::get_me,
        super::keys::create_key,
        super::keys::list_keys,
        super::keys::get_key,
        super::keys::update_key,
        super::keys::delete_key,
        super::users::list_users,
        super::users::create_user,
        super::users::update_user,
        super::users::delete_user,
        super::audit::list_audit,
        super::datasets::upload_dataset,
        super::datasets::create_dataset,
        super::datasets::complete_dataset,
        super::datasets::dataset_uploads,
        super::datasets::list_datasets,
        super::datasets::get_dataset,
        super::datasets::update_dataset,
        super::datasets::split_dataset,
        super::datasets::get_dataset_usage,
        super::datasets::get_dataset_statistics,
        super::datasets::delete_dataset,
        super::datasets::preview_dataset,
        super::hub::search_models,
        super::hub::list_popular_models,
        super::hub::list_cached_models,
        super::hub::pull_model,
        super::hub::list_model_pulls,
        super::hub::get_model_pull,
        super::hub::cancel_model_pull,
        super::models::create_model,
        super::models::complete_model,
        super::models::list_models,
        super::models::get_model,
        super::models::download_model,
        super::jobs::create_job,
        super::jobs::estimate_job,
        super::jobs::list_jobs,
        super::jobs::get_job,
        super::jobs::list_metrics,
        super::jobs::list_checkpoints,
        super::jobs::list_artifacts,
        super::artifacts::list_model_artifacts,
        super::artifacts::get_model_artifact,
        super::artifacts::download_model_artifact,
        super::artifacts::get_artifact_lineage,
        super::artifacts::delete_model_artifact,
        super::packages::create_package,
        super::packages::list_packages,
        super::packages::get_package,
        super::packages::update_package,
        super::packages::delete_package,
        super::packages::get_latest_version,
        super::versions::create_version,
        super::versions::list_versions,
        super::versions::get_version,
        super::versions::update_version,
        super::versions::save_version,
        super::versions::delete_version,
        super::versions::publish_version,
        super::versions::archive_version,
        super::versions::restore_version,
        super::versions::fork_version,
        super::versions::launch_version,
        super::versions::get_version_estimate,
        super::versions::deploy_version,
        super::versions::compare_versions,
        super::catalog::list_presets,
        super::catalog::list_gpu_configs,
        super::webhooks::create_webhook,
        super::webhooks::list_webhooks,
        super::webhooks::get_webhook,
        super::webhooks::update_webhook,
        super::webhooks::delete_webhook,
        super::webhooks::rotate_webhook,
        super::webhooks::test_webhook,
        super::webhooks::list_webhook_deliveries,
        super::webhooks::redeliver_webhook,
        super::costs::list_costs,
        super::costs::summarize_costs,
        super::notifications::list_notifications,
        super::notifications::stream_notifications,
        super::notifications::count_unread_notifications,
        super::notifications::read_notifications,
        super::notifications::read_notification,
        super::notifications::delete_notification,
        crate::jobs::routes::start_job,
        crate::jobs::routes::cancel_job,
        crate::jobs::routes::delete_job,
        crate::jobs::routes::update_job,
        crate::jobs::routes::pause_job,
        crate::jobs::routes::resume_job,
        crate::jobs::routes::report_events,
        crate::jobs::routes::report_trainer_status,
        crate::jobs::routes::list_events,
        crate::jobs::dead_letters::list_dead_letters,
        crate::jobs::dead_letters::replay_dead_letters,
        crate::jobs::routes::get_logs,
        crate::jobs::routes::watch_job,
        crate::openai::files::routes::create_file,
        crate::openai::files::routes::list_files,
        crate::openai::files::routes::get_file,
        crate::openai::files::routes::delete_file,
        crate::openai::files::routes::get_file_content,
        crate::openai::uploads::routes::create_upload,
        crate::openai::uploads::routes::add_upload_part,
        crate::openai::uploads::routes::complete_upload,
        crate::openai::uploads::routes::cancel_upload,
        crate::openai::jobs::routes::create_fine_tuning_job,
        crate::openai::jobs::routes::list_fine_tuning_jobs,
        crate::openai::jobs::routes::get_fine_tuning_job,
        crate::openai::jobs::routes::cancel_fine_tuning_job,
        crate::openai::jobs::routes::pause_fine_tuning_job,
        crate::openai::jobs::routes::resume_fine_tuning_job,
        crate::openai::jobs::routes::list_fine_tuning_events,
        crate::openai::jobs::routes::list_fine_tuning_checkpoints,
        crate::openai::models::list_openai_models,
        crate::openai::models::get_openai_model,
        crate::openai::models::delete_openai_model,
    ),
    components(schemas(Problem, ErrorReply, crate::store::page::Sort, crate::hub::search::HubSort)),
    modifiers(&Errors, &Security)
)]
struct ApiDoc;

/// Every operation may answer with a problem, or below `/v1` with OpenAI's error object.
struct Errors;

impl Modify for Errors {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let response = |schema: &str, description: &str, media: &str| -> Response {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
            ResponseBuilder::new().description(description).content(media, content).build()
        };
        let problem = response("Problem", "A problem (RFC 9457)", PROBLEM_JSON);
        let error = response("ErrorReply", "An error", "application/json");
        for (_, operation) in operations_mut(document) {
            let openai = operation.tags.iter().flatten().any(|tag| tag == "openai");
            let default: RefOr<Response> = if openai { error.clone() } else { problem.clone() }.into();
            operation.responses.responses.insert("default".into(), default);
        }
    }
}

/// Security as the authorisation matrix says.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        for scheme in ["api_key", "job_token"] {
            components.add_security_scheme(scheme, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        }
        for (id, operation) in operations_mut(document) {
            let access = MATRIX.iter().find(|(name, _)| *name == id).map(|(_, access)| access);
            let key = |scopes: &[Scope]| {
                let scopes = scopes.iter().map(|s| s.as_str());
                Some(vec![SecurityRequirement::new("api_key", scopes)])
            };
            operation.security = match access {
                Some(Access::Caller) => key(&[]),
                Some(Access::User(scope)) => key(&[*scope]),
                Some(Access::Admin) => key(&[Scope::Admin]),
                Some(Access::Job) => Some(vec![SecurityRequirement::new("job_token", Vec::<String>::new())]),
                Some(Access::Anyone) | None => None,
            };
        }
    }
}

fn operations_mut(document: &mut utoipa::openapi::OpenApi) -> Vec<(String, &mut Operation)> {
    let mut found = Vec::new();
    for item in document.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            found.push((operation.operation_id.clone().unwrap_or_default(), operation));
        }
    }
    found
}

/// The whole document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    ApiDoc::openapi()
}

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_pretty_json().unwrap_or_default());

/// This document.
#[utoipa::path(tag = "meta", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")))]
#[get("/openapi.json")]
pub async fn get_openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(TEXT.as_str())
}
