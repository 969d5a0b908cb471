//! What jobs made.

use super::jobs::signed;
use crate::{
    auth::AuthUser,
    error::Result,
    state::AppState,
    store::{
        Artifact,
        page::{PageQuery, page},
    },
};
use actix_web::{get, web};
use serde::Deserialize;
use wire::{
    Page,
    artifact::ModelArtifactView,
    ids::{ArtifactId, JobId},
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
