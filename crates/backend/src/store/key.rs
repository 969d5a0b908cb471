//! API keys. Only their SHA-256 is stored.

use super::{page::PageQuery, unsigned};
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::api_keys as keys,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;
use wire::{
    account::{KeyView, Scope},
    ids::{KeyId, UserId},
    problem::Code,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = keys, check_for_backend(diesel::pg::Pg))]
pub struct Key {
    pub id: Uuid,
    pub user_id: Uuid,
    pub name: String,
    pub prefix: String,
    pub scopes: Vec<String>,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

impl From<Key> for KeyView {
    fn from(row: Key) -> Self {
        Self {
            id: KeyId(row.id),
            user_id: UserId(row.user_id),
            name: row.name,
            prefix: row.prefix,
            scopes: scopes(&row.scopes),
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        }
    }
}

/// Scopes of a row. A name this version does not know grants nothing.
#[must_use]
pub fn scopes(names: &[String]) -> Vec<Scope> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// A key to store.
#[derive(Debug)]
pub struct NewKey {
    pub name: String,
    /// First characters, for lists.
    pub prefix: String,
    pub hash: Vec<u8>,
    pub scopes: Vec<Scope>,
    pub expires_at: Option<DateTime<Utc>>,
}

impl Key {
    pub async fn insert(conn: &mut Conn, user: UserId, new: NewKey) -> Result<Self> {
        let values = (
            keys::id.eq(KeyId::random().0),
            keys::user_id.eq(user.0),
            keys::name.eq(new.name),
            keys::prefix.eq(new.prefix),
            keys::key_hash.eq(new.hash),
            keys::scopes.eq(new.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>()),
            keys::expires_at.eq(new.expires_at),
        );
        let insert = diesel::insert_into(keys::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// How many keys of the tenant still work.
    pub async fn live(conn: &mut Conn) -> Result<u64> {
        let unended = keys::expires_at.is_null().or(keys::expires_at.gt(Some(Utc::now())));
        let live = keys::table.filter(keys::revoked_at.is_null()).filter(unended);
        Ok(unsigned(live.count().get_result(conn).await?))
    }

    pub async fn find(conn: &mut Conn, id: KeyId) -> Result<Self> {
        let row = keys::table.find(id.0).select(Self::as_select()).first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no key {id}; `GET /api/keys` lists yours")))
    }

    /// Newest first, revoked ones too. One row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = keys::table.select(Self::as_select()).into_boxed();
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(keys::created_at.le(at).and(keys::created_at.lt(at).or(keys::id.lt(id))));
        }
        let rows = rows.order((keys::created_at.desc(), keys::id.desc())).limit(query.limit()? + 1);
        Ok(rows.load(conn).await?)
    }

    pub async fn rename(conn: &mut Conn, id: KeyId, name: &str) -> Result<Self> {
        Self::find(conn, id).await?;
        let update = diesel::update(keys::table.find(id.0)).set(keys::name.eq(name));
        Ok(update.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Stops the key for good. Repeating it changes nothing.
    pub async fn revoke(conn: &mut Conn, id: KeyId) -> Result<()> {
        Self::find(conn, id).await?;
        let live = keys::table.find(id.0).filter(keys::revoked_at.is_null());
        diesel::update(live).set(keys::revoked_at.eq(Utc::now())).execute(conn).await?;
        Ok(())
    }
}
