//! `Idempotency-Key`: one request, one effect.
//!
//! The key is claimed in the transaction that has the effect. A second request with the same key waits on
//! the unique index until that transaction ends: then it finds the reply, or the claim is its own.

use super::Json;
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::idempotency_keys as keys,
};
use chrono::{TimeDelta, Utc};
use diesel::{prelude::*, sql_types::Text};
use diesel_async::RunQueryDsl;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Debug;
use uuid::Uuid;
use wire::{ids::UserId, problem::Code};

const MAX_LENGTH: usize = 200;

/// A key with the digest of the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    key: String,
    body_hash: Vec<u8>,
}

impl IdempotencyKey {
    /// `scope` names the operation, so that one key cannot be used for two kinds of request.
    pub fn new<B: Serialize>(key: &str, scope: &str, body: &B) -> Result<Self> {
        if key.is_empty() || key.len() > MAX_LENGTH {
            let detail = format!("Idempotency-Key: must have 1 to {MAX_LENGTH} characters");
            return Err(Error::refused(Code::Invalid, detail));
        }
        // Object keys are sorted by serde_json, so equal documents have equal digests.
        let body = serde_json::to_vec(&serde_json::to_value(body)?)?;
        let digest = Sha256::new().chain_update(scope).chain_update([0]).chain_update(body);
        Ok(Self { key: key.to_owned(), body_hash: digest.finalize().to_vec() })
    }

    /// For a request without a key: the next one of the same sender with the same body is another request, unless its
    /// client says that it sends it again.
    pub fn of_content<B: Serialize>(sender: Uuid, scope: &str, body: &B) -> Result<Self> {
        let body_hash = Self::new("-", scope, body)?.body_hash;
        Ok(Self { key: format!("sdk:{sender}:{}", hex::encode(&body_hash)), body_hash })
    }

    /// Waits for another request of this key that is being served, and makes later ones wait for ours.
    pub async fn lock(&self, conn: &mut Conn) -> Result<()> {
        let lock = diesel::sql_query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))");
        lock.bind::<Text, _>(&self.key).execute(conn).await?;
        Ok(())
    }

    /// Locks, and gives the reply to the same request within the last minute.
    pub async fn recent<R>(&self, conn: &mut Conn, user: UserId) -> Result<Option<R>>
    where
        R: DeserializeOwned + Debug + Send + 'static,
    {
        self.lock(conn).await?;
        let minute_ago = Utc::now() - TimeDelta::seconds(60);
        let row = keys::table.find((user.0, &self.key)).filter(keys::created_at.gt(minute_ago)).select(keys::reply);
        let reply: Option<Option<Json<R>>> = row.first(conn).await.optional()?;
        Ok(reply.flatten().map(|r| r.0))
    }

    /// Stores the reply in place of an earlier one.
    pub async fn keep_latest<R: Serialize>(&self, conn: &mut Conn, user: UserId, reply: &R) -> Result<()> {
        let reply = Json(serde_json::to_value(reply)?);
        let set = (keys::status.eq(201), keys::reply.eq(reply), keys::created_at.eq(Utc::now()));
        let values = (keys::user_id.eq(user.0), keys::key.eq(&self.key), keys::body_hash.eq(&self.body_hash));
        let insert = diesel::insert_into(keys::table).values((values, set.clone()));
        insert.on_conflict((keys::user_id, keys::key)).do_update().set(set).execute(conn).await?;
        Ok(())
    }

    /// The stored reply when the same request was served before; `None` when it is ours to serve.
    pub async fn claim<R>(&self, conn: &mut Conn, user: UserId) -> Result<Option<R>>
    where
        R: DeserializeOwned + Debug + Send + 'static,
    {
        let values = (keys::user_id.eq(user.0), keys::key.eq(&self.key), keys::body_hash.eq(&self.body_hash));
        let insert = diesel::insert_into(keys::table).values(values).on_conflict((keys::user_id, keys::key));
        if insert.do_nothing().execute(conn).await? == 1 {
            return Ok(None);
        }
        let row = keys::table.find((user.0, &self.key)).select((keys::body_hash, keys::reply));
        // The reply to another request need not be an `R`.
        let (body_hash, reply): (Vec<u8>, Option<Json<Value>>) = row.first(conn).await?;
        if body_hash != self.body_hash {
            let detail = "this Idempotency-Key was used for a request with another body; use a new key";
            return Err(Error::refused(Code::Conflict, detail));
        }
        let reply = reply.ok_or_else(|| Error::defect("an idempotency key was committed without its reply"))?;
        Ok(Some(serde_json::from_value(reply.0)?))
    }

    /// Stores the reply to replay.
    pub async fn keep<R: Serialize>(&self, conn: &mut Conn, user: UserId, reply: &R) -> Result<()> {
        let reply = Json(serde_json::to_value(reply)?);
        diesel::update(keys::table.find((user.0, &self.key)))
            .set((keys::status.eq(201), keys::reply.eq(reply)))
            .execute(conn)
            .await?;
        Ok(())
    }
}

/// [`IdempotencyKey::claim`] of a key that a request may have.
pub async fn claim<R>(conn: &mut Conn, user: UserId, key: Option<&IdempotencyKey>) -> Result<Option<R>>
where
    R: DeserializeOwned + Debug + Send + 'static,
{
    match key {
        Some(key) => key.claim(conn, user).await,
        None => Ok(None),
    }
}

/// [`IdempotencyKey::keep`] of a key that a request may have.
pub async fn keep<R: Serialize + Sync>(
    conn: &mut Conn,
    user: UserId,
    key: Option<&IdempotencyKey>,
    reply: &R,
) -> Result<()> {
    match key {
        Some(key) => key.keep(conn, user, reply).await,
        None => Ok(()),
    }
}

/// Forgets keys older than a day.
pub async fn forget_old(conn: &mut Conn) -> Result<usize> {
    let day_ago = Utc::now() - TimeDelta::days(1);
    Ok(diesel::delete(keys::table.filter(keys::created_at.lt(day_ago))).execute(conn).await?)
}
