//! What the cluster has of one kind: a full list every now and then, and a watch in between.
//!
//! The watch is a hint: it makes changes known sooner. What it misses, because it is dropped, too old (410) or never
//! answered, the next list brings. Whatever follows from an object's absence is looked up again (see `mod.rs`).

use super::cluster::{CallError, Cluster, Result};
use futures::TryStreamExt;
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// Between two tries after a failure.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Entry<K> {
    pub object: K,
    /// It was deleted; this is how it was last.
    pub gone: bool,
}

#[derive(Debug)]
pub struct Store<K> {
    entries: Mutex<Entries<K>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entries<K> {
    by_name: BTreeMap<String, Entry<K>>,
    /// When it last was known to be true.
    fresh: Option<Instant>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        let entries = Entries { by_name: BTreeMap::new(), fresh: None };
        Self { entries: Mutex::new(entries), changed: watch::Sender::new(0) }
    }
}

impl<K> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    fn lock(&self) -> MutexGuard<'_, Entries<K>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<Entry<K>> {
        self.lock().by_name.get(name).cloned()
    }

    /// Every object that `wanted` picks, also deleted ones.
    #[must_use]
    pub fn find(&self, wanted: impl Fn(&K) -> bool) -> Vec<Entry<K>> {
        self.lock().by_name.values().filter(|e| wanted(&e.object)).cloned().collect()
    }

    /// How long ago the API last told how things are.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.lock().fresh.map(|at| at.elapsed())
    }

    /// Notes an object as the API has just shown it.
    pub fn put(&self, object: K) {
        self.note(object, false);
    }

    /// Notes that an object was deleted, which was like this last.
    pub fn put_gone(&self, object: K) {
        self.note(object, true);
    }

    fn note(&self, object: K, gone: bool) {
        let mut entries = self.lock();
        let known = entries.by_name.get(&object.name_any());
        // A reply may be older than what the watch brought meanwhile.
        if known.is_some_and(|known| version(&known.object) > version(&object)) {
            return;
        }
        entries.by_name.insert(object.name_any(), Entry { object, gone });
        drop(entries);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Forgets deleted objects that nobody wants any more.
    pub fn forget(&self, unwanted: impl Fn(&K) -> bool) {
        self.lock().by_name.retain(|_, e| !e.gone || !unwanted(&e.object));
    }

    /// Waits for any change, but not longer than `patience`.
    pub async fn changed(&self, patience: Duration) {
        let mut changes = self.changed.subscribe();
        let _ = tokio::time::timeout(patience, changes.changed()).await;
    }

    /// Lists and watches until the task is dropped.
    pub async fn follow(&self, cluster: Cluster, api: Api<K>, selector: String, resync: Duration) {
        let mut wait = RETRY;
        loop {
            let until = Instant::now() + resync;
            match self.list(&cluster, &api, &selector).await {
                Ok(version) => {
                    wait = RETRY;
                    self.watch(&cluster, &api, &selector, version, until).await;
                }
                Err(error) => {
                    tracing::warn!("cannot list {}: {error}", K::plural(&()));
                    tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>())).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Takes everything over; the version that a watch goes on from.
    async fn list(&self, cluster: &Cluster, api: &Api<K>, selector: &str) -> Result<String> {
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        let (mut listed, mut names) = (Vec::new(), BTreeSet::new());
        let version = loop {
            let page = cluster.call(api.list(&params)).await?;
            listed.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        {
            let mut entries = self.lock();
            for object in listed {
                names.insert(object.name_any());
                entries.by_name.insert(object.name_any(), Entry { object, gone: false });
            }
            for (name, entry) in &mut entries.by_name {
                entry.gone |= !names.contains(name);
            }
            entries.fresh = Some(Instant::now());
        }
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        Ok(version)
    }

    /// Watches from `version` until `until` or until only a list can help.
    async fn watch(&self, cluster: &Cluster, api: &Api<K>, selector: &str, mut version: String, until: Instant) {
        let mut wait = RETRY;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1);
            let params = WatchParams::default().labels(selector).timeout(seconds);
            let stream = match cluster.call(api.watch(&params, &version)).await {
                Ok(stream) => stream,
                Err(error) if is_expired(&error) => return,
                Err(error) => {
                    tracing::debug!("cannot watch {}: {error}", K::plural(&()));
                    tokio::time::sleep(wait.min(left)).await;
                    wait = (wait * 2).min(RETRY_MAX);
                    continue;
                }
            };
            let began = Instant::now();
            let mut stream = pin!(stream);
            loop {
                let left = until.saturating_duration_since(Instant::now());
                // A server that forgets to end a watch must not keep the list away.
                match tokio::time::timeout(left, stream.try_next()).await {
                    Ok(Ok(Some(event))) => match self.take(event) {
                        Some(newer) => version = newer,
                        None => return,
                    },
                    // Ended or dropped: go on from the last event.
                    Ok(Ok(None) | Err(_)) => break,
                    Err(_) => return,
                }
            }
            if began.elapsed() < RETRY {
                tokio::time::sleep(RETRY.min(left)).await;
            }
        }
    }

    /// Takes an event over; its version. None: only a list can help.
    fn take(&self, event: WatchEvent<K>) -> Option<String> {
        self.lock().fresh = Some(Instant::now());
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version();
                self.note(object, false);
                version
            }
            WatchEvent::Deleted(object) => {
                let version = object.resource_version();
                self.note(object, true);
                version
            }
            WatchEvent::Bookmark(mark) => Some(mark.metadata.resource_version),
            WatchEvent::Error(status) => {
                tracing::debug!("the watch of {} ended: {status}", K::plural(&()));
                None
            }
        }
    }
}

/// Versions of one kind are numbers that grow; others cannot be compared.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}

/// The version is older than what the API remembers.
fn is_expired(error: &CallError) -> bool {
    error.code() == Some(410)
}
