//! Stage, train, upload: the part of an attempt that can fail, be stopped, or succeed.

use super::{RunConfig, config::checkpoint_step, observer::EngineObserver};
use crate::{
    cache::{Cache, human},
    control::{Deadline, Signal, Switch},
    engine::{self, Outcome, Setup, TrainError},
    gateway::Gateway,
    progress::{Transfer, show_progress},
    spool::Spool,
    stage::{Item, Stager},
    upload::{Durable, Submitter, Uploader, store_manifest},
};
use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::oneshot;
use wire::{
    EventKind,
    event::{Level, Phase, StopReason, Summary},
    job::FailureCode,
    layout,
    storage::FileRef,
};

/// How long a cancelled engine may take to notice.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last checkpoint of a failed attempt may take to be stored.
const LAST_CHECKPOINT: Duration = Duration::from_secs(60);

/// How an attempt ended that did not fail.
#[derive(Debug)]
pub enum End {
    Finished { manifest: Vec<FileRef>, summary: Summary },
    Stopped { reason: StopReason, step: u64, checkpoint: Option<String> },
    Fenced,
}

#[derive(Debug)]
pub struct Attempt {
    pub config: Arc<RunConfig>,
    pub gateway: Gateway,
    pub spool: Spool,
    pub switch: Switch,
    pub deadline: Deadline,
    /// The checkpoint it goes on from, once staged.
    pub resumed: OnceLock<Durable>,
}

impl Attempt {
    /// # Errors
    /// Whatever ends an attempt as failed.
    pub async fn run(self, uploader: &Uploader, submitter: Submitter) -> Result<End, TrainError> {
        let setup = tokio::select! {
            setup = self.stage() => setup?,
            signal = self.switch.raised(Signal::Preempt) => return Ok(self.stopped(signal, None, uploader)),
        };
        let result = tokio::select! {
            result = self.train(setup, submitter.clone()) => result,
            () = self.out_of_patience() => {
                return Ok(self.stopped(self.switch.signal(), None, uploader));
            }
        };
        match result {
            Ok(Outcome::Finished { summary, artifacts }) => self.publish(&artifacts, summary, uploader).await,
            Ok(Outcome::Stopped { reason: StopReason::Cancelled, step, .. }) => {
                Ok(self.stopped(Signal::Cancel, Some(step), uploader))
            }
            // Stopped before the first step: the checkpoint it would continue from is in storage already.
            Ok(Outcome::Stopped { checkpoint, .. }) if checkpoint.as_ref() == Some(&self.resume_dir()) => {
                Ok(self.stopped(self.switch.signal(), None, uploader))
            }
            Ok(Outcome::Stopped { step, checkpoint, .. }) => {
                if let Some(dir) = checkpoint {
                    submitter.submit(step, &dir);
                }
                self.wait_for_uploads(uploader, Duration::MAX).await;
                Ok(self.stopped(self.switch.signal(), Some(step), uploader))
            }
            Err(error) => {
                self.wait_for_uploads(uploader, LAST_CHECKPOINT).await;
                Err(error)
            }
        }
    }

    fn phase(&self, phase: Phase, message: impl Into<String>) {
        let kind = EventKind::Phase { phase, message: message.into() };
        super::observer::log(&kind);
        self.spool.push(kind);
    }

    fn resume_dir(&self) -> PathBuf {
        self.config.attempt_dir().join("resume")
    }

    /// Brings model, data and checkpoint to this machine.
    ///
    /// # Errors
    /// A device that cannot be had, storage that stayed unreachable, or a file that is not what was promised.
    pub async fn stage(&self) -> Result<Setup, TrainError> {
        let (config, spec) = (&self.config, &self.config.spec);
        let place = config.device.place()?;
        let dir = config.attempt_dir();
        let cache = Cache::open(config.scratch.join("cache"), config.cache_bytes)?;
        let stager = Stager { gateway: self.gateway.clone(), cache };

        let model_dir = dir.join("model");
        let mut items = Vec::new();
        for file in &spec.model.files {
            let key = format!("{}{}", spec.model.prefix, file.path);
            let file_ref = FileRef { key, size: file.size, sha256: file.sha256.clone() };
            items.push(Item::below(&model_dir, &file.path, file_ref)?);
        }
        self.transfer(&stager, Phase::StagingModel, &spec.model.name, &items).await?;

        let (train, validation) = (dir.join("data/train"), dir.join("data/validation"));
        items = vec![Item { file: spec.dataset.train.clone(), target: train.clone() }];
        items.extend(spec.dataset.validation.clone().map(|file| Item { file, target: validation.clone() }));
        self.transfer(&stager, Phase::StagingData, &spec.dataset.name, &items).await?;

        let mut adapter = None;
        if let Some(from) = &spec.adapter {
            let target = dir.join("adapter");
            let items: Vec<Item> = from
                .files
                .iter()
                .map(|file| {
                    let name = file.key.strip_prefix(&from.prefix).unwrap_or_default();
                    Item::below(&target, name, file.clone())
                })
                .collect::<Result<_, _>>()?;
            self.transfer(&stager, Phase::StagingModel, &format!("adapter of job {}", from.job_id), &items).await?;
            adapter = Some(target);
        }

        let resume = match &spec.resume_from {
            Some(prefix) => self.stage_checkpoint(&stager, prefix).await?,
            None => None,
        };
        Ok(Setup {
            config: spec.config.clone(),
            model_dir,
            model_name: spec.model.name.clone(),
            model_revision: spec.model.revision.clone(),
            format: spec.dataset.format,
            train,
            validation: spec.dataset.validation.is_some().then_some(validation),
            adapter,
            work_dir: dir.join("work"),
            resume,
            threads: config.threads,
            place,
        })
    }

    /// Brings the checkpoint in `prefix`, or the newest earlier one that is whole, and says which. `None`: none is.
    async fn stage_checkpoint(&self, stager: &Stager, prefix: &str) -> Result<Option<PathBuf>, TrainError> {
        let mut next = Some(Durable { step: self.config.resume_step().unwrap_or(u64::MAX), prefix: prefix.to_owned() });
        let mut earlier: Option<Vec<Durable>> = None;
        let target = self.resume_dir();
        while let Some(checkpoint) = next {
            let error = match self.bring_checkpoint(stager, &checkpoint, &target).await {
                Ok(()) => {
                    if earlier.is_some() {
                        self.spool.push(super::started(&self.config, Some(checkpoint.step)));
                    }
                    // Nothing reads it before the staging is over.
                    let _ = self.resumed.set(checkpoint);
                    return Ok(Some(target));
                }
                Err(error) => error,
            };
            if !matches!(error.code, FailureCode::ChecksumMismatch | FailureCode::ArtifactMissing) {
                return Err(error);
            }
            let mut known = match earlier.take() {
                Some(known) => known,
                None => self.checkpoints_before(checkpoint.step).await?,
            };
            next = known.pop();
            earlier = Some(known);
            let going_on = next.as_ref().map_or_else(
                || "there is no earlier one, so training starts from the beginning".to_owned(),
                |c| format!("going on from the checkpoint of step {}", c.step),
            );
            let message = format!("a checkpoint cannot be used, {going_on}: {error}");
            tracing::warn!("{message}");
            self.spool.push(EventKind::Log { level: Level::Warn, message });
            // Whatever arrived of it.
            let _ = std::fs::remove_dir_all(&target);
        }
        self.spool.push(super::started(&self.config, None));
        Ok(None)
    }

    async fn bring_checkpoint(&self, stager: &Stager, from: &Durable, target: &Path) -> Result<(), TrainError> {
        let items = stager.checkpoint_items(&from.prefix, target).await?;
        let what = match from.step {
            u64::MAX => from.prefix.clone(),
            step => format!("checkpoint of step {step}"),
        };
        self.transfer(stager, Phase::StagingModel, &what, &items).await
    }

    /// Complete checkpoints of all attempts of this job before `step`, oldest first.
    async fn checkpoints_before(&self, step: u64) -> Result<Vec<Durable>, TrainError> {
        let spec = &self.config.spec;
        let keys = self.gateway.keys(&layout::job_prefix(spec.user_id, spec.job_id)).await?;
        let complete = keys.iter().filter_map(|key| {
            let prefix = key.strip_suffix(layout::MANIFEST)?;
            let found = checkpoint_step(prefix)?;
            (found < step).then(|| Durable { step: found, prefix: prefix.to_owned() })
        });
        let mut complete: Vec<Durable> = complete.collect();
        complete.sort_by(|a, b| (a.step, &a.prefix).cmp(&(b.step, &b.prefix)));
        Ok(complete)
    }

    async fn transfer(&self, stager: &Stager, phase: Phase, what: &str, items: &[Item]) -> Result<(), TrainError> {
        let size = human(items.iter().map(|i| i.file.size).sum());
        let files = if items.len() == 1 { "1 file".to_owned() } else { format!("{} files", items.len()) };
        self.phase(phase, format!("{what}: {files}, {size}"));
        let transfer = Transfer::default();
        tokio::select! {
            result = stager.stage(items, &transfer) => result,
            never = show_progress(&transfer, |p| self.phase(phase, format!("{what}: {p}"))) => match never {},
        }
    }

    /// Runs the engine on a thread of its own. A panic there is a failure of the job, not of this process.
    async fn train(&self, setup: Setup, uploads: Submitter) -> Result<Outcome, TrainError> {
        let mut observer =
            EngineObserver { spool: self.spool.clone(), uploads, switch: self.switch.clone(), logged: None };
        let (send, receive) = oneshot::channel();
        std::thread::Builder::new()
            .name("engine".into())
            .stack_size(16 << 20)
            .spawn(move || {
                let work = std::panic::AssertUnwindSafe(|| engine::train(&setup, &mut observer));
                let result = std::panic::catch_unwind(work).unwrap_or_else(|panic| Err(panicked(&*panic)));
                // Nobody listens when the attempt was given up.
                let _ = send.send(result);
            })
            .map_err(|e| TrainError::internal(format!("cannot start the training thread: {e}")).caused_by(e))?;
        receive.await.unwrap_or_else(|_| Err(TrainError::internal("the training thread ended without a result")))
    }

    /// Returns when the engine was asked to stop and did not in time.
    async fn out_of_patience(&self) {
        let cancelled = async {
            self.switch.raised(Signal::Cancel).await;
            tokio::time::sleep(CANCEL_PATIENCE).await;
        };
        tokio::select! {
            () = cancelled => {}
            () = self.work_deadline() => {}
        }
    }

    /// Returns when, after SIGTERM, only the time for the last reports is left.
    async fn work_deadline(&self) {
        self.deadline.near(self.config.grace / 5).await;
    }

    async fn wait_for_uploads(&self, uploader: &Uploader, at_most: Duration) {
        tokio::select! {
            _ = tokio::time::timeout(at_most, uploader.settle()) => {}
            () = self.work_deadline() => tracing::warn!("no time left to store the last checkpoint"),
            _ = self.switch.raised(Signal::Cancel) => {}
        }
    }

    async fn publish(&self, artifacts: &Path, summary: Summary, uploader: &Uploader) -> Result<End, TrainError> {
        self.phase(Phase::Uploading, "artifacts");
        let transfer = Transfer::default();
        let upload = async {
            let prefix = self.config.folder(layout::ARTIFACTS);
            let manifest = self.gateway.put_dir(&prefix, artifacts, &transfer).await?;
            store_manifest(&self.gateway, &prefix, manifest.clone(), None, &transfer).await?;
            // Nobody needs the last checkpoint of a finished run, but a half-stored one must not be left.
            uploader.settle().await;
            Ok(End::Finished { manifest, summary })
        };
        tokio::select! {
            end = upload => end,
            never = show_progress(&transfer, |p| self.phase(Phase::Uploading, format!("artifacts: {p}"))) => match never {},
            () = self.work_deadline() => Ok(self.stopped(Signal::Preempt, None, uploader)),
            _ = self.switch.raised(Signal::Cancel) => Ok(self.stopped(Signal::Cancel, None, uploader)),
        }
    }

    /// The end of an attempt stopped at `step` (of the last checkpoint, when unknown).
    fn stopped(&self, signal: Signal, step: Option<u64>, uploader: &Uploader) -> End {
        let Some(reason) = signal.stop_reason() else { return End::Fenced };
        let durable = uploader.durable().or_else(|| match self.resumed.get() {
            Some(resumed) => Some(resumed.clone()),
            // Stopped before it was staged.
            None => Some(Durable { step: self.config.resume_step()?, prefix: self.config.spec.resume_from.clone()? }),
        });
        let step = step.or(durable.as_ref().map(|d| d.step)).unwrap_or(0);
        let checkpoint = if reason == StopReason::Cancelled { None } else { durable.map(|d| d.prefix) };
        End::Stopped { reason, step, checkpoint }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> TrainError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    TrainError::internal(format!(
        "the training engine crashed: {text}; this is a defect, please report it with the log"
    ))
}
