//! The rules of the four steps. Errors keep a version from being published; warnings do not.

use crate::{
    catalog::Catalog,
    creation,
    db::Conn,
    error::{Error, Result},
    store::{Dataset, Model, unsigned},
};
use serde_json::{Value, json};
use wire::{
    TrainingConfig,
    config::Method,
    dataset::{DatasetFormat, DatasetStatus},
    package::{DatasetChoice, DatasetStep, DeployStep, DeployTarget, ModelStep, Steps, Validation},
    problem::{FieldError, Problem},
};

/// Above this many bytes a model deserves a warning: 10 GB.
const LARGE_MODEL: u64 = 10_000_000_000;

/// Per cent of the rows to train on that need no warning.
const USUAL_SPLIT: std::ops::RangeInclusive<f64> = 50.0..=95.0;

/// Steps that were looked at.
#[derive(Debug)]
pub struct Checked {
    /// With everything filled in that a published version fixes: the model's revision and size, the datasets' names, rows
    /// and sizes.
    pub steps: Steps,
    /// What the rules say.
    pub found: Validation,
    /// All that is wrong is that the method cannot train the model.
    pub unsupported: bool,
}

/// Applies the rules to `steps`.
pub async fn check(conn: &mut Conn, catalog: &Catalog, steps: &Steps) -> Result<Checked> {
    let mut report = Report::default();
    let mut pinned = steps.clone();
    let (model, architecture) = report.model(conn, steps.model.as_ref()).await?;
    pinned.model = model;
    let (dataset, format) = report.dataset(conn, steps.dataset.as_ref()).await?;
    pinned.dataset = dataset;
    let method = report.config(steps.config.as_ref(), format);
    report.deploy(catalog, steps.deploy.as_ref());
    let mut unsupported = false;
    if let (Some(architecture), Some(method)) = (architecture, method)
        && let Err(problem) = wire::support::check(&architecture, method)
    {
        unsupported = report.0.errors.is_empty();
        let below =
            |e: FieldError| if e.path == "method" { FieldError { path: "config.method".into(), ..e } } else { e };
        report.0.errors.extend(problem.errors.into_iter().map(below));
    }
    Ok(Checked { steps: pinned, found: report.0, unsupported })
}

/// The training configuration that `steps` describe: step 2 with the model, the first dataset and the split.
pub fn training_config(steps: &Steps) -> Option<Value> {
    let (model, dataset) = (steps.model.as_ref()?, steps.dataset.as_ref()?);
    let mut config = steps.config.clone()?;
    let fields = config.as_object_mut()?;
    let revision = model.revision.as_ref().map(|r| format!("@{r}")).unwrap_or_default();
    fields.insert("model".into(), json!(format!("{}{revision}", model.name)));
    fields.insert("dataset".into(), json!(dataset.datasets.first()?.id));
    if let Some(split) = dataset.train_split {
        let training = fields.entry("training").or_insert_with(|| json!({}));
        training.as_object_mut()?.insert("val_set_size".into(), json!((100.0 - split) / 100.0));
    }
    Some(config)
}

#[derive(Default)]
struct Report(Validation);

impl Report {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.errors.push(FieldError::new(path, message));
    }

    fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.warnings.push(FieldError::new(path, message));
    }

    /// The model, pinned, and its architecture where that is known.
    async fn model(
        &mut self,
        conn: &mut Conn,
        step: Option<&ModelStep>,
    ) -> Result<(Option<ModelStep>, Option<String>)> {
        let Some(step) = step else {
            self.error("model", "is required: choose a base model");
            return Ok((None, None));
        };
        let model = match Model::find(conn, &step.name, step.revision.as_deref()).await {
            Ok(model) => model,
            Err(Error::Refused(problem)) => {
                self.error("model", problem.detail);
                return Ok((Some(step.clone()), None));
            }
            Err(other) => return Err(other),
        };
        let size = unsigned(model.size);
        if size > LARGE_MODEL {
            let tenths = size / 100_000_000;
            let gigabytes = format!("{}.{} GB", tenths / 10, tenths % 10);
            self.warn("model", format!("has {gigabytes}; above 10 GB staging is slow and needs much memory"));
        }
        let architecture = model.info.map(|info| info.0.architecture);
        Ok((Some(ModelStep { name: model.name, revision: Some(model.revision), size: Some(size) }), architecture))
    }

    async fn dataset(
        &mut self,
        conn: &mut Conn,
        step: Option<&DatasetStep>,
    ) -> Result<(Option<DatasetStep>, Option<DatasetFormat>)> {
        let Some(step) = step.filter(|s| !s.datasets.is_empty()) else {
            self.error("dataset", "is required: choose at least one dataset");
            return Ok((step.cloned(), None));
        };
        let (mut pinned, mut format) = (step.clone(), None);
        for (index, choice) in pinned.datasets.iter_mut().enumerate() {
            let path = format!("dataset.datasets.{index}");
            match Dataset::find(conn, &choice.id.to_string()).await {
                Ok(row) if row.status.0 == DatasetStatus::Ready => {
                    if format.zip(row.format).is_some_and(|(first, own)| first != own.0) {
                        self.error(path, format!("the dataset `{}` has another format than the first one", row.name));
                    }
                    format = format.or(row.format.map(|f| f.0));
                    let (rows, size) = (unsigned(row.row_count), unsigned(row.size));
                    *choice = DatasetChoice { id: row.id(), name: Some(row.name), rows: Some(rows), size: Some(size) };
                }
                Ok(row) if row.status.0 == DatasetStatus::Invalid => {
                    self.error(path, format!("the dataset `{}` is invalid; upload it again, corrected", row.name));
                }
                Ok(row) => self.error(path, format!("the dataset `{}` is not ready yet", row.name)),
                Err(Error::Refused(_)) => self.error(path, format!("there is no dataset {}", choice.id)),
                Err(other) => return Err(other),
            }
        }
        match step.train_split {
            Some(split) if !(split > 0.0 && split <= 100.0) => {
                self.error("dataset.train_split", format!("must be above 0 and at most 100 per cent, not {split}"));
            }
            Some(split) if !USUAL_SPLIT.contains(&split) => {
                self.warn("dataset.train_split", format!("is {split} per cent; between 50 and 95 is usual"));
            }
            _ => {}
        }
        Ok((Some(pinned), format))
    }

    /// The method, of a configuration that can be read.
    fn config(&mut self, config: Option<&Value>, format: Option<DatasetFormat>) -> Option<Method> {
        let Some(config) = config else {
            self.error("config", "is required: choose a preset or write a training configuration");
            return None;
        };
        let below = |e: FieldError| match e.path.as_str() {
            "(document)" => FieldError { path: "config".into(), ..e },
            path => FieldError { path: format!("config.{path}"), ..e },
        };
        let (method, problem) = match parse(config) {
            Ok(config) => {
                (Some(config.method), format.and_then(|format| creation::check_fit(config.method, format).err()))
            }
            Err(problem) => (None, Some(problem)),
        };
        self.0.errors.extend(problem.into_iter().flat_map(|p| p.errors).map(below));
        method
    }

    fn deploy(&mut self, catalog: &Catalog, step: Option<&DeployStep>) {
        let Some((step, target)) = step.and_then(|s| Some((s, s.target?))) else {
            self.error("deploy.target", "is required: choose `local` or `hf_space`");
            return;
        };
        match &step.gpu_config {
            Some(id) if catalog.gpu_config(id).is_none() => {
                self.error("deploy.gpu_config", format!("there is no GPU configuration `{id}`; see /api/gpu-configs"));
            }
            None if target == DeployTarget::HfSpace => {
                self.error("deploy.gpu_config", "is required for a Space: choose its hardware");
            }
            _ => {}
        }
        match (target, &step.space_name) {
            (DeployTarget::HfSpace, Some(name)) if is_space_name(name) => {}
            (DeployTarget::HfSpace, _) => self.error("deploy.space_name", "is required for a Space: `owner/name`"),
            (DeployTarget::Local, Some(_)) => self.error("deploy.space_name", "is for the target `hf_space` only"),
            (DeployTarget::Local, None) => {}
        }
        match step.budget_limit {
            // What numeric(10, 2) holds.
            Some(limit) if !(0.01..100_000_000.0).contains(&limit) => {
                self.error("deploy.budget_limit", format!("must be at least 0.01 and below 100 million, not {limit}"));
            }
            None if target == DeployTarget::HfSpace => {
                self.warn("deploy.budget_limit", "is not set; a Space costs until it is stopped");
            }
            _ => {}
        }
    }
}

/// Step 2 as a training configuration; the other steps hold model and dataset.
pub fn parse(config: &Value) -> Result<TrainingConfig, Problem> {
    let mut whole = config.clone();
    if let Some(fields) = whole.as_object_mut() {
        let elsewhere = ["model", "dataset"].into_iter().filter(|key| fields.contains_key(*key));
        let errors: Vec<FieldError> =
            elsewhere.map(|key| FieldError::new(key, format!("belongs to the {key} step"))).collect();
        if !errors.is_empty() {
            let detail = "the configuration of a version has no model and no dataset: the other steps choose them";
            return Err(Problem::new(wire::Code::Invalid, detail).with_errors(errors));
        }
        fields.insert("model".into(), json!("model"));
        fields.insert("dataset".into(), json!("dataset"));
    }
    TrainingConfig::from_value(&whole)
}

/// `owner/name`, as the Hugging Face Hub names repositories.
fn is_space_name(name: &str) -> bool {
    let part = |p: &str| wire::model::is_valid_name(p) && !p.contains("--") && !p.contains("..");
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}
