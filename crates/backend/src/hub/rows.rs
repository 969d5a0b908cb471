//! Pulls. A user asks and cancels as tenant; the worker acts as system.

use crate::{
    audit,
    db::Conn,
    error::{Error, Result},
    schema::model_pulls as pulls,
    store::{Name, page::PageQuery, signed, unsigned},
};
use chrono::{DateTime, Utc};
use diesel::{
    prelude::*,
    sql_types::{Double, Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::time::Duration;
use uuid::Uuid;
use wire::{
    UserId,
    hub::{PullStatus, PullView},
    ids::PullId,
    problem::Code,
};

/// How long a worker may be silent before another one takes its pull over.
pub const CLAIM: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Queryable, Selectable, QueryableByName)]
#[diesel(table_name = pulls, check_for_backend(diesel::pg::Pg))]
pub struct Pull {
    pub id: Uuid,
    pub user_id: Uuid,
    pub repo: String,
    pub revision: String,
    pub commit_hash: Option<String>,
    pub name: String,
    pub status: Name<PullStatus>,
    pub files_total: i32,
    pub files_done: i32,
    pub bytes_total: i64,
    pub bytes_done: i64,
    pub failures: i32,
    pub error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl From<Pull> for PullView {
    fn from(row: Pull) -> Self {
        let count = |n: i32| u32::try_from(n).unwrap_or_default();
        Self {
            id: PullId(row.id),
            repo: row.repo,
            revision: row.revision,
            commit: row.commit_hash,
            name: row.name,
            status: row.status.0,
            files_total: count(row.files_total),
            files_done: count(row.files_done),
            bytes_total: unsigned(row.bytes_total),
            bytes_done: unsigned(row.bytes_done),
            error: row.error,
            created_at: row.created_at,
            finished_at: row.finished_at,
        }
    }
}

impl Pull {
    #[must_use]
    pub const fn id(&self) -> PullId {
        PullId(self.id)
    }

    #[must_use]
    pub const fn owner(&self) -> UserId {
        UserId(self.user_id)
    }

    /// A new pull, or the one of the same that is under way.
    pub async fn ensure(
        conn: &mut Conn,
        user: UserId,
        repo: &str,
        revision: &str,
        name: &str,
        limit: i64,
    ) -> Result<Self> {
        let open = || pulls::table.filter(pulls::status.eq_any([PullStatus::Queued, PullStatus::Running].map(Name)));
        let same = || {
            open()
                .filter(pulls::repo.eq(repo))
                .filter(pulls::revision.eq(revision))
                .filter(pulls::name.eq(name))
                .select(Self::as_select())
        };
        if let Some(row) = same().first::<Self>(conn).await.optional()? {
            audit::about(row.id);
            return Ok(row);
        }
        if open().count().get_result::<i64>(conn).await? >= limit {
            let detail = format!("{limit} models are being pulled for you, which is the limit; wait for one of them");
            return Err(Error::refused(Code::Overloaded, detail));
        }
        let id = PullId::random();
        audit::about(id);
        let values = (
            pulls::id.eq(id.0),
            pulls::user_id.eq(user.0),
            pulls::repo.eq(repo),
            pulls::revision.eq(revision),
            pulls::name.eq(name),
        );
        let insert = diesel::insert_into(pulls::table).values(values).on_conflict_do_nothing();
        match insert.returning(Self::as_returning()).get_result(conn).await.optional()? {
            Some(row) => Ok(row),
            // Another request was faster.
            None => Ok(same().first(conn).await?),
        }
    }

    pub async fn find(conn: &mut Conn, id: PullId) -> Result<Self> {
        let row = pulls::table.find(id.0).select(Self::as_select()).first(conn).await.optional()?;
        row.ok_or_else(|| Error::refused(Code::NotFound, format!("no pull {id}; `GET /api/models/pulls` lists yours")))
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = pulls::table.into_boxed();
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(pulls::created_at.le(at).and(pulls::created_at.lt(at).or(pulls::id.lt(id))));
        }
        let rows = rows.order((pulls::created_at.desc(), pulls::id.desc())).limit(query.limit()? + 1);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    /// Ends a pull that is not over.
    pub async fn end(conn: &mut Conn, id: PullId, status: PullStatus, error: Option<String>) -> Result<Self> {
        let open = pulls::table
            .filter(pulls::id.eq(id.0))
            .filter(pulls::status.eq_any([PullStatus::Queued, PullStatus::Running].map(Name)));
        let set = (pulls::status.eq(Name(status)), pulls::error.eq(error), pulls::finished_at.eq(Utc::now()));
        diesel::update(open).set(set).execute(conn).await?;
        Self::find(conn, id).await
    }

    /// The oldest pull that nobody works on, for this worker.
    pub async fn claim(conn: &mut Conn, me: Uuid) -> Result<Option<Self>> {
        let row = diesel::sql_query(
            "UPDATE model_pulls SET status = 'running', claimed_by = $1,
                 claimed_until = clock_timestamp() + make_interval(secs => $2)
             WHERE id = (SELECT id FROM model_pulls
                 WHERE status IN ('queued', 'running') AND next_try_at <= clock_timestamp()
                     AND (claimed_until IS NULL OR claimed_until < clock_timestamp())
                 ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING *",
        )
        .bind::<SqlUuid, _>(me)
        .bind::<Double, _>(CLAIM.as_secs_f64());
        Ok(row.get_result(conn).await.optional()?)
    }

    /// Keeps the claim; false when the pull is over or another worker's.
    pub async fn beat(conn: &mut Conn, id: PullId, me: Uuid) -> Result<bool> {
        let kept = diesel::sql_query(
            "UPDATE model_pulls SET claimed_until = clock_timestamp() + make_interval(secs => $3)
             WHERE id = $1 AND claimed_by = $2 AND status = 'running'",
        )
        .bind::<SqlUuid, _>(id.0)
        .bind::<SqlUuid, _>(me)
        .bind::<Double, _>(CLAIM.as_secs_f64())
        .execute(conn)
        .await?;
        Ok(kept == 1)
    }

    pub async fn pin(conn: &mut Conn, id: PullId, commit: &str) -> Result<()> {
        diesel::update(pulls::table.find(id.0)).set(pulls::commit_hash.eq(commit)).execute(conn).await?;
        Ok(())
    }

    /// Files and bytes that are there. Progress forgives the failures before it.
    pub async fn progress(conn: &mut Conn, id: PullId, done: Progress) -> Result<()> {
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let set = (
            pulls::files_total.eq(count(done.files_total)),
            pulls::files_done.eq(count(done.files_done)),
            pulls::bytes_total.eq(signed(done.bytes_total)),
            pulls::bytes_done.eq(signed(done.bytes_done)),
        );
        let this = pulls::table.find(id.0);
        diesel::update(this.filter(pulls::bytes_done.lt(signed(done.bytes_done))))
            .set((pulls::failures.eq(0), pulls::error.eq(None::<String>)))
            .execute(conn)
            .await?;
        diesel::update(this).set(set).execute(conn).await?;
        Ok(())
    }

    /// Gives it back after a failure that may pass.
    pub async fn postpone(conn: &mut Conn, id: PullId, wait: Duration, error: &str) -> Result<()> {
        diesel::sql_query(
            "UPDATE model_pulls SET status = 'queued', failures = failures + 1, error = $2, claimed_until = NULL,
                 next_try_at = clock_timestamp() + make_interval(secs => $3)
             WHERE id = $1 AND status = 'running'",
        )
        .bind::<SqlUuid, _>(id.0)
        .bind::<Text, _>(error)
        .bind::<Double, _>(wait.as_secs_f64())
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub files_total: usize,
    pub files_done: usize,
    pub bytes_total: u64,
    pub bytes_done: u64,
}
