//! Live progress of a job until it ends: a bar on a terminal, a line now and then elsewhere, JSON lines
//! with `--json`.

use crate::{
    api::{Api, short},
    context::Context,
    error::{CliError, CliResult, Exit},
    stream::{Heard, Live},
    ui::{self, Style, Ui, paint, paint_err},
};
use indicatif::ProgressBar;
use std::{
    io::IsTerminal,
    path::Path,
    time::{Duration, Instant},
};
use wire::{
    EventKind, JobState, JobView,
    event::{Level, Phase, StreamBody, StreamMessage, metric},
    job::ArtifactView,
};

/// Without a terminal: a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Weight of the newest step in the smoothed step time.
const SMOOTHING: f64 = 0.1;

/// Follows `job` to its end. Ctrl-C ends the watching, not the job.
pub async fn follow(context: &Context, api: &Api, job: JobView) -> CliResult {
    let (url, key) = context.connection()?;
    let mut live = Live::new(api.clone(), url, key, job.id);
    let mut view = Progress::new(context.ui, &job);
    if job.state.is_terminal() {
        return finish(context, api, job).await;
    }
    let ended = tokio::select! {
        ended = watch(&mut live, &mut view, api, context.ui) => ended,
        _ = tokio::signal::ctrl_c() => {
            view.clear();
            let id = short(job.id);
            return Err(CliError::new(Exit::Interrupted, "stopped watching; the job goes on")
                .hint(format!("`hone jobs show {id} --follow` watches again, `hone jobs cancel {id}` stops it")));
        }
    };
    view.clear();
    ended?;
    finish(context, api, api.job(job.id).await?).await
}

async fn watch(live: &mut Live, view: &mut Progress, api: &Api, ui: Ui) -> CliResult {
    loop {
        match live.next().await? {
            Heard::Lost(why) => view.lost(&why),
            Heard::Message(message) => {
                if ui.json {
                    ui.json_line(&message);
                }
                view.apply(&message);
                match &message.body {
                    StreamBody::State { state, .. } if state.is_terminal() => return Ok(()),
                    // The log also tells of pauses long ago.
                    StreamBody::State { state: JobState::Paused, .. } if is_paused(api, &message).await? => {
                        return Ok(());
                    }
                    StreamBody::State { .. } | StreamBody::Event { .. } => {}
                }
            }
        }
    }
}

async fn is_paused(api: &Api, message: &StreamMessage) -> CliResult<bool> {
    Ok(api.job(message.job_id).await?.state == JobState::Paused)
}

/// What is shown while the job runs.
struct Progress {
    ui: Ui,
    bar: ProgressBar,
    /// Lines instead of a bar.
    plain: bool,
    step: u64,
    total: Option<u64>,
    loss: Option<f64>,
    eval_loss: Option<f64>,
    tokens_per_second: Option<f64>,
    step_seconds: Option<f64>,
    phase: String,
    attempt: u32,
    last_line: Option<(Instant, u64)>,
    lost: bool,
}

impl Progress {
    fn new(ui: Ui, job: &JobView) -> Self {
        let bar = ui.bar(0, "{prefix:<12!} {bar:26.cyan/dim} {msg}");
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let mut new = Self {
            ui,
            bar,
            plain: !ui.json && !ui.quiet && !std::io::stderr().is_terminal(),
            step: job.progress.step,
            total: job.progress.total_steps,
            loss: job.progress.loss,
            eval_loss: job.progress.eval_loss,
            tokens_per_second: job.progress.tokens_per_second,
            step_seconds: None,
            phase: job.state.to_string(),
            attempt: job.attempt,
            last_line: None,
            lost: false,
        };
        new.draw();
        new
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }

    fn lost(&mut self, why: &str) {
        if !self.lost {
            self.say(&format!("{} contact lost ({why}); trying again", paint_err("!", Style::Yellow)));
        }
        self.lost = true;
        self.phase = "reconnecting".into();
        self.draw();
    }

    /// A line that stays, above the bar.
    fn say(&self, text: &str) {
        if self.ui.json {
            return;
        }
        if self.bar.is_hidden() { self.ui.note(text) } else { self.bar.println(text) }
    }

    fn apply(&mut self, message: &StreamMessage) {
        if std::mem::take(&mut self.lost) {
            self.phase = "running".into();
        }
        if message.attempt > self.attempt && self.attempt > 0 {
            self.say(&format!("attempt {}", message.attempt));
        }
        self.attempt = self.attempt.max(message.attempt);
        match &message.body {
            StreamBody::State { state, failure, .. } => {
                self.phase = state.to_string();
                if let (Some(failure), JobState::RetryWait) = (failure, state) {
                    self.say(&format!("{} {}; it will be tried again", paint_err("!", Style::Yellow), failure.message));
                }
            }
            StreamBody::Event { event } => self.event(&event.kind),
        }
        self.draw();
    }

    fn event(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Started { device, threads, resumed_from_step, .. } => {
                let resumed = resumed_from_step.map(|s| format!(", resumed at step {s}")).unwrap_or_default();
                self.say(&format!("training on {device} with {threads} threads{resumed}"));
                self.step = resumed_from_step.unwrap_or(self.step);
            }
            EventKind::Plan {
                total_steps,
                train_rows,
                eval_rows,
                train_tokens,
                truncated_rows,
                trainable_parameters,
                total_parameters,
                ..
            } => {
                self.total = Some(*total_steps);
                let cut = if *truncated_rows > 0 {
                    format!(", {truncated_rows} rows cut to the sequence length")
                } else {
                    String::new()
                };
                self.say(&format!(
                    "{total_steps} steps over {train_rows} rows ({} tokens), {eval_rows} held out{cut}; {} of {} parameters are trained",
                    ui::count(*train_tokens), ui::count(*trainable_parameters), ui::count(*total_parameters),
                ));
            }
            EventKind::Phase { phase, .. } => self.phase = phase_name(*phase).into(),
            EventKind::Metrics { step, values, .. } => self.metrics(*step, values),
            EventKind::Progress { step, total_steps, .. } => {
                self.step = self.step.max(*step);
                self.total = total_steps.or(self.total);
            }
            EventKind::Log { level: Level::Warn | Level::Error, message } => {
                self.say(&format!("{} {message}", paint_err("!", Style::Yellow)));
            }
            EventKind::Checkpoint { .. }
            | EventKind::Log { .. }
            | EventKind::Finished { .. }
            | EventKind::Failed { .. }
            | EventKind::Stopped { .. } => {}
        }
    }

    fn metrics(&mut self, step: u64, values: &std::collections::BTreeMap<String, f64>) {
        let value = |name: &str| values.get(name).copied();
        self.step = self.step.max(step);
        self.loss = value(metric::TRAIN_LOSS).or(self.loss);
        self.tokens_per_second = value(metric::TOKENS_PER_SECOND).or(self.tokens_per_second);
        if let Some(seconds) = value(metric::STEP_SECONDS) {
            let smooth = |old: f64| old * (1.0 - SMOOTHING) + seconds * SMOOTHING;
            self.step_seconds = Some(self.step_seconds.map_or(seconds, smooth));
            self.phase = "training".into();
        }
        if let Some(loss) = value(metric::EVAL_LOSS) {
            let before = self.eval_loss.map(|old| format!(" (before: {old:.4})")).unwrap_or_default();
            self.say(&format!(
                "step {step:>6}   validation loss {}{before}",
                paint_err(&format!("{loss:.4}"), Style::Bold)
            ));
            self.eval_loss = Some(loss);
        }
    }

    fn draw(&mut self) {
        let due = self
            .last_line
            .is_none_or(|(t, step)| step != self.step && (t.elapsed() >= LINE_EVERY || Some(self.step) == self.total));
        if self.plain && due && self.step > 0 {
            self.last_line = Some((Instant::now(), self.step));
            self.ui.note(self.line());
        }
        if !self.bar.is_hidden() {
            self.bar.set_prefix(self.phase.clone());
            self.bar.set_length(self.total.unwrap_or(0).max(1));
            self.bar.set_position(self.step);
            self.bar.set_message(self.line());
        }
    }

    fn line(&self) -> String {
        let total = self.total.map(|t| format!("/{t}")).unwrap_or_default();
        let mut parts = vec![format!("step {}{total}", self.step)];
        parts.extend(self.loss.map(|l| format!("loss {l:.4}")));
        parts.extend(self.tokens_per_second.and_then(whole).map(|t| format!("{} tok/s", ui::count(t))));
        parts.extend(self.eta().map(|eta| format!("ETA {}", ui::duration(eta))));
        parts.join("  ")
    }

    fn eta(&self) -> Option<Duration> {
        let left = u32::try_from(self.total?.checked_sub(self.step)?).ok()?;
        let seconds = self.step_seconds? * f64::from(left);
        (left > 0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }
}

#[expect(clippy::as_conversions, reason = "for display; checked to be in range")]
fn whole(value: f64) -> Option<u64> {
    (value.is_finite() && (0.0..1e15).contains(&value)).then_some(value as u64)
}

const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::StagingModel => "model",
        Phase::StagingData => "data",
        Phase::Tokenizing => "tokenizing",
        Phase::Training => "training",
        Phase::Evaluating => "evaluating",
        Phase::Checkpointing => "checkpoint",
        Phase::Uploading => "uploading",
    }
}

/// The closing words. A job that did not succeed is an error.
async fn finish(context: &Context, api: &Api, job: JobView) -> CliResult {
    let id = short(job.id);
    match job.state {
        JobState::Succeeded => {}
        JobState::Cancelled => {
            return Err(CliError::failed(format!("job {id} was cancelled at step {}", job.progress.step)));
        }
        JobState::Paused => {
            context
                .ui
                .note(format!("job {id} is paused at step {}; `hone jobs resume {id}` goes on", job.progress.step));
            return Ok(());
        }
        _ => {
            let failure = job.failure.as_ref().map_or_else(|| format!("it is {}", job.state), |f| f.message.clone());
            return Err(CliError::failed(
                format!("job {id} failed after {} attempts: {failure}", job.attempt).replace(" after 1 attempts", ""),
            )
            .hint(format!("`hone jobs logs {id}` shows what the trainer wrote")));
        }
    }
    let artifacts = api.artifacts(job.id).await?;
    if context.ui.json {
        context.ui.json_line(&job);
        return Ok(());
    }
    let mut rows = Vec::new();
    if let Some(after) = job.progress.eval_loss {
        let change = job.progress.initial_eval_loss.map(|before| format!("{before:.4} → ")).unwrap_or_default();
        rows.push(("validation loss", paint(&format!("{change}{after:.4}"), Style::Bold)));
    }
    rows.extend(job.progress.loss.map(|l| ("training loss", format!("{l:.4}"))));
    rows.push(("result", result(&artifacts)));
    rows.extend(location(&artifacts, &context.data_dir).map(|place| ("lies in", place)));
    rows.push(("download", format!("hone jobs artifacts {id} --download ./{}", job.name)));
    rows.push(("try it", format!("hone chat {id} --compare")));
    let steps = job.progress.step;
    let took = took(&job).map(|d| format!(" in {}", ui::duration(d))).unwrap_or_default();
    context.ui.line(format!("\n{} job {id} succeeded: {steps} steps{took}\n", paint("✓", Style::Green)));
    context.ui.line(ui::fields(&rows));
    Ok(())
}

/// From the first start to the end.
#[must_use]
pub fn took(job: &JobView) -> Option<Duration> {
    (job.finished_at? - job.started_at?).to_std().ok()
}

fn result(artifacts: &[ArtifactView]) -> String {
    let size: u64 = artifacts.iter().map(|a| a.size).sum();
    let main = artifacts.iter().find(|a| a.path.ends_with(".safetensors")).map_or("no weights", |a| a.path.as_str());
    format!("{main} and {} more files, {}", artifacts.len().saturating_sub(1), ui::bytes(size))
}

/// Where the artifacts are: a directory of this machine with the embedded storage, else bucket and prefix.
#[must_use]
pub fn location(artifacts: &[ArtifactView], data_dir: &Path) -> Option<String> {
    let first = artifacts.first()?;
    let url = first.url.split('?').next()?;
    let (_, after_scheme) = url.split_once("://")?;
    let (_, path) = after_scheme.split_once('/')?;
    let prefix = path.strip_suffix(&first.path)?.trim_end_matches('/');
    let local = data_dir.join("s3").join(prefix);
    Some(if local.is_dir() { local.display().to_string() } else { format!("s3://{prefix}") })
}
