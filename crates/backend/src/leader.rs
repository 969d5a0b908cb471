//! Which of several backends leads: it sweeps, and it judges leases. All of them serve, report and dispatch.
//!
//! Leading is a lease on a row, by the database's clock, and held for less than that by our own: the time counts from
//! before the request. So a leader that was frozen finds out before it acts that its time is over, and one that died is
//! followed by another when its lease ends. Whatever a former leader had begun is guarded by state, attempt and epoch.

use crate::{
    db::{Conn, Db},
    error::Result,
};
use diesel::{
    QueryableByName,
    sql_types::{Bool, Double, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Cheap to clone; clones share what is known.
#[derive(Debug, Clone)]
pub struct Leadership {
    me: Uuid,
    lease: Duration,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Leadership {
    /// `lease`: how long after its last word a leader still counts as one.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self { me: Uuid::new_v4(), lease, until: Arc::default() }
    }

    /// Whether this backend leads now.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    /// Takes the lead when nobody has it and keeps it, until `stop`; then gives it up.
    pub async fn run(self, db: Db, stop: CancellationToken) {
        loop {
            self.renew(&db).await;
            tokio::select! {
                () = tokio::time::sleep(self.lease / 3) => {}
                () = stop.cancelled() => break,
            }
        }
        let me = self.me;
        let resign = async move |conn: &mut Conn| {
            let query = diesel::sql_query("DELETE FROM leaders WHERE holder = $1").bind::<SqlUuid, _>(me);
            Ok(query.execute(conn).await?)
        };
        // Without it the others wait for the end of the lease.
        if let Err(error) = db.system(resign).await {
            tracing::debug!(error = %service::error::chain(&error), "cannot hand the lead over");
        }
    }

    async fn renew(&self, db: &Db) {
        let (asked, led) = (Instant::now(), self.leads());
        let (me, lease) = (self.me, self.lease);
        match db.system(async move |conn| take(conn, me, lease).await).await {
            Ok(leads) => {
                let until = leads.then(|| asked + lease);
                *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
                if leads && !led {
                    tracing::info!("this backend leads now");
                }
            }
            // What we have is ours until it ends.
            Err(error) => tracing::debug!(error = %service::error::chain(&error), "cannot ask who leads"),
        }
        metrics::gauge!("backend_leader").set(f64::from(u8::from(self.leads())));
    }
}

/// Whether `me` leads for `lease` from now on.
async fn take(conn: &mut Conn, me: Uuid, lease: Duration) -> Result<bool> {
    #[derive(QueryableByName)]
    struct Taken {
        #[diesel(sql_type = Bool)]
        mine: bool,
    }
    let query = "
        INSERT INTO leaders (singleton, holder, expires_at)
        VALUES (true, $1, clock_timestamp() + make_interval(secs => $2))
        ON CONFLICT (singleton) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
        WHERE leaders.holder = excluded.holder OR leaders.expires_at <= clock_timestamp()
        RETURNING holder = $1 AS mine";
    let rows: Vec<Taken> =
        diesel::sql_query(query).bind::<SqlUuid, _>(me).bind::<Double, _>(lease.as_secs_f64()).load(conn).await?;
    Ok(rows.iter().any(|row| row.mine))
}
