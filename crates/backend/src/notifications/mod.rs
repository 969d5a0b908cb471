//! What users are told: rows of `notifications`, and with them deliveries to their webhooks.
//!
//! Invariant: news is written in the transaction of what it tells, and the deliveries in the same one: whatever
//! dies, a change that is committed is told, and one that is not is not.

pub mod stream;

use crate::{db::Conn, error::Result};
use diesel::{
    OptionalExtension, QueryableByName,
    sql_types::{Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use serde_json::{Value, json};
use uuid::Uuid;
pub use wire::notification::{Kind, Severity};
use wire::{JobId, UserId};

/// Something to tell a user.
#[derive(Debug, Clone)]
pub struct News {
    pub user: UserId,
    pub kind: Kind,
    pub severity: Severity,
    pub title: String,
    pub body: String,
    /// For programs; the `data` of a webhook's payload.
    pub data: Value,
    pub job: Option<JobId>,
    /// The same key is the same news, which is told once.
    pub key: String,
}

#[derive(Debug, QueryableByName)]
struct Told {
    #[diesel(sql_type = Timestamptz)]
    created_at: chrono::DateTime<chrono::Utc>,
}

impl News {
    /// Tells it, unless it was told before; whether it was new.
    pub async fn raise(&self, conn: &mut Conn) -> Result<bool> {
        let insert = "INSERT INTO notifications (id, user_id, kind, severity, title, body, data, job_id, dedupe_key)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (user_id, dedupe_key) DO NOTHING RETURNING created_at";
        let told: Option<Told> = diesel::sql_query(insert)
            .bind::<SqlUuid, _>(Uuid::now_v7())
            .bind::<SqlUuid, _>(self.user.0)
            .bind::<Text, _>(self.kind.as_str())
            .bind::<Text, _>(self.severity.as_str())
            .bind::<Text, _>(&self.title)
            .bind::<Text, _>(&self.body)
            .bind::<Jsonb, _>(&self.data)
            .bind::<Nullable<SqlUuid>, _>(self.job.map(|job| job.0))
            .bind::<Text, _>(&self.key)
            .get_result(conn)
            .await
            .optional()?;
        let Some(told) = told else { return Ok(false) };
        let payload = json!({"type": self.kind.as_str(), "timestamp": told.created_at, "data": self.data});
        diesel::sql_query(
            "INSERT INTO webhook_deliveries (id, user_id, endpoint_id, event_type, payload)
             SELECT gen_random_uuid(), e.user_id, e.id, $2, $3 FROM webhook_endpoints e
             WHERE e.user_id = $1 AND e.enabled AND e.deleted_at IS NULL AND e.events && ARRAY['*', $2]",
        )
        .bind::<SqlUuid, _>(self.user.0)
        .bind::<Text, _>(self.kind.as_str())
        .bind::<Jsonb, _>(&payload)
        .execute(conn)
        .await?;
        Ok(true)
    }
}
