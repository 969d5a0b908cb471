//! Training packages.

use super::{
    body::Json,
    precondition::{fresh, idempotency_key},
};
use crate::{
    auth::AuthUser,
    db::Conn,
    error::{Error, Result},
    packages,
    state::AppState,
    store::{
        Package, Version,
        page::{PageQuery, Sort, page},
    },
};
use actix_web::{HttpRequest, HttpResponse, delete, get, patch, post, web};
use serde::Deserialize;
use wire::{
    Page,
    package::{CreatePackage, PackageView, UpdatePackage, VersionView},
    problem::Code,
};

type State = web::Data<AppState>;

/// Create a package. With an `Idempotency-Key` header, repeating the request gives the first reply.
#[utoipa::path(tag = "packages", params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 200, pattern = "^[!-~]([ -~]*[!-~])?$")),
    responses((status = 201, body = PackageView)))]
#[post("/api/training/packages")]
pub async fn create_package(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    Json(body): Json<CreatePackage>,
) -> Result<HttpResponse> {
    let key = idempotency_key(&req, "create_package", &body)?;
    let work = async move |conn: &mut Conn| packages::create_package(conn, user.user_id, body, key.as_ref()).await;
    Ok(HttpResponse::Created().json(state.db.tenant(user.user_id, work).await?))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PackagesQuery {
    /// Only packages whose name has this part, in any case.
    name: Option<String>,
    /// `-created_at` (newest first) when absent.
    sort: Option<Sort>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Packages, newest first.
#[utoipa::path(tag = "packages", params(PackagesQuery), responses((status = 200, body = Page<PackageView>)))]
#[get("/api/training/packages")]
pub async fn list_packages(
    state: State,
    user: AuthUser,
    query: web::Query<PackagesQuery>,
) -> Result<web::Json<Page<PackageView>>> {
    let PackagesQuery { name, sort, cursor, limit } = query.into_inner();
    let (query, sort) = (PageQuery { cursor, limit }, sort.unwrap_or_default());
    let limit = query.limit()?;
    let list = async move |conn: &mut Conn| Package::list(conn, &query, sort, name.as_deref()).await;
    let rows = state.db.tenant(user.user_id, list).await?;
    let position = |row: &Package| (if sort.by_change() { row.updated_at } else { row.created_at }, row.id);
    Ok(web::Json(page(rows, limit, position, Into::into)))
}

/// A package by id or name.
#[utoipa::path(tag = "packages", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = PackageView)))]
#[get("/api/training/packages/{id}")]
pub async fn get_package(state: State, user: AuthUser, id: web::Path<String>) -> Result<web::Json<PackageView>> {
    let row = state.db.tenant(user.user_id, async move |conn| Package::find(conn, &id).await).await?;
    Ok(web::Json(row.into()))
}

/// Rename or describe a package, or change what its new drafts start from. Versions stay as they are.
#[utoipa::path(tag = "packages", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = PackageView)))]
#[patch("/api/training/packages/{id}")]
pub async fn update_package(
    state: State,
    user: AuthUser,
    id: web::Path<String>,
    Json(body): Json<UpdatePackage>,
) -> Result<web::Json<PackageView>> {
    let work = async move |conn: &mut Conn| packages::update_package(conn, &id, body).await;
    Ok(web::Json(state.db.tenant(user.user_id, work).await?.into()))
}

/// Delete a package with its versions. Jobs that were launched from them stay.
#[utoipa::path(tag = "packages", params(("id" = String, Path, description = "id or name")),
    responses((status = 204)))]
#[delete("/api/training/packages/{id}")]
pub async fn delete_package(state: State, user: AuthUser, id: web::Path<String>) -> Result<HttpResponse> {
    let work = async move |conn: &mut Conn| {
        let row = Package::find(conn, &id).await?;
        Package::soft_delete(conn, row.id()).await
    };
    state.db.tenant(user.user_id, work).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The newest version of a package that is published now.
#[utoipa::path(tag = "packages", params(("id" = String, Path, description = "id or name")),
    responses((status = 200, body = VersionView)))]
#[get("/api/training/packages/{id}/latest")]
pub async fn get_latest_version(
    state: State,
    user: AuthUser,
    req: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse> {
    let work = async move |conn: &mut Conn| {
        let package = Package::find(conn, &id).await?;
        let missing = || format!("the package `{}` has no published version; publish a draft", package.name);
        let latest = Version::latest_published(conn, package.id()).await?;
        latest.ok_or_else(|| Error::refused(Code::NotFound, missing()))
    };
    let view = VersionView::try_from(state.db.tenant(user.user_id, work).await?)?;
    Ok(fresh(&req, &view))
}
