//! `POST /v1/fine_tuning/jobs`: from a request to a training job.

use super::{
    method::{self, HyperparametersWish, Method, MethodWish, Plan},
    rows::{NewExtra, Record},
    view,
};
use crate::{
    auth::AuthUser,
    creation::{Limits, Wanted},
    db::Conn,
    openai::{
        auth::Delivery,
        body,
        error::{Error, Result},
        files::{FileStatus, Purpose, rows::FileRow},
        ids,
    },
    state::AppState,
    store::{Dataset, Model, idempotency::IdempotencyKey, job::Origin},
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use uuid::Uuid;
use wire::{
    TrainingConfig,
    dataset::Split,
    ids::DatasetId,
    job::{CreateJob, TrainerKind},
    problem::Code,
};

const MAX_SUFFIX_CHARS: usize = 64;
const MAX_PAIRS: usize = 16;
const MAX_KEY_CHARS: usize = 64;
const MAX_VALUE_CHARS: usize = 512;
/// Seeds are 31 bits, so that every client can hold them.
const SEEDS: std::ops::Range<u32> = 0..(1 << 31);
/// Characters of the job's id in the name of its result.
const MODEL_ID_CHARS: usize = 12;
/// Reads rows of this length when the model does not say how many it can.
const USUAL_CONTEXT: u64 = 2048;

/// Body of the request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    model: String,
    training_file: String,
    validation_file: Option<String>,
    suffix: Option<String>,
    seed: Option<i64>,
    metadata: Option<BTreeMap<String, String>>,
    integrations: Option<Vec<Value>>,
    method: Option<MethodWish>,
    hyperparameters: Option<HyperparametersWish>,
}

/// How a request is told from one sent before.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `Idempotency-Key`.
    pub key: Option<String>,
    pub delivery: Delivery,
}

/// Creates a job, or gives the reply of the request that this one repeats.
pub async fn create(state: &AppState, user: &AuthUser, identity: Identity, body: &[u8]) -> Result<Value> {
    let body = body::json(body)?;
    let request: Request = body::read(&body)?;
    let plan = check(&request)?;
    let material = Material::read(state, user, &request).await?;
    let method = plan.resolve(material.rows)?;
    let seed = seed(request.seed)?;
    let config = config(&request, &material, &method, seed);

    let job = CreateJob {
        config: serde_json::to_value(&config)?,
        max_attempts: None,
        trainer: TrainerKind::Candle,
        gpu_config: None,
        budget_limit: None,
    };
    let wanted = Wanted::read(job, Origin::default(), &state.config.catalog)?;
    let limits = Limits::of(state).await;
    let (owner, organization) = (user.user_id, user.name.clone());
    let (key, retried) = match identity.key {
        Some(key) => (IdempotencyKey::new(&key, "create_fine_tuning_job", &body)?, None),
        None => (IdempotencyKey::of_content(user.sender(), "create_fine_tuning_job", &body)?, Some(identity.delivery)),
    };
    let work = async move |conn: &mut Conn| {
        let replay = match retried {
            None => key.claim::<Value>(conn, owner).await?,
            Some(Delivery::First) => key.lock(conn).await.map(|()| None)?,
            Some(Delivery::Again) => key.recent::<Value>(conn, owner).await?,
        };
        if let Some(reply) = replay {
            return Ok(reply);
        }
        let job = wanted.insert(conn, owner, limits).await?.id;
        let fine_tuned_model = result_name(&material.model, &organization, request.suffix.as_deref(), job.0);
        let Request { model, metadata, .. } = request;
        let metadata = metadata.filter(|pairs| !pairs.is_empty());
        let new = NewExtra { job, user: owner, model, fine_tuned_model, method, seed, metadata };
        new.insert(conn).await?;
        let record = Record::find(conn, job.0).await?.ok_or_else(|| crate::Error::defect("a new job is not there"))?;
        let reply = serde_json::to_value(view::one(conn, owner, record).await?)?;
        match retried {
            None => key.keep(conn, owner, &reply).await?,
            Some(_) => key.keep_latest(conn, owner, &reply).await?,
        }
        Ok(reply)
    };
    Ok(state.db.tenant(owner, work).await?)
}

/// Everything that can be refused without looking anything up.
fn check(request: &Request) -> Result<Plan> {
    if request.integrations.as_ref().is_some_and(|list| !list.is_empty()) {
        let message = "integrations are not served here: this server sends nothing to Weights & Biases; leave \
                       integrations out, and read metrics from the job's events, checkpoints and result file";
        return Err(Error::invalid("integrations", "unsupported_value", message));
    }
    if let Some(suffix) = &request.suffix {
        let fits = (1..=MAX_SUFFIX_CHARS).contains(&suffix.chars().count());
        if !fits || !suffix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            let message = format!("suffix must have 1 to {MAX_SUFFIX_CHARS} letters, digits, '-', '_' or '.'");
            return Err(Error::invalid("suffix", "invalid_value", message));
        }
    }
    for (key, value) in request.metadata.iter().flatten() {
        if key.chars().count() > MAX_KEY_CHARS || value.chars().count() > MAX_VALUE_CHARS {
            let message = format!("keys of metadata have at most {MAX_KEY_CHARS} characters, values {MAX_VALUE_CHARS}");
            return Err(Error::invalid("metadata", "invalid_value", message));
        }
    }
    if request.metadata.as_ref().is_some_and(|pairs| pairs.len() > MAX_PAIRS) {
        let message = format!("metadata has at most {MAX_PAIRS} pairs");
        return Err(Error::invalid("metadata", "invalid_value", message));
    }
    method::plan(request.method.clone(), request.hyperparameters)
}

fn seed(wanted: Option<i64>) -> Result<u32> {
    let Some(wanted) = wanted else { return Ok(rand::random_range(SEEDS)) };
    let seed = u32::try_from(wanted).ok().filter(|seed| SEEDS.contains(seed));
    let message = || format!("seed must be between 0 and {}, not {wanted}", SEEDS.end - 1);
    seed.ok_or_else(|| Error::invalid("seed", "invalid_value", message()))
}

/// What a job is made of.
struct Material {
    training: FileRow,
    validation: Option<FileRow>,
    /// Rows of the training file.
    rows: u64,
    /// Name of the base model, without a revision.
    model: String,
    /// Tokens the model reads.
    context: u64,
}

impl Material {
    async fn read(state: &AppState, user: &AuthUser, request: &Request) -> Result<Self> {
        let (train, valid) = (request.training_file.clone(), request.validation_file.clone());
        let read = async move |conn: &mut Conn| {
            let training = file(conn, &train).await?;
            let rows = match training.as_ref().and_then(|f| f.dataset_id) {
                Some(id) => Dataset::find(conn, &DatasetId(id).to_string()).await.map(|d| rows(&d))?,
                None => 0,
            };
            let validation = match &valid {
                Some(id) => Some(file(conn, id).await?),
                None => None,
            };
            Ok((training, rows, validation))
        };
        let (training, rows, validation) = state.db.tenant(user.user_id, read).await?;
        let training = usable(training, "training_file", &request.training_file)?;
        let id = request.validation_file.as_deref().unwrap_or_default();
        let validation = validation.map(|file| usable(file, "validation_file", id)).transpose()?;

        let name = request.model.clone();
        let find = async move |conn: &mut Conn| match name.split_once('@') {
            Some((name, revision)) => Model::find(conn, name, Some(revision)).await,
            None => Model::find(conn, &name, None).await,
        };
        let model = state.db.tenant(user.user_id, find).await.map_err(|e| unknown_model(e.into(), &request.model))?;
        let context = model.info.map_or(USUAL_CONTEXT, |info| info.0.context_length);
        Ok(Self { training, validation, rows, model: model.name, context })
    }
}

async fn file(conn: &mut Conn, id: &str) -> crate::Result<Option<FileRow>> {
    match ids::parse(ids::FILE, id) {
        Some(id) => FileRow::find(conn, id).await,
        None => Ok(None),
    }
}

fn rows(dataset: &Dataset) -> u64 {
    dataset.file(Split::Train).map_or(0, |file| file.report.rows)
}

fn usable(file: Option<FileRow>, param: &str, id: &str) -> Result<FileRow> {
    let Some(file) = file else {
        return Err(Error::invalid(param, "file_not_found", format!("The file '{id}' does not exist.")));
    };
    if file.purpose.0 != Purpose::FineTune {
        let message = format!("The file '{id}' does not have the purpose 'fine-tune'.");
        return Err(Error::invalid(param, "invalid_file", message));
    }
    if file.status.0 == FileStatus::Error {
        let code = if param == "training_file" { "invalid_training_file" } else { "invalid_validation_file" };
        let why = file.status_details.unwrap_or_default();
        return Err(Error::invalid(param, code, format!("The file '{id}' cannot be used: {why}")));
    }
    Ok(file)
}

fn unknown_model(error: Error, name: &str) -> Error {
    if name.starts_with("ft:") {
        let message =
            format!("'{name}' is fine-tuned already; continuing from it is not served here, use its base model");
        return Error::invalid("model", "model_not_available", message);
    }
    match error.cause_code() {
        Some(Code::NotFound) => {
            let message = format!("Model {name} is not available for fine-tuning or does not exist: {error}");
            Error::invalid("model", "model_not_available", message)
        }
        _ => error,
    }
}

fn config(request: &Request, material: &Material, method: &Method, seed: u32) -> TrainingConfig {
    let dataset = |file: &FileRow| ids::show(ids::FILE, file.id);
    let mut config = TrainingConfig {
        name: Some(request.suffix.clone().unwrap_or_else(|| material.training.filename.chars().take(96).collect())),
        model: request.model.clone(),
        dataset: dataset(&material.training),
        validation_dataset: material.validation.as_ref().map(dataset),
        ..TrainingConfig::default()
    };
    method.apply(&mut config, material.rows, material.context);
    config.training.seed = seed.into();
    config
}

/// `ft:{base}:{organization}:{suffix}:{id}`
fn result_name(base: &str, organization: &str, suffix: Option<&str>, job: Uuid) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let organization: String = organization.chars().map(plain).collect();
    // An id begins with the time it was made at, which two jobs may share.
    let id = job.simple().to_string();
    let id: String = id.chars().skip(id.len() - MODEL_ID_CHARS).collect();
    format!("ft:{base}:{organization}:{}:{id}", suffix.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_named_as_clients_expect() {
        let job = Uuid::from_u128(0x0123_a1b2_c3d4_e5f6);
        assert_eq!(result_name("tiny", "ann@x y", Some("mine"), job), "ft:tiny:ann-x-y:mine:a1b2c3d4e5f6");
        assert_eq!(result_name("tiny", "ann", None, job), "ft:tiny:ann::a1b2c3d4e5f6");
    }
}
