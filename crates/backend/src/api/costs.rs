//! What jobs have cost.

use crate::{
    auth::AuthUser,
    db::Conn,
    error::Result,
    state::AppState,
    store::{
        cost::Cost,
        page::{PageQuery, page},
    },
};
use actix_web::{get, web};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use wire::{
    Page,
    account::{Role, Scope},
    cost::{CostFilter, CostGroup, CostRecord, CostSummary},
    ids::{JobId, PackageId, VersionId},
};

type State = web::Data<AppState>;

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CostsQuery {
    /// Only of this job.
    job_id: Option<JobId>,
    /// Only of jobs launched from this version, …
    version_id: Option<VersionId>,
    /// … or from any version of this package.
    package_id: Option<PackageId>,
    /// Only attempts that started then or later, …
    from: Option<DateTime<Utc>>,
    /// … and before this.
    to: Option<DateTime<Utc>>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items per page, 1 to 200; 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// What each attempt has cost, newest first. An attempt that runs is shown up to its trainer's last report.
#[utoipa::path(tag = "costs", params(CostsQuery), responses((status = 200, body = Page<CostRecord>)))]
#[get("/api/costs")]
pub async fn list_costs(
    state: State,
    user: AuthUser,
    query: web::Query<CostsQuery>,
) -> Result<web::Json<Page<CostRecord>>> {
    let CostsQuery { job_id, version_id, package_id, from, to, cursor, limit } = query.into_inner();
    let filter = CostFilter { job: job_id, version: version_id, package: package_id, from, to };
    let query = PageQuery { cursor, limit };
    let limit = query.limit()?;
    let rows = state.db.tenant(user.user_id, async move |conn| Cost::list(conn, &query, filter).await).await?;
    Ok(web::Json(page(rows, limit, |row| (row.created_at, row.id), Into::into)))
}

#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SummaryQuery {
    /// `day` when absent. `user` shows an administrator every user, and others themselves.
    group_by: Option<CostGroup>,
    /// Only of this job.
    job_id: Option<JobId>,
    /// Only of jobs launched from this version, …
    version_id: Option<VersionId>,
    /// … or from any version of this package.
    package_id: Option<PackageId>,
    /// Only attempts that started then or later, …
    from: Option<DateTime<Utc>>,
    /// … and before this.
    to: Option<DateTime<Utc>>,
}

/// Costs by day, package, user or GPU configuration. Different currencies are never added up.
#[utoipa::path(tag = "costs", params(SummaryQuery), responses((status = 200, body = CostSummary)))]
#[get("/api/costs/summary")]
pub async fn summarize_costs(
    state: State,
    user: AuthUser,
    query: web::Query<SummaryQuery>,
) -> Result<web::Json<CostSummary>> {
    let SummaryQuery { group_by, job_id, version_id, package_id, from, to } = query.into_inner();
    let filter = CostFilter { job: job_id, version: version_id, package: package_id, from, to };
    let group_by = group_by.unwrap_or_default();
    let admin = user.role == Role::Admin && Scope::Admin.is_in(&user.scopes);
    let everyone = group_by == CostGroup::User && admin;
    let work = async move |conn: &mut Conn| Cost::summary(conn, group_by, filter).await;
    let summary = if everyone { state.db.system(work).await? } else { state.db.tenant(user.user_id, work).await? };
    Ok(web::Json(summary))
}
