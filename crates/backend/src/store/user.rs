//! Users.

use super::page::PageQuery;
use crate::{
    auth::BOOTSTRAP_USER,
    db::Conn,
    error::{Error, Result},
    oidc::Identity,
    schema::users,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use wire::{
    account::{Role, UserView},
    ids::UserId,
    problem::Code,
};

/// Longest name that is taken from an identity provider, in characters.
const MAX_NAME_CHARS: usize = 80;

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

/// What a new user may be called: the name, and the name made unique. The user of the bootstrap key has its own.
fn names(identity: &Identity) -> Vec<String> {
    let plain: String = identity.name.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
    let digest = hex::encode(Sha256::digest(format!("{}\n{}", identity.issuer, identity.subject)));
    let unique = |digits: usize| format!("{plain}-{}", digest.chars().take(digits).collect::<String>());
    let mut names = vec![plain.clone(), unique(8), unique(64)];
    names.retain(|name| name != BOOTSTRAP_USER && !name.is_empty());
    names
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

    /// The user of an identity, by issuer and subject and nothing else; made at first sight. Address and role follow
    /// what the provider says.
    pub async fn sign_in(conn: &mut Conn, identity: &Identity) -> Result<Self> {
        if let Some(row) = Self::of(conn, identity).await? {
            let role = identity.admin.map(|admin| if admin { Role::Admin } else { Role::User });
            let change = UserChange {
                name: None,
                email: (identity.email.is_some() && identity.email != row.email).then(|| identity.email.clone()),
                role: role.filter(|role| *role != row.role()).map(Role::as_str),
            };
            if change.is_empty() || row.deleted_at.is_some() {
                return Ok(row);
            }
            let update = diesel::update(users::table.find(row.id)).set(change);
            return Ok(update.returning(Self::as_returning()).get_result(conn).await?);
        }
        let role = if identity.admin == Some(true) { Role::Admin } else { Role::User };
        for name in names(identity) {
            let values = (
                users::id.eq(UserId::random().0),
                users::name.eq(name),
                users::email.eq(&identity.email),
                users::role.eq(role.as_str()),
                users::issuer.eq(&identity.issuer),
                users::subject.eq(&identity.subject),
            );
            // The name is taken, or another request of the same user was first.
            let insert = diesel::insert_into(users::table).values(values).on_conflict_do_nothing();
            if let Some(row) = insert.returning(Self::as_returning()).get_result(conn).await.optional()? {
                tracing::info!(user.id = %row.id, "a user signed in for the first time");
                return Ok(row);
            }
            if let Some(row) = Self::of(conn, identity).await? {
                return Ok(row);
            }
        }
        Err(Error::defect("every name for the user is taken"))
    }

    async fn of(conn: &mut Conn, identity: &Identity) -> Result<Option<Self>> {
        let of = users::table.filter(users::issuer.eq(&identity.issuer)).filter(users::subject.eq(&identity.subject));
        Ok(of.select(Self::as_select()).first(conn).await.optional()?)
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
            rows = rows.filter(users::created_at.le(at).and(users::created_at.lt(at).or(users::id.lt(id))));
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
