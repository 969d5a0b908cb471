//! Webhooks and their deliveries.

use super::{Json, Name, page::PageQuery};
use crate::{
    audit,
    db::Conn,
    error::{Error, Result},
    schema::{webhook_deliveries as deliveries, webhook_endpoints as endpoints},
};
use chrono::{DateTime, Utc};
use diesel::{prelude::*, sql_types};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;
use wire::{
    UserId,
    ids::{DeliveryId, WebhookId},
    problem::Code,
    webhook::{DeliveryStatus, DeliveryView, WebhookView},
};

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = endpoints, check_for_backend(diesel::pg::Pg))]
pub struct Webhook {
    pub id: Uuid,
    pub url: String,
    pub description: String,
    pub events: Vec<String>,
    pub enabled: bool,
    pub failures: i32,
    pub disabled_reason: Option<String>,
    pub last_delivery_at: Option<DateTime<Utc>>,
    pub previous_secret_until: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl From<Webhook> for WebhookView {
    fn from(row: Webhook) -> Self {
        Self {
            id: WebhookId(row.id),
            url: row.url,
            description: row.description,
            events: row.events,
            enabled: row.enabled,
            disabled_reason: row.disabled_reason,
            failures: u32::try_from(row.failures).unwrap_or_default(),
            last_delivery_at: row.last_delivery_at,
            previous_secret_until: row.previous_secret_until.filter(|until| *until > Utc::now()),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// What of a webhook is changed.
#[derive(Debug, Clone, Default, AsChangeset)]
#[diesel(table_name = endpoints)]
pub struct WebhookChange {
    pub url: Option<String>,
    pub description: Option<String>,
    pub events: Option<Vec<String>>,
    pub enabled: Option<bool>,
    pub disabled_reason: Option<Option<String>>,
    pub failures: Option<i32>,
    pub deleted_at: Option<DateTime<Utc>>,
}

fn missing(id: WebhookId) -> Error {
    Error::refused(Code::NotFound, format!("no webhook {id}; `GET /api/webhooks` lists yours"))
}

impl Webhook {
    pub async fn insert(conn: &mut Conn, user: UserId, secret: &[u8], change: WebhookChange) -> Result<Self> {
        let id = WebhookId::random();
        audit::about(id);
        let values = (
            endpoints::id.eq(id.0),
            endpoints::user_id.eq(user.0),
            endpoints::secret.eq(secret),
            endpoints::url.eq(change.url.unwrap_or_default()),
            endpoints::description.eq(change.description.unwrap_or_default()),
            endpoints::events.eq(change.events.unwrap_or_default()),
        );
        let insert = diesel::insert_into(endpoints::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    pub async fn find(conn: &mut Conn, id: WebhookId) -> Result<Self> {
        let live = endpoints::table.filter(endpoints::id.eq(id.0)).filter(endpoints::deleted_at.is_null());
        live.select(Self::as_select()).first(conn).await.optional()?.ok_or_else(|| missing(id))
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(conn: &mut Conn, query: &PageQuery) -> Result<Vec<Self>> {
        let mut rows = endpoints::table.filter(endpoints::deleted_at.is_null()).into_boxed();
        if let Some((at, id)) = query.after::<Uuid>()? {
            rows = rows.filter(endpoints::created_at.le(at).and(endpoints::created_at.lt(at).or(endpoints::id.lt(id))));
        }
        let rows = rows.order((endpoints::created_at.desc(), endpoints::id.desc())).limit(query.limit()? + 1);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    pub async fn change(conn: &mut Conn, id: WebhookId, change: WebhookChange) -> Result<Self> {
        let live = endpoints::table.filter(endpoints::id.eq(id.0)).filter(endpoints::deleted_at.is_null());
        let changed = diesel::update(live).set(change).returning(Self::as_returning()).get_result(conn).await;
        changed.optional()?.ok_or_else(|| missing(id))
    }

    /// Makes `secret` the one that signs; the one before signs too for `overlap` seconds.
    pub async fn rotate(conn: &mut Conn, id: WebhookId, secret: &[u8], overlap: f64) -> Result<Self> {
        let query = "UPDATE webhook_endpoints SET previous_secret = secret, secret = $2,
             previous_secret_until = clock_timestamp() + make_interval(secs => $3)
             WHERE id = $1 AND deleted_at IS NULL";
        let rotated = diesel::sql_query(query)
            .bind::<sql_types::Uuid, _>(id.0)
            .bind::<sql_types::Binary, _>(secret)
            .bind::<sql_types::Double, _>(overlap)
            .execute(conn)
            .await?;
        if rotated == 0 { Err(missing(id)) } else { Self::find(conn, id).await }
    }
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = deliveries, check_for_backend(diesel::pg::Pg))]
pub struct Delivery {
    pub id: Uuid,
    pub event_type: String,
    pub payload: Json<Value>,
    pub status: Name<DeliveryStatus>,
    pub attempts: i32,
    pub next_attempt_at: DateTime<Utc>,
    pub response_status: Option<i32>,
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub delivered_at: Option<DateTime<Utc>>,
}

impl From<Delivery> for DeliveryView {
    fn from(row: Delivery) -> Self {
        let pending = row.status.0 == DeliveryStatus::Pending;
        Self {
            id: DeliveryId(row.id),
            event_type: row.event_type,
            payload: row.payload.0,
            status: row.status.0,
            attempts: u32::try_from(row.attempts).unwrap_or_default(),
            next_attempt_at: Some(row.next_attempt_at).filter(|_| pending),
            response_status: row.response_status.and_then(|s| u16::try_from(s).ok()),
            last_error: row.last_error,
            created_at: row.created_at,
            delivered_at: row.delivered_at,
        }
    }
}

impl Delivery {
    pub async fn insert(
        conn: &mut Conn,
        user: UserId,
        endpoint: WebhookId,
        (event_type, payload): (&str, Value),
    ) -> Result<Self> {
        let values = (
            deliveries::id.eq(Uuid::now_v7()),
            deliveries::user_id.eq(user.0),
            deliveries::endpoint_id.eq(endpoint.0),
            deliveries::event_type.eq(event_type),
            deliveries::payload.eq(payload),
        );
        let insert = diesel::insert_into(deliveries::table).values(values);
        Ok(insert.returning(Self::as_returning()).get_result(conn).await?)
    }

    /// Newest first; one row more than the page's limit when there are more.
    pub async fn list(
        conn: &mut Conn,
        endpoint: WebhookId,
        query: &PageQuery,
        status: Option<DeliveryStatus>,
    ) -> Result<Vec<Self>> {
        let mut rows = deliveries::table.filter(deliveries::endpoint_id.eq(endpoint.0)).into_boxed();
        if let Some(status) = status {
            rows = rows.filter(deliveries::status.eq(Name(status)));
        }
        if let Some((at, id)) = query.after::<Uuid>()? {
            let older = deliveries::created_at.eq(at).and(deliveries::id.lt(id));
            rows = rows.filter(deliveries::created_at.le(at)).filter(deliveries::created_at.lt(at).or(older));
        }
        let rows = rows.order((deliveries::created_at.desc(), deliveries::id.desc())).limit(query.limit()? + 1);
        Ok(rows.select(Self::as_select()).load(conn).await?)
    }

    /// Sends it again, with the whole schedule ahead.
    pub async fn again(conn: &mut Conn, endpoint: WebhookId, id: DeliveryId) -> Result<Self> {
        let this = deliveries::table.filter(deliveries::id.eq(id.0)).filter(deliveries::endpoint_id.eq(endpoint.0));
        let set = (
            deliveries::status.eq(Name(DeliveryStatus::Pending)),
            deliveries::attempts.eq(0),
            deliveries::next_attempt_at.eq(diesel::dsl::now),
            deliveries::last_error.eq(None::<String>),
            deliveries::delivered_at.eq(None::<DateTime<Utc>>),
        );
        let row = diesel::update(this).set(set).returning(Self::as_returning()).get_result(conn).await.optional()?;
        let lost = || format!("no delivery {id} of this webhook; `GET /api/webhooks/{endpoint}/deliveries` lists them");
        row.ok_or_else(|| Error::refused(Code::NotFound, lost()))
    }

    /// Gives up what waits for an endpoint that is sent nothing any more.
    pub async fn give_up(conn: &mut Conn, endpoint: WebhookId, why: &str) -> Result<()> {
        let waiting = deliveries::table
            .filter(deliveries::endpoint_id.eq(endpoint.0))
            .filter(deliveries::status.eq(Name(DeliveryStatus::Pending)));
        let set = (deliveries::status.eq(Name(DeliveryStatus::Failed)), deliveries::last_error.eq(why));
        diesel::update(waiting).set(set).execute(conn).await?;
        Ok(())
    }

    /// Forgets what is over for a month.
    pub async fn forget_old(conn: &mut Conn) -> Result<()> {
        let old =
            "DELETE FROM webhook_deliveries WHERE status <> 'pending' AND created_at < now() - interval '30 days'";
        diesel::sql_query(old).execute(conn).await?;
        Ok(())
    }
}
