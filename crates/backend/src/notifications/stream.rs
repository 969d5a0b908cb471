//! A user's notifications as a live stream, each once, in order; a client that comes back names the last one it got.
//!
//! Invariant: a place in the stream is given once and never to an earlier row than the places before it, so whoever has
//! read up to a place has missed nothing before it. See `place`.

use crate::{
    db::{Conn, Db},
    error::{Error, Result},
    jobs::stream::{POLL, hub::Hub},
    schema::notifications,
    store::notification::Notification,
};
use diesel::{
    prelude::*,
    sql_types::{Text, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::sync::Arc;
use tokio::sync::mpsc;
use wire::{UserId, notification::StreamedNotification};

/// Notifications read at once.
const PAGE: i64 = 100;
/// Between the reader and the connection.
const BUFFER: usize = 16;

/// What a connection passes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// The stream begins behind this place: what a client names that has got nothing yet.
    Begin(i64),
    News(Box<StreamedNotification>),
}

/// Gives places to rows that have none yet. The lock makes places become visible in their order; rows that become visible
/// later come behind.
async fn place(conn: &mut Conn, user: UserId) -> Result<()> {
    let waiting = notifications::table.filter(notifications::position.is_null());
    if !diesel::select(diesel::dsl::exists(waiting)).get_result(conn).await? {
        return Ok(());
    }
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('hone_notifications:' || $1, 0))";
    diesel::sql_query(lock).bind::<Text, _>(user.to_string()).execute(conn).await?;
    let give = "
        UPDATE notifications n SET position = last.place + new.rank
        FROM (SELECT id, row_number() OVER (ORDER BY created_at, id) AS rank
              FROM notifications WHERE user_id = $1 AND position IS NULL) new,
             (SELECT coalesce(max(position), 0) AS place FROM notifications WHERE user_id = $1) last
        WHERE n.id = new.id";
    diesel::sql_query(give).bind::<SqlUuid, _>(user.0).execute(conn).await?;
    Ok(())
}

/// The last place there is.
async fn end(conn: &mut Conn, user: UserId) -> Result<i64> {
    place(conn, user).await?;
    let last = notifications::table.select(diesel::dsl::max(notifications::position));
    Ok(last.first::<Option<i64>>(conn).await?.unwrap_or_default())
}

/// Reading gives places, which is nothing that the audit log of the request should have.
async fn apart<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.map_err(Error::defect)?
}

/// Notifications behind `after` in their order, at most `limit`; deleted ones are left out.
pub async fn list(db: &Db, user: UserId, after: i64, limit: i64) -> Result<Vec<StreamedNotification>> {
    let db = db.clone();
    apart(async move { db.tenant(user, async move |conn| page(conn, user, after, limit).await).await }).await
}

async fn page(conn: &mut Conn, user: UserId, after: i64, limit: i64) -> Result<Vec<StreamedNotification>> {
    place(conn, user).await?;
    let rows = notifications::table
        .filter(notifications::position.gt(after))
        .filter(notifications::deleted_at.is_null())
        .order(notifications::position)
        .limit(limit)
        .select((notifications::position.assume_not_null(), Notification::as_select()));
    let rows: Vec<(i64, Notification)> = rows.load(conn).await?;
    let item = |(position, row): (i64, Notification)| StreamedNotification { position, notification: row.into() };
    Ok(rows.into_iter().map(item).collect())
}

/// Starts reading behind `after`, or behind everything there is now. Dropping the receiver ends it.
pub async fn open(db: &Db, hub: Arc<Hub>, user: UserId, after: Option<i64>) -> Result<mpsc::Receiver<Item>> {
    let last = match after {
        Some(after) => after,
        None => {
            let db = db.clone();
            apart(async move { db.tenant(user, async move |conn| end(conn, user).await).await }).await?
        }
    };
    let (sender, receiver) = mpsc::channel(BUFFER);
    // There is room for it.
    let _ = sender.try_send(Item::Begin(last));
    tokio::spawn(Feed { db: db.clone(), hub, user, last, sender }.run());
    Ok(receiver)
}

struct Feed {
    db: Db,
    hub: Arc<Hub>,
    user: UserId,
    last: i64,
    sender: mpsc::Sender<Item>,
}

impl Feed {
    async fn run(mut self) {
        let mut more = self.hub.subscribe_user(self.user);
        metrics::gauge!("live_notification_streams").increment(1.0);
        loop {
            more.borrow_and_update();
            match self.catch_up().await {
                Ok(true) => {}
                Ok(false) => break,
                // The database is away; the client keeps its connection and misses nothing.
                Err(error) => {
                    tracing::debug!(user.id = %self.user, error = %service::error::chain(&error), "cannot read notifications");
                }
            }
            tokio::select! {
                _ = more.changed() => {}
                () = tokio::time::sleep(POLL) => {}
                () = self.sender.closed() => break,
            }
        }
        metrics::gauge!("live_notification_streams").decrement(1.0);
    }

    /// Sends what there is; false when the client is gone or too slow: it comes back with the last id it got.
    async fn catch_up(&mut self) -> Result<bool> {
        loop {
            let (user, after) = (self.user, self.last);
            let items = self.db.tenant(user, async move |conn| page(conn, user, after, PAGE).await).await?;
            let full = i64::try_from(items.len()).is_ok_and(|n| n == PAGE);
            for item in items {
                self.last = item.position;
                let sent = self.sender.send(Item::News(Box::new(item)));
                match tokio::time::timeout(self.hub.slow_client(), sent).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(false),
                    Err(_) => {
                        metrics::counter!("slow_streams_dropped_total").increment(1);
                        tracing::info!(user.id = %self.user, "dropped a client that does not read its notifications");
                        return Ok(false);
                    }
                }
            }
            if !full {
                return Ok(true);
            }
        }
    }
}
