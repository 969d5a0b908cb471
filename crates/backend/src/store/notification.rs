//! Notifications as the API reads them. They are written by `crate::notifications`.

use super::{Json, Name, page::PageQuery, unsigned};
use crate::{
    db::Conn,
    error::{Error, Result},
    schema::notifications,
};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;
use wire::{
    ids::{JobId, NotificationId},
    notification::{Kind, NotificationView, Severity},
    problem::Code,
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = notifications, check_for_backend(diesel::pg::Pg))]
pub struct Notification {
    pub id: Uuid,
    pub kind: Name<Kind>,
    pub severity: Name<Severity>,
    pub title: String,
    pub body: String,
    pub data: Json<Value>,
    pub job_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub read_at: Option<DateTime<Utc>>,
}

impl From<Notification> for NotificationView {
    fn from(row: Notification) -> Self {
        Self {
            id: NotificationId(row.id),
            kind: row.kind.0,
            severity: row.severity.0,
            title: row.title,
            body: row.body,
            data: row.data.0,
            job_id: row.job_id.map(JobId),
            created_at: row.created_at,
            read_at: row.read_at,
        }
    }
}

impl Notification {
    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery, (unread, kind): (bool, Option<Kind>)) -> Result<Vec<Self>> {
        let mut rows = notifications::table.filter(notifications::deleted_at.is_null()).into_boxed();
        if unread {
            rows = rows.filter(notifications::read_at.is_null());
        }
        if let Some(kind) = kind {
            rows = rows.filter(notifications::kind.eq(kind.as_str()));
        }
        if let Some((at, id)) = query.after::<Uuid>()? {
            let older = notifications::created_at.eq(at).and(notifications::id.lt(id));
            rows = rows.filter(notifications::created_at.le(at)).filter(notifications::created_at.lt(at).or(older));
        }
        let rows = rows.order((notifications::created_at.desc(), notifications::id.desc()));
        Ok(rows.limit(query.limit()? + 1).select(Self::as_select()).load(conn).await?)
    }

    pub async fn unread(conn: &mut Conn) -> Result<u64> {
        let rows =
            notifications::table.filter(notifications::read_at.is_null()).filter(notifications::deleted_at.is_null());
        Ok(unsigned(rows.count().get_result(conn).await?))
    }

    /// Marks one as read; the first time counts.
    pub async fn read(conn: &mut Conn, id: NotificationId) -> Result<Self> {
        let this = notifications::table.filter(notifications::id.eq(id.0)).filter(notifications::deleted_at.is_null());
        let first = diesel::dsl::sql::<diesel::sql_types::Nullable<diesel::sql_types::Timestamptz>>(
            "coalesce(read_at, clock_timestamp())",
        );
        let row = diesel::update(this).set(notifications::read_at.eq(first)).returning(Self::as_returning());
        row.get_result(conn).await.optional()?.ok_or_else(|| missing(id))
    }

    /// Marks all as read; how many were not.
    pub async fn read_all(conn: &mut Conn) -> Result<usize> {
        let these =
            notifications::table.filter(notifications::read_at.is_null()).filter(notifications::deleted_at.is_null());
        Ok(diesel::update(these).set(notifications::read_at.eq(diesel::dsl::now)).execute(conn).await?)
    }

    /// Hides one for good; the same news is not told again.
    pub async fn delete(conn: &mut Conn, id: NotificationId) -> Result<()> {
        let this = notifications::table.filter(notifications::id.eq(id.0)).filter(notifications::deleted_at.is_null());
        let gone = diesel::update(this).set(notifications::deleted_at.eq(diesel::dsl::now)).execute(conn).await?;
        if gone == 0 { Err(missing(id)) } else { Ok(()) }
    }
}

fn missing(id: NotificationId) -> Error {
    Error::refused(Code::NotFound, format!("no notification {id}; `GET /api/notifications` lists yours"))
}
