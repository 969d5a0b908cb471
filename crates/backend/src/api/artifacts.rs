//! What jobs made.

use super::jobs::signed;
use crate::{
    auth::AuthUser,
    error::{Error, Result},
    lineage,
    state::AppState,
    store::{
        Artifact,
        page::{PageQuery, page},
        usage,
    },
};
use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{TimeDelta, Utc};
use serde::Deserialize;
use wire::{
    Page,
    artifact::{ArtifactDownload, Lineage, ModelArtifactView},
    ids::{ArtifactId, JobId},
    problem::Code,
};

type State = web::Data<AppState>;

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ArtifactsQuery {
    /// Only what this job made.
    job_id: Option<JobId>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Adapters and models that jobs made, newest first.
#[utoipa::path(tag = "artifacts", params(ArtifactsQuery), responses((status = 200, body = Page<ModelArtifactView>)))]
#[get("/api/artifacts")]
pub async fn list_model_artifacts(
    state: State,
    user: AuthUser,
    query: web::Query<ArtifactsQuery>,
) -> Result<web::Json<Page<ModelArtifactView>>> {
    let ArtifactsQuery { job_id, cursor, limit } = query.into_inner();
    let query = PageQuery { cursor, limit };
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Artifact::list(conn, &query, job_id).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// One of them, with download URLs for its files.
#[utoipa::path(tag = "artifacts", params(("id" = ArtifactId, Path)), responses((status = 200, body = ModelArtifactView)))]
#[get("/api/artifacts/{id}")]
pub async fn get_model_artifact(
    state: State,
    user: AuthUser,
    id: web::Path<ArtifactId>,
) -> Result<web::Json<ModelArtifactView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Artifact::find(conn, *id).await).await?;
    let files = signed(&state, &row.storage_path, row.file_refs()).await?;
    Ok(web::Json(ModelArtifactView { files: Some(files), ..row.into() }))
}

/// URLs to download the files of one of them, good for at most 15 minutes.
#[utoipa::path(tag = "artifacts", params(("id" = ArtifactId, Path)), responses((status = 200, body = ArtifactDownload)))]
#[post("/api/artifacts/{id}/download")]
pub async fn download_model_artifact(
    state: State,
    user: AuthUser,
    id: web::Path<ArtifactId>,
) -> Result<web::Json<ArtifactDownload>> {
    let row = state.db.tenant(user.user_id, async move |conn| Artifact::find(conn, *id).await).await?;
    // Told a little early: a URL is signed when its turn comes.
    let expires_at = Utc::now() + TimeDelta::minutes(14);
    let files = signed(&state, &row.storage_path, row.file_refs()).await?;
    Ok(web::Json(ArtifactDownload { files, expires_at }))
}

/// Where one of them comes from: job, package version, digests of datasets, base model and adapters.
#[utoipa::path(tag = "artifacts", params(("id" = ArtifactId, Path)), responses((status = 200, body = Lineage)))]
#[get("/api/artifacts/{id}/lineage")]
pub async fn get_artifact_lineage(
    state: State,
    user: AuthUser,
    id: web::Path<ArtifactId>,
) -> Result<web::Json<Lineage>> {
    Ok(web::Json(state.db.tenant(user.user_id, async move |conn| lineage::of(conn, *id).await).await?))
}

/// Delete one of them; its files go some minutes later. Refused while an unfinished job, a draft or a published version
/// continues from it.
#[utoipa::path(tag = "artifacts", params(("id" = ArtifactId, Path)), responses((status = 204)))]
#[delete("/api/artifacts/{id}")]
pub async fn delete_model_artifact(state: State, user: AuthUser, id: web::Path<ArtifactId>) -> Result<HttpResponse> {
    let delete = async move |conn: &mut crate::db::Conn| {
        let row = Artifact::find(conn, *id).await?;
        let users = usage::continuing_from(conn, JobId(row.job_id)).await?;
        if !users.is_empty() {
            let detail = format!(
                "unfinished jobs or versions continue from this adapter; cancel, change or archive them first: {}",
                users.join(", ")
            );
            return Err(Error::refused(Code::Conflict, detail));
        }
        Artifact::soft_delete(conn, *id).await
    };
    state.db.tenant(user.user_id, delete).await?;
    Ok(HttpResponse::NoContent().finish())
}
