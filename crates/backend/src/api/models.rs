//! Base models.

use super::jobs::signed;
use crate::{
    auth::AuthUser,
    error::{Error, Result},
    registry,
    state::AppState,
    store::{
        Model,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpResponse, get, post, web};
use wire::{
    Page,
    job::ArtifactView,
    model::{CreateModel, CreatedModel, ModelView},
    storage::FileRef,
};

type State = web::Data<AppState>;

/// Open uploads for the files of a model. What the registry has already is not uploaded again.
#[utoipa::path(tag = "models", responses((status = 201, body = CreatedModel)))]
#[post("/api/models")]
pub async fn create_model(state: State, user: AuthUser, body: super::body::Json<CreateModel>) -> Result<HttpResponse> {
    let created = registry::create(&state, user.user_id, body.0).await?;
    Ok(HttpResponse::Created().json(created))
}

/// Verify the uploaded files and put the revision into the registry. Repeating it is harmless.
#[utoipa::path(tag = "models", params(("name" = String, Path), ("revision" = String, Path)),
    responses((status = 200, body = ModelView)))]
#[post("/api/models/{name}/{revision}/complete")]
pub async fn complete_model(
    state: State,
    user: AuthUser,
    path: web::Path<(String, String)>,
) -> Result<web::Json<ModelView>> {
    let (name, revision) = path.into_inner();
    Ok(web::Json(registry::complete(&state, user.user_id, name, revision).await?))
}

/// Models ready for training, newest first.
#[utoipa::path(tag = "models", params(PageQuery), responses((status = 200, body = Page<ModelView>)))]
#[get("/api/models")]
pub async fn list_models(
    state: State,
    user: AuthUser,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<ModelView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Model::list(conn, &query).await).await?;
    let position = |row: &Model| (row.created_at, format!("{}@{}", row.name, row.revision));
    Ok(web::Json(page(rows, limit, position, Into::into)))
}

/// The newest revision of a model, or `name@revision`.
#[utoipa::path(tag = "models", params(("name" = String, Path)), responses((status = 200, body = ModelView)))]
#[get("/api/models/{name}")]
pub async fn get_model(state: State, user: AuthUser, name: web::Path<String>) -> Result<web::Json<ModelView>> {
    let find = async move |conn: &mut crate::db::Conn| match name.split_once('@') {
        Some((name, revision)) => Model::find(conn, name, Some(revision)).await,
        None => Model::find(conn, &name, None).await,
    };
    Ok(web::Json(state.db.tenant(user.user_id, find).await?.into()))
}

/// The files of a model with download URLs.
#[utoipa::path(tag = "models", params(("name" = String, Path), ("revision" = String, Path)),
    responses((status = 200, body = Vec<ArtifactView>)))]
#[get("/api/models/{name}/{revision}/download")]
pub async fn download_model(
    state: State,
    user: AuthUser,
    path: web::Path<(String, String)>,
) -> Result<web::Json<Vec<ArtifactView>>> {
    let (name, revision) = path.into_inner();
    let find = async move |conn: &mut crate::db::Conn| Model::find(conn, &name, Some(&revision)).await;
    let row = state.db.tenant(user.user_id, find).await?;
    let prefix = row.prefix();
    let files = row.files.0.iter().map(|f| {
        let key = format!("{prefix}{}", f.path);
        Ok::<_, Error>(FileRef { key, size: f.size, sha256: f.sha256.clone() })
    });
    let files = files.collect::<Result<Vec<_>>>()?;
    Ok(web::Json(signed(&state, &prefix, files).await?))
}
