//! One LISTEN connection for the whole process, fanned out by job, and by user.

use super::tail::Tail;
use crate::{db::Db, jobs::reconciler::Hints};
use futures::{StreamExt, stream};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_util::sync::CancellationToken;
use wire::{JobId, UserId};

/// State changes of jobs.
const JOBS: &str = "hone_jobs";
/// New rows in the event log.
const EVENTS: &str = "hone_job_events";
/// New notifications of a user.
const NOTIFICATIONS: &str = "hone_notifications";
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_secs(1);
/// A silent connection is checked this often.
const PROBE: Duration = Duration::from_secs(30);

/// Tells readers of a job's log, or of a user's notifications, that there is more.
#[derive(Debug)]
pub struct Hub {
    slow_client: Duration,
    jobs: Wakers<JobId>,
    users: Wakers<UserId>,
    tails: Mutex<HashMap<(UserId, JobId), Weak<Tail>>>,
}

#[derive(Debug)]
struct Wakers<K>(Mutex<HashMap<K, watch::Sender<()>>>);

impl<K: Eq + Hash> Wakers<K> {
    fn subscribe(&self, key: K) -> watch::Receiver<()> {
        let mut all = self.all();
        all.retain(|_, sender| !sender.is_closed());
        all.entry(key).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    fn wake(&self, key: &K) {
        if let Some(sender) = self.all().get(key) {
            sender.send_replace(());
        }
    }

    fn wake_all(&self) {
        for sender in self.all().values() {
            sender.send_replace(());
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<K, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    #[must_use]
    pub fn new(slow_client: Duration) -> Self {
        Self { slow_client, jobs: Wakers(Mutex::default()), users: Wakers(Mutex::default()), tails: Mutex::default() }
    }

    /// A client that takes nothing for this long is dropped.
    #[must_use]
    pub const fn slow_client(&self) -> Duration {
        self.slow_client
    }

    /// Changes whenever the job's log may have grown.
    #[must_use]
    pub fn subscribe(&self, job: JobId) -> watch::Receiver<()> {
        self.jobs.subscribe(job)
    }

    /// Changes whenever the user may have new notifications.
    #[must_use]
    pub fn subscribe_user(&self, user: UserId) -> watch::Receiver<()> {
        self.users.subscribe(user)
    }

    /// What all who watch this job share. `user` may see it.
    #[must_use]
    pub fn tail(self: &Arc<Self>, db: &Db, user: UserId, job: JobId) -> Arc<Tail> {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tails.get(&(user, job)).and_then(Weak::upgrade) {
            return tail;
        }
        tails.retain(|_, tail| tail.strong_count() > 0);
        let tail = Tail::start(db.clone(), Arc::clone(self), user, job);
        tails.insert((user, job), Arc::downgrade(&tail));
        tail
    }

    fn wake_all(&self) {
        self.jobs.wake_all();
        self.users.wake_all();
    }
}

/// Listens until `stop`, reconnecting as long as it takes.
pub async fn listen(db: Db, hub: Arc<Hub>, hints: Arc<Hints>, stop: CancellationToken) {
    loop {
        let result = tokio::select! {
            result = connection(&db, &hub, &hints) => result,
            () = stop.cancelled() => return,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "lost the connection for notifications; polling until it is back");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn connection(db: &Db, hub: &Hub, hints: &Hints) -> Result<(), tokio_postgres::Error> {
    let (client, mut connection) = db.postgres().connect(NoTls).await?;
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let listen = format!("LISTEN {JOBS}; LISTEN {EVENTS}; LISTEN {NOTIFICATIONS}");
    let mut ready = std::pin::pin!(client.batch_execute(&listen));
    let mut listening = false;
    loop {
        tokio::select! {
            done = &mut ready, if !listening => {
                done?;
                listening = true;
                // Whatever happened while nobody listened.
                hub.wake_all();
                hints.all();
            }
            message = messages.next() => match message {
                Some(Ok(AsyncMessage::Notification(n))) => {
                    if n.channel() == NOTIFICATIONS {
                        let _ = n.payload().parse().map(|user| hub.users.wake(&user));
                        continue;
                    }
                    let Ok(job) = n.payload().parse() else { continue };
                    hub.jobs.wake(&job);
                    if n.channel() == JOBS {
                        hints.job(job);
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = tokio::time::sleep(PROBE), if listening => {
                // Fails, or never comes back, when the other side is gone without a word.
                let probe = client.batch_execute("SELECT 1");
                let mut probe = std::pin::pin!(probe);
                let deadline = tokio::time::sleep(Duration::from_secs(10));
                let mut deadline = std::pin::pin!(deadline);
                loop {
                    tokio::select! {
                        done = &mut probe => { done?; break }
                        message = messages.next() => match message {
                            Some(Ok(_)) => { hub.wake_all(); hints.all(); }
                            Some(Err(error)) => return Err(error),
                            None => return Ok(()),
                        },
                        () = &mut deadline => return Ok(()),
                    }
                }
            }
        }
    }
}
