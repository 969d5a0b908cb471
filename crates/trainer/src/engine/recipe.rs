//! The training recipe: set up, loop, finish. One straight line for every method.

mod fit;
mod identity;
mod keep;
mod rehearse;

use super::{
    Control, Observer, Outcome, Setup, TrainError, artifacts,
    checkpoint::{self, Kind, State, StepMetrics},
    classify::{Classes, Tally},
    data::{self, Corpus, Sampler, SamplerOptions},
    dpo,
    dropout::Dropout,
    gpu::Meter,
    memory,
    model::{self, BuildOptions, CausalLm},
    optim::{self, AdamW, AdamWConfig},
    params::Gradients,
    rng::Key,
    schedule::Schedule,
    step::{self, StepOptions},
};
use dataset::{Encoder, LossOn};
use identity::{digest, put_adapter};
pub(super) use rehearse::estimate;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};
use wire::{
    config::{Init, Method},
    event::{EventKind, Level, Phase, StopReason, metric},
};

/// Why the loop ended early.
enum Halt {
    Failed(TrainError),
    Stopped(StopReason),
}

impl<E: Into<TrainError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Everything the loop works on.
struct Run<'a> {
    setup: &'a Setup,
    observer: &'a mut dyn Observer,
    model: Box<dyn CausalLm>,
    kind: Kind,
    train: Corpus,
    /// Held-out rows; an index into `eval`, or into `train` when that is `None`.
    eval_rows: Vec<usize>,
    eval: Option<Corpus>,
    sampler: Sampler,
    schedule: Schedule,
    /// Of a classifier.
    classes: Option<Classes>,
    optimizer: AdamW,
    state: State,
    max_length: usize,
    gpu: Meter,
    /// When the last step ended.
    stepped: Option<Instant>,
    /// Step of the newest checkpoint on disk and where it is.
    saved: Option<(u64, PathBuf)>,
    /// With `load_best_model_at_end`: what was trained, as it was at the best evaluation.
    best: Option<PathBuf>,
}

pub(super) fn run(setup: &Setup, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
    let mut run = match Run::set_up(setup, observer) {
        Ok(run) => run,
        Err(Halt::Failed(error)) => return Err(error),
        Err(Halt::Stopped(reason)) => {
            let step = setup.resume.as_deref().and_then(checkpoint::step_in).unwrap_or(0);
            return Ok(Outcome::Stopped { reason, step, checkpoint: setup.resume.clone() });
        }
    };
    match run.train_loop() {
        Ok(()) => run.finish(),
        Err(Halt::Failed(error)) => Err(error),
        Err(Halt::Stopped(StopReason::Cancelled)) => {
            Ok(Outcome::Stopped { reason: StopReason::Cancelled, step: run.state.step, checkpoint: None })
        }
        Err(Halt::Stopped(reason)) => {
            let checkpoint = run.save()?;
            Ok(Outcome::Stopped { reason, step: run.state.step, checkpoint: Some(checkpoint) })
        }
    }
}

/// The reason to stop, if there is one.
fn asked_to_stop(observer: &dyn Observer) -> Result<(), Halt> {
    match observer.control() {
        Control::Continue => Ok(()),
        Control::Cancel => Err(Halt::Stopped(StopReason::Cancelled)),
        Control::Pause => Err(Halt::Stopped(StopReason::Paused)),
        Control::Preempt => Err(Halt::Stopped(StopReason::Preempted)),
    }
}

fn phase(observer: &mut dyn Observer, phase: Phase, message: impl Into<String>) {
    observer.event(EventKind::Phase { phase, message: message.into() });
}

fn warn(observer: &mut dyn Observer, message: String) {
    observer.event(EventKind::Log { level: Level::Warn, message });
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[expect(clippy::as_conversions, reason = "counts are far below 2^53")]
const fn float(n: u64) -> f64 {
    n as f64
}

impl<'a> Run<'a> {
    fn set_up(setup: &'a Setup, observer: &'a mut dyn Observer) -> Result<Self, Halt> {
        let config = &setup.config;
        let t = &config.training;
        let adapter = config.trains_adapter();
        let classes = Classes::of(setup)?;
        let options = BuildOptions {
            train_weights: !adapter,
            random: (config.init == Init::Random).then_some(t.seed),
            max_positions: t.max_seq_length,
            base_dtype: t.base_dtype,
            place: setup.place,
            classes: classes.as_ref().map(Classes::count),
        };
        fit::check_weights(setup)?;
        let mut model = model::load(&setup.model_dir, options)?;
        let kind = if adapter {
            let heads: Vec<String> = model.params().iter().map(|(name, _)| name.to_owned()).collect();
            let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
            let (lora, targets) = put_adapter(setup, model.as_mut())?;
            Kind::Adapter { config: artifacts::adapter_config(setup, &lora, &targets, &heads)? }
        } else {
            Kind::Weights
        };
        let dims = model.dims();
        let max_length = t.max_seq_length.min(dims.context);
        if max_length < t.max_seq_length {
            warn(
                observer,
                format!("max_seq_length {} is above the model's context; using {max_length}", t.max_seq_length),
            );
        }

        phase(observer, Phase::Tokenizing, "tokenizing the dataset");
        let encoder =
            Encoder::load(&setup.model_dir, max_length).map_err(|e| TrainError::model(e.to_string()).caused_by(e))?;
        let loss = if config.method == Method::Pretrain { LossOn::All } else { LossOn::Assistant };
        let mut load = |path: &std::path::Path| -> Result<Corpus, Halt> {
            let mut corpus = classes.clone().map_or_else(Corpus::default, Corpus::of_classes);
            corpus.read(path, setup.format, &encoder, loss, dims.vocab, &mut || asked_to_stop(observer))?;
            Ok(corpus)
        };
        let train = load(&setup.train)?;
        let eval = setup.validation.as_deref().map(&mut load).transpose()?;
        let (train_rows, eval_rows) = match &eval {
            Some(eval) => ((0..train.len()).collect(), (0..eval.len()).collect()),
            None => data::split(train.len(), t.val_set_size, t.seed),
        };
        if train_rows.is_empty() {
            let why =
                if train.without_loss > 0 { "no row carries loss within max_seq_length" } else { "it has no rows" };
            return Err(TrainError::data(format!("the dataset gives nothing to train on: {why}")).into());
        }
        let skipped = train.without_loss.saturating_add(eval.as_ref().map_or(0, |e| e.without_loss));
        if skipped > 0 {
            warn(
                observer,
                format!("{skipped} rows were left out: nothing in them carries loss within {max_length} tokens"),
            );
        }
        if train.truncated > 0 {
            warn(observer, format!("{} rows were cut to {max_length} tokens", train.truncated));
        }

        let sampler_options = SamplerOptions {
            batch: t.per_device_train_batch_size,
            accumulation: t.gradient_accumulation_steps,
            shuffle: t.shuffle,
            pack_into: t.packing.then_some(max_length),
            group_by_length: t.group_by_length,
            seed: t.seed,
        };
        let mut sampler = Sampler::new(&train, &train_rows, sampler_options);
        let per_epoch = sampler.steps_per_epoch();
        fit::check_batch(setup, model.as_ref(), fit::largest_part(setup, &mut sampler, &train))?;
        #[expect(clippy::as_conversions, reason = "a positive number of steps")]
        let total = u64::try_from(t.max_steps)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or((t.num_train_epochs * float(per_epoch)).ceil() as u64);
        let schedule = Schedule::new(t.lr_scheduler_type, t.learning_rate, t.warmup_ratio, total);
        if eval_rows.is_empty() && (t.early_stopping_patience > 0 || t.load_best_model_at_end) {
            return Err(TrainError::config(
                "early_stopping_patience and load_best_model_at_end need held-out rows: set training.val_set_size, or use a dataset with a validation split",
            )
            .into());
        }
        let mut optimizer = AdamW::new(AdamWConfig {
            optim: t.optim,
            beta1: t.adam_beta1,
            beta2: t.adam_beta2,
            epsilon: t.adam_epsilon,
            weight_decay: t.weight_decay,
        });
        let digest = digest(setup, &train, eval.as_ref())?;
        let state = match &setup.resume {
            None => State::new(digest, setup.threads),
            Some(dir) => checkpoint::load(dir, &kind, model.params(), &mut optimizer, &digest)?,
        };
        if state.threads != setup.threads {
            warn(
                observer,
                format!(
                    "resuming with {} threads what ran with {}: the last bits may differ",
                    setup.threads, state.threads
                ),
            );
        }
        observer.event(EventKind::Plan {
            total_steps: total,
            epochs: float(total) / float(per_epoch),
            train_rows: count(train_rows.len()),
            eval_rows: count(eval_rows.len()),
            train_tokens: train.tokens_in(&train_rows),
            truncated_rows: train.truncated,
            trainable_parameters: model.params().elements(),
            total_parameters: model.weights().saturating_add(if adapter { model.params().elements() } else { 0 }),
        });
        let saved = setup.resume.clone().map(|dir| (state.step, dir));
        let best = saved.as_ref().filter(|_| t.load_best_model_at_end);
        let best = best.and_then(|(_, dir)| checkpoint::best_file(dir, &kind, &state));
        Ok(Self {
            setup,
            observer,
            model,
            kind,
            train,
            eval_rows,
            eval,
            sampler,
            schedule,
            optimizer,
            state,
            max_length,
            classes,
            gpu: Meter::of(setup.place),
            stepped: None,
            saved,
            best,
        })
    }

    fn train_loop(&mut self) -> Result<(), Halt> {
        let t = &self.setup.config.training;
        let total = self.schedule.total;
        let due = |every: u64, step: u64| step == total || step == 0 || (every > 0 && step.is_multiple_of(every));
        loop {
            // Evaluation and checkpoint of a step come before the next one; a resumed run makes up for
            // what was due where the interrupted one stopped.
            let done = self.state.step;
            asked_to_stop(self.observer)?;
            if due(t.eval_steps, done) && self.state.last_eval.is_none_or(|(step, _)| step != done) {
                self.evaluate()?;
            }
            let enough = self.state.best.exhausted(t.early_stopping_patience);
            if done > 0 && (enough || due(t.save_steps, done)) {
                self.save()?;
            }
            if done >= total {
                return Ok(());
            }
            if enough {
                let n = self.state.best.worse;
                let message = format!("stopping early after step {done}: {n} evaluations without a better loss");
                self.observer.event(EventKind::Log { level: Level::Info, message });
                return Ok(());
            }
            if done == 0 || self.saved.as_ref().is_some_and(|(s, _)| *s == done) {
                phase(self.observer, Phase::Training, format!("training step {} of {total}", done.saturating_add(1)));
            }
            self.step()?;
        }
    }

    /// One optimizer step.
    fn step(&mut self) -> Result<(), Halt> {
        let started = Instant::now();
        let stall = self.stepped.map_or(Duration::ZERO, |before| started - before);
        let t = &self.setup.config.training;
        let index = self.state.step;
        let step = index.saturating_add(1);
        let batches: Vec<data::Batch> =
            self.sampler.step(index).iter().map(|rows| self.train.batch(rows)).collect::<Result<_, _>>()?;
        let method = self.setup.config.method;
        let units = batches.iter().map(|b| b.loss_units(method)).sum::<usize>();
        let tokens = count(batches.iter().map(|b| b.tokens.len()).sum());
        let rate = self.schedule.rate(index);
        let data = started.elapsed();
        let mut forward = Duration::ZERO;
        let mut grads = Gradients::default();
        let mut loss = 0.0;
        let mut preferences = dpo::Outcome::default();
        for (micro, batch) in (0..).zip(&batches) {
            if self.observer.control() == Control::Cancel {
                return Err(Halt::Stopped(StopReason::Cancelled));
            }
            let key = Key::new(t.seed, "dropout").at(index).at(micro);
            let options = self.step_options(float(count(units)), key);
            let (share, outcome) = self.learn(batch, options, &mut grads, &mut forward)?;
            loss += share;
            preferences.add(&outcome);
        }
        if index == 0 {
            let missing = grads.missing(self.model.params());
            if let Some(first) = missing.first() {
                let n = missing.len();
                return Err(TrainError::internal(format!(
                    "{n} trainable tensors received no gradient, `{first}` first"
                ))
                .into());
            }
        }
        self.setup.place.wait()?;
        let passes = started.elapsed() - data;
        let norm = optim::global_norm(&grads)?;
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.diverged(step, loss, norm).into());
        }
        self.optimizer.step(self.model.params(), &grads, optim::clip_factor(norm, t.max_grad_norm), rate)?;
        drop(grads);
        let elapsed = started.elapsed();
        let seconds = elapsed.as_secs_f64();
        self.stepped = Some(Instant::now());
        self.state.step = step;
        self.state.tokens_seen = self.state.tokens_seen.saturating_add(tokens);
        self.state.train_seconds += seconds;
        self.state.record(StepMetrics { step, train_loss: loss, learning_rate: rate, grad_norm: norm });
        let mut values = BTreeMap::from([
            (metric::TRAIN_LOSS.to_owned(), loss),
            (metric::LEARNING_RATE.to_owned(), rate),
            (metric::GRAD_NORM.to_owned(), norm),
            (metric::TOKENS_PER_SECOND.to_owned(), float(tokens) / seconds.max(1e-9)),
            (metric::STEP_SECONDS.to_owned(), seconds),
            (metric::DATA_SECONDS.to_owned(), data.as_secs_f64()),
            (metric::FORWARD_SECONDS.to_owned(), forward.as_secs_f64()),
            (metric::BACKWARD_SECONDS.to_owned(), passes.saturating_sub(forward).as_secs_f64()),
            (metric::OPTIMIZER_SECONDS.to_owned(), elapsed.saturating_sub(data + passes).as_secs_f64()),
            (metric::STALL_SECONDS.to_owned(), stall.as_secs_f64()),
            (metric::TOKENS_SEEN.to_owned(), float(self.state.tokens_seen)),
        ]);
        if method == Method::Dpo {
            values.extend(preferences.metrics(""));
        }
        if let Some((now, _)) = memory::resident() {
            values.insert(metric::MEMORY_BYTES.to_owned(), float(now));
        }
        values.extend(self.gpu.read());
        self.metrics(values);
        Ok(())
    }

    /// Forward and backward pass of one micro-batch: its share of the loss and, with DPO, of the preferences.
    fn learn(
        &self,
        batch: &data::Batch,
        options: StepOptions,
        grads: &mut Gradients,
        forward: &mut Duration,
    ) -> Result<(f64, dpo::Outcome), TrainError> {
        let (model, config) = (self.model.as_ref(), &self.setup.config);
        if config.method == Method::Dpo {
            let outcome = dpo::forward_backward(model, batch, options, &config.dpo, grads, forward)?;
            return Ok((outcome.loss / options.denominator, outcome));
        }
        let loss = step::forward_backward_timed(model, batch, options, grads, forward)?;
        Ok((loss, dpo::Outcome::default()))
    }

    /// Summed loss of a held-out batch and, with DPO, its preferences.
    fn judge(&self, batch: &data::Batch) -> Result<(f64, dpo::Outcome), TrainError> {
        let (model, config) = (self.model.as_ref(), &self.setup.config);
        if config.method == Method::Dpo {
            let outcome = dpo::evaluate(model, batch, &config.dpo)?;
            return Ok((outcome.loss, outcome));
        }
        Ok((step::total_loss(model, batch)?, dpo::Outcome::default()))
    }

    /// How a micro-batch of a step with `denominator` targets runs.
    fn step_options(&self, denominator: f64, key: Key) -> StepOptions {
        let config = &self.setup.config;
        let probability = if config.trains_adapter() { config.lora.lora_dropout } else { 0.0 };
        StepOptions {
            denominator,
            dropout: (probability > 0.0).then_some(Dropout { probability, key }),
            recompute: config.training.gradient_checkpointing,
        }
    }

    fn metrics(&mut self, values: BTreeMap<String, f64>) {
        let epoch = float(self.state.step) / float(self.sampler.steps_per_epoch());
        self.observer.event(EventKind::Metrics { step: self.state.step, epoch, values });
    }

    /// Mean loss over the held-out rows; `None` without any.
    fn evaluate(&mut self) -> Result<(), Halt> {
        if self.eval_rows.is_empty() {
            return Ok(());
        }
        let step = self.state.step;
        phase(self.observer, Phase::Evaluating, format!("evaluating on {} rows", self.eval_rows.len()));
        let corpus = self.eval.as_ref().unwrap_or(&self.train);
        let limit = self.max_length.saturating_mul(self.setup.config.training.per_device_train_batch_size);
        let method = self.setup.config.method;
        let (mut total, mut units) = (0.0, 0_usize);
        let mut tally = Tally::default();
        let mut preferences = dpo::Outcome::default();
        for rows in data::by_tokens(corpus, &self.eval_rows, limit) {
            asked_to_stop(self.observer)?;
            let batch = corpus.batch(&rows)?;
            if method == Method::Classification {
                total += tally.add(self.model.as_ref(), &batch)?;
            } else {
                let (loss, outcome) = self.judge(&batch)?;
                total += loss;
                preferences.add(&outcome);
            }
            units = units.saturating_add(batch.loss_units(method));
        }
        let loss = total / float(count(units)).max(1.0);
        if !loss.is_finite() {
            return Err(self.diverged(step, loss, f64::NAN).into());
        }
        self.state.last_eval = Some((step, loss));
        let mut values = BTreeMap::from([(metric::EVAL_LOSS.to_owned(), loss)]);
        if method == Method::Dpo {
            values.extend(preferences.metrics("eval_"));
        }
        if let Some(classes) = &self.classes {
            values.extend(tally.metrics(classes.count()));
        }
        self.metrics(values);
        let t = &self.setup.config.training;
        if step == 0 {
            self.state.initial_eval_loss = Some(loss);
        } else if self.state.best.record(step, loss, t.early_stopping_threshold) && t.load_best_model_at_end {
            self.save()?;
        }
        phase(self.observer, Phase::Training, format!("validation loss {loss:.4} after {step} steps"));
        Ok(())
    }
}
