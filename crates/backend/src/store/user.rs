//! Users.

use super::page::PageQuery;
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::users,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{
    account::{Role, UserView},
    ids::UserId,
    problem::Code,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = users, check_for_backend(diesel::pg::Pg))]
pub struct User {
    pub id: Uuid,
    pub name: String,
    pub email: Option<String>,
    role: String,
    pub issuer: Option<String>,
    pub created_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
}

impl From<User> for UserView {
    fn from(row: User) -> Self {
        let role = row.role();
        Self {
            id: UserId(row.id),
            name: row.name,
            email: row.email,
            role,
            issuer: row.issuer,
            created_at: row.created_at,
        }
    }
}

/// What may be changed; `None` stays.
#[derive(Debug, Clone, Default, AsChangeset)]
#[diesel(table_name = users)]
pub struct UserChange {
    pub name: Option<String>,
    /// `Some(None)` removes it.
    pub email: Option<Option<String>>,
    pub role: Option<&'static str>,
}

impl UserChange {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.name.is_none() && self.email.is_none() && self.role.is_none()
    }
}

impl User {
    #[must_use]
    pub fn role(&self) -> Role {
        if self.role == Role::Admin.as_str() { Role::Admin } else { Role::User }
    }

    pub async fn insert(conn: &mut Conn, name: &str, email: Option<&str>, role: Role) -> Result<Self> {
        let values = (
            users::id.eq(UserId::random().0),
            users::name.eq(name),
            users::email.eq(email),
            users::role.eq(role.as_str()),
        );
        let insert = diesel::insert_into(users::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    pub async fn find(conn: &mut Conn, id: UserId) -> Result<Self> {
        let live = users::table.find(id.0).filter(users::deleted_at.is_null());
        let row = live.select(Self::as_select()).first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no user {id}")))
    }

    /// Newest first. One row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = users::table.filter(users::deleted_at.is_null()).select(Self::as_select()).into_boxed();
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(users::created_at.lt(at).or(users::created_at.eq(at).and(users::id.lt(id))));
        }
        let rows = rows.order((users::created_at.desc(), users::id.desc())).limit(query.limit()? + 1);
        Ok(rows.load(conn).await?)
    }

    pub async fn change(conn: &mut Conn, id: UserId, change: UserChange) -> Result<Self> {
        let row = Self::find(conn, id).await?;
        if change.is_empty() {
            return Ok(row);
        }
        let update = diesel::update(users::table.find(id.0)).set(change);
        Ok(update.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Its keys stop with the next request; what it owns stays.
    pub async fn soft_delete(conn: &mut Conn, id: UserId) -> Result<()> {
        Self::find(conn, id).await?;
        diesel::update(users::table.find(id.0)).set(users::deleted_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }
}
