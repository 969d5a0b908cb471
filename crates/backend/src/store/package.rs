//! Training packages. Their counters are the database's.

use super::{
    Json,
    page::{PageQuery, Sort},
};
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::training_configs as packages,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;
use wire::{
    ids::{PackageId, UserId, VersionId},
    package::PackageView,
    problem::{Code, Problem},
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = packages, check_for_backend(diesel::pg::Pg))]
pub struct Package {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub template_type: String,
    pub config_json: Json<Value>,
    pub current_version_id: Option<Uuid>,
    pub version_count: i32,
    pub latest_published_version: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Package> for PackageView {
    fn from(row: Package) -> Self {
        let count = |value: i32| u32::try_from(value).unwrap_or_default();
        Self {
            id: PackageId(row.id),
            name: row.name,
            description: row.description,
            template_type: row.template_type,
            config: row.config_json.0,
            current_version_id: row.current_version_id.map(VersionId),
            version_count: count(row.version_count),
            latest_published_version: count(row.latest_published_version),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// What may be changed; `None` stays.
#[derive(Debug, Clone, Default, AsChangeset)]
#[diesel(table_name = packages)]
pub struct PackageChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub config_json: Option<Json<Value>>,
}

impl PackageChange {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.name.is_none() && self.description.is_none() && self.config_json.is_none()
    }
}

impl Package {
    #[must_use]
    pub const fn id(&self) -> PackageId {
        PackageId(self.id)
    }

    pub async fn insert(
        conn: &mut Conn,
        user: UserId,
        name: &str,
        template_type: &str,
        rest: PackageChange,
    ) -> Result<Self> {
        let values = (
            packages::id.eq(PackageId::random().0),
            packages::user_id.eq(user.0),
            packages::name.eq(name),
            packages::template_type.eq(template_type),
            packages::description.eq(rest.description.unwrap_or_default()),
            packages::config_json.eq(rest.config_json.unwrap_or_else(|| Json(serde_json::json!({})))),
        );
        let insert = diesel::insert_into(packages::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    pub async fn find_by_name(conn: &mut Conn, name: &str) -> Result<Option<Self>> {
        let named = packages::table.filter(packages::name.eq(name)).filter(packages::deleted_at.is_null());
        Ok(named.select(Self::as_select()).first(conn).await.optional()?)
    }

    /// By id, else by name; a problem with near names otherwise.
    pub async fn find(conn: &mut Conn, id_or_name: &str) -> Result<Self> {
        let live = packages::table.filter(packages::deleted_at.is_null());
        if let Ok(id) = id_or_name.parse::<Uuid>() {
            let this = live.filter(packages::id.eq(id));
            if let Some(row) = this.select(Self::as_select()).first(conn).await.optional()? {
                return Ok(row);
            }
        }
        if let Some(row) = Self::find_by_name(conn, id_or_name).await? {
            return Ok(row);
        }
        let names: Vec<String> = live.select(packages::name).order(packages::name).limit(1000).load(conn).await?;
        Err(Problem::not_found("package", id_or_name, names.iter().map(String::as_str)).into())
    }

    /// Takes the lock that writers of a package's versions take before the version's own, so that they never wait
    /// for one another in a circle. Refused when the package is gone.
    pub async fn lock(conn: &mut Conn, id: PackageId) -> Result<Self> {
        let live = packages::table.filter(packages::id.eq(id.0)).filter(packages::deleted_at.is_null());
        let row = live.select(Self::as_select()).for_no_key_update().first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no package {id}; it may have been deleted")))
    }

    /// `contains`: part of the name, in any case. One row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, sort: Sort, contains: Option<&str>) -> Result<Vec<Self>> {
        let mut rows = packages::table.filter(packages::deleted_at.is_null()).into_boxed();
        if let Some(text) = contains {
            let literal = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            rows = rows.filter(packages::name.ilike(format!("%{literal}%")));
        }
        super::page::sorted!(rows, packages, query, sort);
        Ok(rows.select(Self::as_select()).limit(query.limit()? + 1).load(conn).await?)
    }

    pub async fn change(conn: &mut Conn, id: PackageId, change: PackageChange) -> Result<Self> {
        let update = diesel::update(packages::table.find(id.0)).set(change);
        Ok(update.returning(Self::as_returning()).get_result(conn).await?)
    }

    pub async fn set_current(conn: &mut Conn, id: PackageId, version: VersionId) -> Result<()> {
        let other = packages::table.find(id.0).filter(packages::current_version_id.is_distinct_from(version.0));
        diesel::update(other).set(packages::current_version_id.eq(version.0)).execute(conn).await?;
        Ok(())
    }

    pub async fn soft_delete(conn: &mut Conn, id: PackageId) -> Result<()> {
        diesel::update(packages::table.find(id.0)).set(packages::deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }
}
