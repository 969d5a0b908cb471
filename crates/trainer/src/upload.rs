//! Checkpoint uploads beside the training: one at a time, the newest waiting one wins.
//!
//! A checkpoint is durable when its `manifest.json` is stored, which is written last; only then the backend hears
//! of it. An older checkpoint of this attempt is removed only when the backend has acknowledged a newer one, its
//! manifest first, so that nobody ever resumes from a half-removed checkpoint. A failed upload never fails training.

use crate::{
    engine::TrainError,
    gateway::{Gateway, files_below},
    progress::{Transfer, tell_trouble},
    spool::Spool,
};
use service::error::chain;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::Instrument;
use wire::{
    EventKind,
    event::Level,
    job::FailureCode,
    layout,
    storage::{FileRef, Manifest},
};

#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// `{output_prefix}checkpoints/`
    pub prefix: String,
    /// Checkpoints of this attempt to keep.
    pub keep: usize,
    /// Where checkpoints wait for their upload.
    pub waiting_dir: PathBuf,
}

#[derive(Debug, Clone)]
struct Waiting {
    step: u64,
    dir: PathBuf,
}

/// A stored checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    pub step: u64,
    pub prefix: String,
}

#[derive(Debug, Default, Clone)]
struct State {
    durable: Option<Durable>,
    /// Highest step whose upload ended, well or not.
    ended: Option<u64>,
}

#[derive(Debug)]
struct Shared {
    config: UploadConfig,
    waiting: Mutex<Option<Waiting>>,
    submitted: watch::Sender<Option<u64>>,
    state: watch::Sender<State>,
}

/// The engine's end: hands checkpoints over without waiting.
#[derive(Debug, Clone)]
pub struct Submitter(Arc<Shared>);

/// The task's end. Dropping it stops the task.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Submitter {
    /// Hands over the checkpoint of `step` in `dir`. Hard links keep its files alive when the engine removes the
    /// directory. Costs a few system calls.
    pub fn submit(&self, step: u64, dir: &Path) {
        if *self.0.submitted.borrow() >= Some(step) {
            return;
        }
        let kept = self.0.config.waiting_dir.join(format!("{step}"));
        let dir = match link_dir(dir, &kept) {
            Ok(()) => kept,
            Err(error) => {
                tracing::warn!(%error, step, "cannot link the checkpoint for its upload; uploading it in place");
                dir.to_owned()
            }
        };
        let replaced = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).replace(Waiting { step, dir });
        if let Some(old) = replaced {
            tracing::info!(step = old.step, "a newer checkpoint overtook this one before its upload");
            self.0.discard(&old);
        }
        self.0.submitted.send_replace(Some(step));
    }
}

impl Shared {
    fn discard(&self, waiting: &Waiting) {
        if waiting.dir.starts_with(&self.config.waiting_dir) {
            // What is left goes with the attempt's directory.
            let _ = fs::remove_dir_all(&waiting.dir);
        }
    }
}

impl Uploader {
    pub fn start(
        config: UploadConfig,
        gateway: Gateway,
        spool: Spool,
        acked: watch::Receiver<Option<u64>>,
    ) -> (Self, Submitter) {
        let shared = Arc::new(Shared {
            config,
            waiting: Mutex::default(),
            submitted: watch::Sender::new(None),
            state: watch::Sender::default(),
        });
        let worker = Worker { shared: Arc::clone(&shared), gateway, spool, acked, stored: Vec::new() };
        let task = tokio::spawn(worker.run().in_current_span());
        (Self { shared: Arc::clone(&shared), task }, Submitter(shared))
    }

    /// The newest durable checkpoint of this attempt.
    #[must_use]
    pub fn durable(&self) -> Option<Durable> {
        self.shared.state.borrow().durable.clone()
    }

    /// Waits until everything submitted so far is stored, or failed to be.
    pub async fn settle(&self) {
        let submitted = *self.shared.submitted.borrow();
        let mut state = self.shared.state.subscribe();
        // Fails only when the worker is gone, and then there is nothing to wait for.
        let _ = state.wait_for(|s| s.ended >= submitted).await;
    }
}

struct Worker {
    shared: Arc<Shared>,
    gateway: Gateway,
    spool: Spool,
    acked: watch::Receiver<Option<u64>>,
    /// Steps in storage, ascending.
    stored: Vec<u64>,
}

impl Worker {
    async fn run(mut self) {
        let mut submitted = self.shared.submitted.subscribe();
        loop {
            let next = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            match next {
                Some(waiting) => {
                    self.upload(&waiting).await;
                    self.shared.discard(&waiting);
                    self.shared.state.send_modify(|s| s.ended = s.ended.max(Some(waiting.step)));
                    self.prune().await;
                }
                None => {
                    let woken = tokio::select! {
                        result = submitted.changed() => result.is_ok(),
                        result = self.acked.changed() => { self.prune().await; result.is_ok() }
                    };
                    if !woken {
                        return;
                    }
                }
            }
        }
    }

    async fn upload(&mut self, waiting: &Waiting) {
        let step = waiting.step;
        let transfer = Transfer::default();
        let stored = tokio::select! {
            stored = store_checkpoint(&self.gateway, &self.shared.config.prefix, waiting, &transfer) => stored,
            never = tell_trouble(&transfer, |why| self.say_retrying(step, why)) => match never {},
        };
        match stored {
            Ok((prefix, size)) => {
                self.stored.push(step);
                self.spool.push(EventKind::Checkpoint { step, prefix: prefix.clone(), size });
                tracing::info!(step, %prefix, size, "checkpoint stored");
                self.shared.state.send_modify(|s| s.durable = Some(Durable { step, prefix }));
            }
            Err(error) => {
                tracing::warn!(step, error = %chain(&error), "the checkpoint could not be stored");
                let message = format!("the checkpoint of step {step} could not be stored, training goes on: {error}");
                self.spool.push(EventKind::Log { level: Level::Warn, message });
            }
        }
    }

    fn say_retrying(&self, step: u64, why: &str) {
        let message =
            format!("storage retrying: the checkpoint of step {step} is not stored yet, training goes on: {why}");
        self.spool.push(EventKind::Log { level: Level::Warn, message });
    }

    /// Removes checkpoints beyond the limit that are older than what the backend knows.
    async fn prune(&mut self) {
        let Some(acked) = *self.acked.borrow_and_update() else { return };
        while self.stored.len() > self.shared.config.keep
            && let Some(step) = self.stored.first().copied().filter(|step| *step < acked)
        {
            let prefix = format!("{}{}", self.shared.config.prefix, layout::checkpoint_dir(step));
            let removed = match self.gateway.delete(&format!("{prefix}{}", layout::MANIFEST)).await {
                Ok(()) => self.gateway.delete_prefix(&prefix).await.map(drop),
                Err(e) => Err(e),
            };
            if let Err(error) = removed {
                tracing::warn!(step, error = %chain(&error), "an old checkpoint could not be removed from storage");
            }
            self.stored.remove(0);
        }
    }
}

async fn store_checkpoint(
    gateway: &Gateway,
    base: &str,
    waiting: &Waiting,
    told: &Transfer,
) -> Result<(String, u64), TrainError> {
    let prefix = format!("{base}{}", layout::checkpoint_dir(waiting.step));
    let files = gateway.put_dir(&prefix, &waiting.dir, told).await?;
    let size = files.iter().map(|f| f.size).sum();
    store_manifest(gateway, &prefix, files, Some(waiting.step), told).await?;
    Ok((prefix, size))
}

/// Stores the manifest that makes the set of `files` below `prefix` complete.
///
/// # Errors
/// Storage stayed unreachable.
pub async fn store_manifest(
    gateway: &Gateway,
    prefix: &str,
    files: Vec<FileRef>,
    step: Option<u64>,
    told: &Transfer,
) -> Result<(), TrainError> {
    let key = format!("{prefix}{}", layout::MANIFEST);
    if files.iter().any(|f| f.key == key) {
        return Err(TrainError::new(FailureCode::Internal, format!("{key} is the manifest's own name")));
    }
    // Plain data with string keys; serialising cannot fail.
    let body = serde_json::to_vec_pretty(&Manifest { files, step }).unwrap_or_default();
    gateway.put_bytes_retrying(&key, body.into(), told).await.map(drop)
}

/// Hard links of every file below `from`, in the same shape below `to`.
fn link_dir(from: &Path, to: &Path) -> io::Result<()> {
    for relative in files_below(from)? {
        let target = to.join(&relative);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::hard_link(from.join(&relative), target)?;
    }
    Ok(())
}
