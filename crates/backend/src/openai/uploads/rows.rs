//! The tables of uploads and their parts.

use crate::{
    audit,
    db::Conn,
    error::Result,
    schema::{openai_upload_parts as parts, openai_uploads as uploads},
    store::{Name, signed, unsigned},
};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::{ids::UserId, layout};

/// Stored states; `completing` looks like `pending` from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Completing,
    Completed,
    Cancelled,
    Expired,
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = uploads, check_for_backend(diesel::pg::Pg))]
pub struct UploadRow {
    pub id: Uuid,
    pub user_id: Uuid,
    pub filename: String,
    pub size: i64,
    pub status: Name<State>,
    pub lifetime: Option<i64>,
    pub file_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

impl UploadRow {
    pub async fn insert(
        conn: &mut Conn,
        user: UserId,
        filename: &str,
        size: u64,
        lifetime: Option<TimeDelta>,
        open_for: TimeDelta,
    ) -> Result<Self> {
        let id = Uuid::new_v4();
        audit::about(id);
        let values = (
            uploads::id.eq(id),
            uploads::user_id.eq(user.0),
            uploads::filename.eq(filename),
            uploads::size.eq(signed(size)),
            uploads::status.eq(Name(State::Pending)),
            uploads::lifetime.eq(lifetime.map(|t| t.num_seconds())),
            uploads::expires_at.eq(Utc::now() + open_for),
        );
        let insert = diesel::insert_into(uploads::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    pub async fn find(conn: &mut Conn, id: Uuid) -> Result<Option<Self>> {
        Ok(uploads::table.find(id).select(Self::as_select()).first(conn).await.optional()?)
    }

    /// False when the upload is in none of the states `from`.
    pub async fn advance(conn: &mut Conn, id: Uuid, from: &[State], to: State) -> Result<bool> {
        let from: Vec<Name<State>> = from.iter().map(|s| Name(*s)).collect();
        let guarded = uploads::table.filter(uploads::id.eq(id)).filter(uploads::status.eq_any(from));
        Ok(diesel::update(guarded).set(uploads::status.eq(Name(to))).execute(conn).await? == 1)
    }

    /// Notes the file that an upload became.
    pub async fn complete(conn: &mut Conn, id: Uuid, file: Uuid) -> Result<Self> {
        let set = (uploads::status.eq(Name(State::Completed)), uploads::file_id.eq(file));
        let update = diesel::update(uploads::table.find(id)).set(set);
        Ok(update.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Uploads of every tenant whose time was over before `deadline`.
    pub async fn overdue(conn: &mut Conn, deadline: DateTime<Utc>) -> Result<Vec<Self>> {
        let open = uploads::status.eq_any([Name(State::Pending), Name(State::Completing)]);
        let rows = uploads::table.filter(open).filter(uploads::expires_at.lt(deadline));
        Ok(rows.select(Self::as_select()).limit(100).load(conn).await?)
    }

    #[must_use]
    pub const fn owner(&self) -> UserId {
        UserId(self.user_id)
    }

    /// As time goes on, also without anybody writing it down.
    #[must_use]
    pub fn state(&self) -> State {
        match self.status.0 {
            State::Pending if self.expires_at <= Utc::now() => State::Expired,
            state => state,
        }
    }

    /// The parts are below it.
    #[must_use]
    pub fn part_prefix(&self) -> String {
        layout::upload_prefix(self.owner(), self.id)
    }

    #[must_use]
    pub fn part_key(&self, part: Uuid) -> String {
        format!("{}{}", self.part_prefix(), part.simple())
    }

    /// Ids and sizes of the parts.
    pub async fn parts(conn: &mut Conn, id: Uuid) -> Result<Vec<(Uuid, u64)>> {
        let rows = parts::table.filter(parts::upload_id.eq(id)).select((parts::id, parts::size));
        let rows: Vec<(Uuid, i64)> = rows.load(conn).await?;
        Ok(rows.into_iter().map(|(id, size)| (id, unsigned(size))).collect())
    }

    /// Notes a part that is in storage.
    pub async fn add_part(&self, conn: &mut Conn, part: Uuid, size: u64) -> Result<DateTime<Utc>> {
        let values = (
            parts::id.eq(part),
            parts::upload_id.eq(self.id),
            parts::user_id.eq(self.user_id),
            parts::size.eq(signed(size)),
        );
        let insert = diesel::insert_into(parts::table).values(values);
        Ok(insert.returning(parts::created_at).get_result(conn).await?)
    }
}
