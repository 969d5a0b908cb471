//! Who did what. Every operation that changes something leaves a row; so does every one that was refused with 403.
//!
//! The guard opens a [`Record`] around the handler. The first transaction inside that writes anything writes the row as
//! well, so that both are there or neither is. What succeeded without writing anything, and what was refused, is written
//! before the reply; when that fails, the reply is an error.

use crate::{
    api::guard::Operation,
    auth::AuthUser,
    db::{Conn, Db},
    error::Result,
    schema::audit_log,
    store::page::PageQuery,
};
use chrono::{DateTime, Utc};
use diesel::{
    prelude::*,
    sql_types::{Bool, Nullable, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use futures::future::Either;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use uuid::Uuid;
use wire::{
    account::{AuditEntry, Outcome},
    ids::UserId,
};

/// Longest resource name that is kept, in characters.
const RESOURCE_CHARS: usize = 200;

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// The row of the request that is being served.
#[derive(Debug)]
pub struct Record {
    actor: UserId,
    key_prefix: Option<String>,
    action: &'static str,
    ip: Option<String>,
    trace_id: Option<String>,
    about: Mutex<About>,
    written: OnceLock<()>,
}

#[derive(Debug, Default, Clone)]
struct About {
    /// The tenant whose thing it is, when it is not the actor's.
    tenant: Option<UserId>,
    resource: Option<String>,
}

impl Record {
    /// `resource` is what the path names.
    #[must_use]
    pub fn new(user: &AuthUser, operation: &Operation, resource: Option<String>, ip: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            actor: user.user_id,
            key_prefix: user.key_prefix.clone(),
            action: operation.id,
            ip,
            trace_id: service::telemetry::current_trace_id(),
            about: Mutex::new(About { tenant: None, resource }),
            written: OnceLock::new(),
        })
    }

    fn about(&self) -> About {
        self.about.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn is_written(&self) -> bool {
        self.written.get().is_some()
    }

    pub(crate) fn committed(&self) {
        // Setting it again changes nothing.
        let _ = self.written.set(());
    }

    /// Writes the row in a transaction of its own.
    pub async fn write(self: &Arc<Self>, db: &Db, outcome: Outcome) -> Result<()> {
        let (this, tenant) = (Arc::clone(self), self.about().tenant.unwrap_or(self.actor));
        db.system(async move |conn| this.insert(conn, tenant, outcome, Whether::Always).await.map(drop)).await?;
        self.committed();
        Ok(())
    }

    /// Whether a row was written.
    async fn insert(&self, conn: &mut Conn, tenant: UserId, outcome: Outcome, whether: Whether) -> Result<bool> {
        let kind = self.action.split_once('_').map_or(self.action, |(_, resource)| resource);
        let resource = self.about().resource.map(|id| id.chars().take(RESOURCE_CHARS).collect::<String>());
        // A transaction has an id once it has written something.
        let insert = diesel::sql_query(
            "INSERT INTO audit_log (user_id, actor_id, actor, key_prefix, action, resource_kind, resource_id, outcome, ip, trace_id)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
             WHERE $11 OR pg_current_xact_id_if_assigned() IS NOT NULL",
        );
        let rows = insert
            .bind::<SqlUuid, _>(tenant.0)
            .bind::<SqlUuid, _>(self.actor.0)
            .bind::<Text, _>(if tenant == self.actor { "user" } else { "admin" })
            .bind::<Nullable<Text>, _>(self.key_prefix.as_deref())
            .bind::<Text, _>(self.action)
            .bind::<Text, _>(kind)
            .bind::<Nullable<Text>, _>(resource)
            .bind::<Text, _>(outcome.as_str())
            .bind::<Nullable<Text>, _>(self.ip.as_deref())
            .bind::<Nullable<Text>, _>(self.trace_id.as_deref())
            .bind::<Bool, _>(whether == Whether::Always)
            .execute(conn)
            .await?;
        Ok(rows > 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whether {
    Always,
    IfWritten,
}

/// Serves a request under its record.
pub async fn watch<F: Future>(record: Arc<Record>, work: F) -> F::Output {
    CURRENT.scope(record, work).await
}

/// Takes the record of the request along into a task of its own.
pub fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match CURRENT.try_with(Arc::clone) {
        Ok(record) => Either::Left(CURRENT.scope(record, work)),
        Err(_) => Either::Right(work),
    }
}

/// Names the thing that the request makes, before the transaction that makes it commits. A name in the path stands.
pub fn about(resource: impl ToString) {
    let note = |record: &Arc<Record>| {
        let mut about = record.about.lock().unwrap_or_else(PoisonError::into_inner);
        about.resource.get_or_insert_with(|| resource.to_string());
    };
    // Background work has no record.
    let _ = CURRENT.try_with(note);
}

/// Says whose thing it is, where that is not the tenant of the transaction.
pub fn concerns(tenant: UserId) {
    let note = |record: &Arc<Record>| {
        record.about.lock().unwrap_or_else(PoisonError::into_inner).tenant = Some(tenant);
    };
    let _ = CURRENT.try_with(note);
}

/// Writes the row of the request into its transaction, when that changes something and no earlier one did.
pub(crate) async fn note(conn: &mut Conn, tenant: Option<UserId>) -> Result<Option<Arc<Record>>> {
    let Some(record) = CURRENT.try_with(Arc::clone).ok().filter(|record| !record.is_written()) else {
        return Ok(None);
    };
    let tenant = tenant.or(record.about().tenant).unwrap_or(record.actor);
    let written = record.insert(conn, tenant, Outcome::Done, Whether::IfWritten).await?;
    Ok(written.then_some(record))
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = audit_log, check_for_backend(diesel::pg::Pg))]
pub struct Row {
    pub id: i64,
    user_id: Uuid,
    actor_id: Option<Uuid>,
    actor: String,
    key_prefix: Option<String>,
    action: String,
    resource_kind: String,
    resource_id: Option<String>,
    outcome: String,
    ip: Option<String>,
    trace_id: Option<String>,
    pub created_at: DateTime<Utc>,
}

impl From<Row> for AuditEntry {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            user_id: UserId(row.user_id),
            actor_id: row.actor_id.map(UserId),
            actor: row.actor,
            key_prefix: row.key_prefix,
            action: row.action,
            resource_kind: row.resource_kind,
            resource_id: row.resource_id,
            outcome: if row.outcome == Outcome::Done.as_str() { Outcome::Done } else { Outcome::Refused },
            ip: row.ip,
            trace_id: row.trace_id,
            created_at: row.created_at,
        }
    }
}

/// Which rows of the log.
#[derive(Debug, Default)]
pub struct Filter {
    pub user: Option<UserId>,
    pub action: Option<String>,
    pub resource: Option<String>,
    pub outcome: Option<Outcome>,
}

/// Newest first. One row more than the page's limit when there are more.
pub async fn list(conn: &mut Conn, query: &PageQuery, filter: Filter) -> Result<Vec<Row>> {
    let mut rows = audit_log::table.select(Row::as_select()).order(audit_log::id.desc()).into_boxed();
    if let Some((_, id)) = query.after::<i64>()? {
        rows = rows.filter(audit_log::id.lt(id));
    }
    if let Some(user) = filter.user {
        rows = rows.filter(audit_log::user_id.eq(user.0));
    }
    if let Some(action) = filter.action {
        rows = rows.filter(audit_log::action.eq(action));
    }
    if let Some(resource) = filter.resource {
        rows = rows.filter(audit_log::resource_id.eq(resource));
    }
    if let Some(outcome) = filter.outcome {
        rows = rows.filter(audit_log::outcome.eq(outcome.as_str()));
    }
    Ok(rows.limit(query.limit()? + 1).load(conn).await?)
}
