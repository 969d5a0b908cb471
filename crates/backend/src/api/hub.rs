//! Models of the Hugging Face Hub: search, and pulls into the registry.

use super::body::Json;
use crate::{
    auth::AuthUser,
    db::Conn,
    error::Result,
    hub::{
        pull,
        rows::Pull,
        search::{SearchQuery, search},
    },
    state::AppState,
    store::{
        Model,
        page::{PageQuery, page},
    },
};
use actix_web::{HttpResponse, get, post, web};
use serde::Deserialize;
use wire::{
    Page,
    hub::{HubModel, PullModel, PullStatus, PullView},
    ids::PullId,
    model::ModelView,
};

type State = web::Data<AppState>;

/// Models on the Hugging Face Hub. Answers may be five minutes old.
#[utoipa::path(tag = "models", params(SearchQuery), responses((status = 200, body = Page<HubModel>)))]
#[get("/api/models/search")]
pub async fn search_models(
    state: State,
    _user: AuthUser,
    query: web::Query<SearchQuery>,
) -> Result<web::Json<Page<HubModel>>> {
    Ok(web::Json(search(&state.hub, &query).await?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PopularQuery {
    /// Models, 1 to 100; 20 when absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u16>,
}

/// The text generation models that are downloaded most from the Hugging Face Hub.
#[utoipa::path(tag = "models", params(PopularQuery), responses((status = 200, body = Page<HubModel>)))]
#[get("/api/models/popular")]
pub async fn list_popular_models(
    state: State,
    _user: AuthUser,
    query: web::Query<PopularQuery>,
) -> Result<web::Json<Page<HubModel>>> {
    Ok(web::Json(search(&state.hub, &SearchQuery::popular(query.limit)).await?))
}

/// What is in the registry already: the same as the list of models.
#[utoipa::path(tag = "models", params(PageQuery), responses((status = 200, body = Page<ModelView>)))]
#[get("/api/models/cached")]
pub async fn list_cached_models(
    state: State,
    user: AuthUser,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<ModelView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Model::list(conn, &query).await).await?;
    let position = |row: &Model| (row.created_at, format!("{}@{}", row.name, row.revision));
    Ok(web::Json(page(rows, limit, position, Into::into)))
}

/// Fetch a model from the Hugging Face Hub into the registry, in the background. Asking again for what is under way
/// gives the same pull.
#[utoipa::path(tag = "models", responses((status = 202, body = PullView)))]
#[post("/api/models/pull")]
pub async fn pull_model(state: State, user: AuthUser, Json(body): Json<PullModel>) -> Result<HttpResponse> {
    let row = pull::ask(&state, user.user_id, body).await?;
    Ok(HttpResponse::Accepted().json(PullView::from(row)))
}

/// Pulls, newest first.
#[utoipa::path(tag = "models", params(PageQuery), responses((status = 200, body = Page<PullView>)))]
#[get("/api/models/pulls")]
pub async fn list_model_pulls(
    state: State,
    user: AuthUser,
    query: web::Query<PageQuery>,
) -> Result<web::Json<Page<PullView>>> {
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Pull::list(conn, &query).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

/// How far a pull is.
#[utoipa::path(tag = "models", params(("id" = PullId, Path)), responses((status = 200, body = PullView)))]
#[get("/api/models/pulls/{id}")]
pub async fn get_model_pull(state: State, user: AuthUser, id: web::Path<PullId>) -> Result<web::Json<PullView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Pull::find(conn, *id).await).await?;
    Ok(web::Json(row.into()))
}

/// Give a pull up; what it has fetched is removed. One that is over stays as it is.
#[utoipa::path(tag = "models", params(("id" = PullId, Path)), responses((status = 200, body = PullView)))]
#[post("/api/models/pulls/{id}/cancel")]
pub async fn cancel_model_pull(state: State, user: AuthUser, id: web::Path<PullId>) -> Result<web::Json<PullView>> {
    let end = async move |conn: &mut Conn| Pull::end(conn, *id, PullStatus::Cancelled, None).await;
    let row = state.db.tenant(user.user_id, end).await?;
    if row.status.0 == PullStatus::Cancelled {
        pull::forget(&state, &row).await;
    }
    Ok(web::Json(row.into()))
}
