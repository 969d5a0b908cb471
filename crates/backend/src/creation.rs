//! Creating a job: everything that can be refused is refused here, before anything is stored.

use crate::{
    catalog::Catalog,
    continuation,
    costs::{self, Price},
    db::Conn,
    error::{Error, Result},
    jobs::control,
    state::AppState,
    store::{
        Dataset, Job, Model,
        idempotency::{self, IdempotencyKey},
        job::{NewJob, Origin, SpecSnapshot},
    },
};
use wire::{
    JobView, TrainingConfig,
    config::Method,
    dataset::{DatasetFile, DatasetFormat, DatasetStatus, Split},
    ids::{DatasetId, UserId},
    job::{AdapterSpec, CreateJob, DatasetSpec, ModelSpec, TrainerKind},
    memory::{Need, Rows},
    problem::{Code, FieldError, Problem},
    storage::FileRef,
};

const DEFAULT_ATTEMPTS: u32 = 3;
const MAX_ATTEMPTS: u32 = 20;
const MAX_NAME_CHARS: usize = 200;

/// Creates a queued job, or replays the reply of the first request with this key.
pub async fn create(
    state: &AppState,
    user: UserId,
    request: CreateJob,
    key: Option<IdempotencyKey>,
) -> Result<JobView> {
    // Before the key is claimed: a request that is refused may be sent again with the same key.
    let wanted = Wanted::read(request, Origin::default(), &state.config.catalog)?;
    let limits = Limits::of(state).await;
    let work = async move |conn: &mut Conn| {
        if let Some(reply) = idempotency::claim(conn, user, key.as_ref()).await? {
            return Ok(reply);
        }
        let view = wanted.insert(conn, user, limits).await?;
        idempotency::keep(conn, user, key.as_ref(), &view).await?;
        Ok(view)
    };
    state.db.tenant(user, work).await
}

/// What a new job is held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes that a trainer has, where that is known.
    pub memory: Option<u64>,
    /// Jobs of the user that may be unfinished at a time.
    pub unfinished: u32,
}

impl Limits {
    pub async fn of(state: &AppState) -> Self {
        Self { memory: state.launcher.memory().await, unfinished: state.config.policy.max_unfinished }
    }
}

/// A job to create, checked as far as that goes without the database.
#[derive(Debug, Clone)]
pub struct Wanted {
    config: TrainingConfig,
    max_attempts: i32,
    trainer: TrainerKind,
    origin: Origin,
    price: Price,
}

impl Wanted {
    pub fn read(request: CreateJob, mut origin: Origin, catalog: &Catalog) -> Result<Self> {
        let config = TrainingConfig::from_value(&request.config)?;
        let trainer = request.trainer;
        let max_attempts = match (trainer, request.max_attempts) {
            (TrainerKind::Candle, wanted) => max_attempts(wanted)?,
            (TrainerKind::External, None | Some(1)) => 1,
            (TrainerKind::External, Some(_)) => {
                let detail = "max_attempts: Hone cannot start an external trainer again; leave it out";
                return Err(Error::refused(Code::Invalid, detail));
            }
        };
        if config.name.as_ref().is_some_and(|n| n.chars().count() > MAX_NAME_CHARS) {
            return Err(Error::refused(Code::Invalid, format!("name: must have at most {MAX_NAME_CHARS} characters")));
        }
        origin.gpu_config = request.gpu_config.or(origin.gpu_config);
        origin.budget_limit = request.budget_limit.or(origin.budget_limit);
        costs::check_limit(origin.budget_limit)?;
        let price = Price::of(catalog, origin.gpu_config.as_deref())?;
        if trainer == TrainerKind::External && origin.budget_limit.is_some() {
            let detail = "budget_limit: a trainer outside Hone cannot be paused from here, so no limit can be kept";
            return Err(Error::refused(Code::Invalid, detail));
        }
        Ok(Self { config, max_attempts, trainer, origin, price })
    }

    /// Stores and queues the job, unless it cannot run or is beyond `limits`.
    pub async fn insert(self, conn: &mut Conn, user: UserId, limits: Limits) -> Result<JobView> {
        let Self { config, max_attempts, trainer, origin, price } = self;
        check_quota(conn, limits.unfinished).await?;
        let inputs = find(conn, &config, trainer).await?;
        match (need(&inputs.model, &inputs.dataset, &config), limits.memory) {
            _ if trainer == TrainerKind::External => {}
            (Some(need), Some(limit)) => need.check(&config, limit)?,
            (need, _) => {
                let (shapes, limit) = (need.is_some(), limits.memory.is_some());
                tracing::warn!(shapes, limit, "the memory of a new job is not checked: shapes or limit are not known");
            }
        }
        let (model, mut dataset) = (model_spec(inputs.model), dataset_spec(&inputs.dataset)?);
        let validation_dataset = held_out(conn, &config, &mut dataset).await?;
        let name = config.name.clone().unwrap_or_else(|| format!("{}-{}", model.name, dataset.name));
        let spec = SpecSnapshot { model, dataset, adapter: inputs.adapter };
        let new = NewJob { name, config, spec, validation_dataset, max_attempts, trainer, origin, price };
        let id = new.insert(conn, user).await?;
        control::submit(conn, id).await?;
        let view = JobView::try_from(Job::find(conn, id).await?)?;
        costs::estimate::of_job(conn, user, &view).await?;
        Ok(view)
    }
}

/// What a configuration names.
#[derive(Debug)]
pub struct Inputs {
    pub model: Model,
    pub dataset: Dataset,
    /// What `lora.init_from` names.
    pub adapter: Option<AdapterSpec>,
}

/// Finds model and dataset, and refuses those that our trainer cannot train as `config` says.
pub async fn find(conn: &mut Conn, config: &TrainingConfig, trainer: TrainerKind) -> Result<Inputs> {
    let (model_name, revision) = config.model_ref();
    let model = Model::find(conn, model_name, revision).await?;
    let dataset = Dataset::find(conn, &config.dataset).await?;
    let format = dataset_spec(&dataset)?.format;
    if trainer == TrainerKind::External {
        return Ok(Inputs { adapter: continuation::find(conn, config, &model).await?, model, dataset });
    }
    check_fit(config.method, format)?;
    if let Some(info) = &model.info {
        wire::support::check(&info.0.architecture, config.method)?;
    }
    let adapter = continuation::find(conn, config, &model).await?;
    Ok(Inputs { model, dataset, adapter })
}

/// Memory that the run needs at least; `None` for a model whose shapes are not known.
pub fn need(model: &Model, dataset: &Dataset, config: &TrainingConfig) -> Option<Need> {
    let info = model.info.as_ref()?;
    let file = dataset.file(Split::Train)?;
    let rows = Rows { bytes: file.size, count: file.report.rows, context: info.0.context_length };
    Some(Need::of(info.0.shape.as_ref()?, config, rows))
}

/// Makes the rows of `validation_dataset` the held-out ones; its id when there is one.
async fn held_out(conn: &mut Conn, config: &TrainingConfig, train: &mut DatasetSpec) -> Result<Option<DatasetId>> {
    let Some(name) = &config.validation_dataset else { return Ok(None) };
    let other = dataset_spec(&Dataset::find(conn, name).await?)?;
    if other.format != train.format {
        let message = "must be of the same format as `dataset`";
        let problem = Problem::new(Code::Invalid, format!("training configuration: validation_dataset: {message}"));
        return Err(problem.with_errors(vec![FieldError::new("validation_dataset", message)]).into());
    }
    train.validation = Some(other.train);
    Ok(Some(other.id))
}

/// Refuses a user who has too many jobs waiting or running.
async fn check_quota(conn: &mut Conn, limit: u32) -> Result<()> {
    if Job::unfinished(conn).await? < i64::from(limit) {
        return Ok(());
    }
    let detail = format!("you have {limit} unfinished jobs, which is the limit; wait for one to end, or cancel one");
    Err(Error::refused(Code::Overloaded, detail))
}

fn max_attempts(wanted: Option<u32>) -> Result<i32> {
    let wanted = wanted.unwrap_or(DEFAULT_ATTEMPTS);
    if !(1..=MAX_ATTEMPTS).contains(&wanted) {
        let detail = format!("max_attempts: must be between 1 and {MAX_ATTEMPTS}, not {wanted}");
        return Err(Error::refused(Code::Invalid, detail));
    }
    i32::try_from(wanted).map_err(Error::defect)
}

/// The files of a model.
pub fn model_spec(model: Model) -> ModelSpec {
    let prefix = model.prefix();
    ModelSpec { name: model.name, revision: model.revision, prefix, files: model.files.0 }
}

/// The files of a ready dataset.
pub fn dataset_spec(dataset: &Dataset) -> Result<DatasetSpec> {
    let name = &dataset.name;
    let not_ready = || {
        let status = match dataset.status.0 {
            DatasetStatus::Uploading => "is still being uploaded; train when it is ready",
            DatasetStatus::Validating => "is still being validated; train when it is ready",
            DatasetStatus::Invalid => "is invalid: its rows were refused and not kept; upload it again, corrected",
            DatasetStatus::Ready => "has no usable files; upload it again",
        };
        Error::refused(Code::Conflict, format!("the dataset `{name}` {status}"))
    };
    let reference = |f: &DatasetFile| FileRef { key: f.key.clone(), size: f.size, sha256: f.sha256.clone() };
    match (dataset.status.0, dataset.format, dataset.file(Split::Train)) {
        (DatasetStatus::Ready, Some(format), Some(train)) => Ok(DatasetSpec {
            id: dataset.id(),
            name: dataset.name.clone(),
            format: format.0,
            train: reference(train),
            validation: dataset.file(Split::Validation).map(reference),
        }),
        _ => Err(not_ready()),
    }
}

/// Whether rows of this format carry what the method learns from.
pub(crate) fn check_fit(method: Method, format: DatasetFormat) -> Result<(), Problem> {
    let (message, suggestion) = match (method, format) {
        (Method::Pretrain, DatasetFormat::Text | DatasetFormat::ChatJsonl)
        | (Method::Sft | Method::Full, DatasetFormat::ChatJsonl | DatasetFormat::InstructionJsonl) => return Ok(()),
        (Method::Pretrain, DatasetFormat::InstructionJsonl) => {
            ("`pretrain` needs a text or chat dataset, and this one holds instructions", "use `sft` or `full`")
        }
        (Method::Sft | Method::Full, DatasetFormat::Text) => {
            ("needs rows with answers to learn, and this dataset is plain text", "use `pretrain`")
        }
        (Method::Dpo, DatasetFormat::PreferenceJsonl) => return Ok(()),
        (Method::Classification, DatasetFormat::LabelledJsonl) => return Ok(()),
        (Method::Classification, _) => (
            "`classification` needs labelled texts, and this dataset has none",
            "use a dataset with `text` and `label`",
        ),
        (Method::Dpo, _) => (
            "`dpo` needs preference pairs, and this dataset has none",
            "use a dataset with `prompt`, `chosen` and `rejected`",
        ),
        (_, DatasetFormat::PreferenceJsonl) => ("this dataset holds preference pairs", "use `dpo`"),
        (_, DatasetFormat::LabelledJsonl) => ("this dataset holds labelled texts", "use `classification`"),
    };
    let problem = Problem::new(Code::Invalid, format!("training configuration: method: {message}; {suggestion}"));
    Err(problem.with_errors(vec![FieldError::new("method", message).suggest(Some(suggestion))]))
}
