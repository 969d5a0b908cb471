//! From stored files to a ready dataset, or to the report that says why there is none.

use super::{discard, name, purge};
use crate::{
    db::Conn,
    error::{Error, Result},
    notifications::{Kind, News, Severity},
    state::AppState,
    store::Dataset,
};
use std::result::Result as StdResult;
use wire::{
    dataset::{DatasetFile, DatasetFormat, DatasetStatus, DatasetView, Split, ValidationReport},
    problem::{Code, FieldError, Problem},
    storage::ObjectInfo,
};

/// Rows that cannot be used: what validation found in each file it looked at, and how that is told.
struct Refused {
    files: Vec<DatasetFile>,
    problem: Problem,
}

/// Validates the stored files of `dataset` and makes it ready. When its rows are refused, only the report is kept; when
/// anything else goes wrong, nothing is.
pub async fn finish(state: &AppState, dataset: Dataset, files: Vec<(Split, ObjectInfo)>) -> Result<DatasetView> {
    let (user, id) = (dataset.owner(), dataset.id());
    let step = async move |conn: &mut Conn| {
        Dataset::advance(conn, id, DatasetStatus::Uploading, DatasetStatus::Validating).await
    };
    if !state.db.tenant(user, step).await? {
        // Whoever is validating it, or has deleted it, also decides what becomes of its objects.
        return Err(Error::refused(Code::Conflict, "the dataset was deleted, or another request is validating it"));
    }
    let failure = match try_finish(state, &dataset, files).await {
        Ok(Ok(view)) => return Ok(view),
        Ok(Err(refused)) => match keep_report(state, &dataset, refused).await {
            Ok(problem) => return Err(problem.into()),
            Err(error) => error,
        },
        Err(error) => error,
    };
    discard(state, &dataset).await;
    Err(failure)
}

/// Keeps the report and removes the objects; tells the owner, who may have started the upload and left.
async fn keep_report(state: &AppState, dataset: &Dataset, refused: Refused) -> Result<Problem> {
    let Refused { files, problem } = refused;
    let (id, news) = (dataset.id(), news(dataset, &problem));
    let keep = async move |conn: &mut Conn| {
        if Dataset::set_invalid(conn, id, files).await? {
            news.raise(conn).await?;
        }
        Ok(())
    };
    state.db.tenant(dataset.owner(), keep).await?;
    if let Err(error) = purge(state, dataset).await {
        // The sweeper removes them.
        tracing::warn!(dataset.id = %id, error = %service::error::chain(&error), "cannot remove refused rows yet");
    }
    Ok(problem)
}

fn news(dataset: &Dataset, problem: &Problem) -> News {
    let (id, name) = (dataset.id(), &dataset.name);
    News {
        user: dataset.owner(),
        kind: Kind::DatasetInvalid,
        severity: Severity::Error,
        title: format!("the dataset `{name}` cannot be used"),
        body: problem.detail.clone(),
        data: serde_json::json!({"dataset_id": id, "name": name, "detail": problem.detail, "errors": problem.errors}),
        job: None,
        key: format!("dataset:{id}:invalid"),
    }
}

async fn try_finish(
    state: &AppState,
    dataset: &Dataset,
    files: Vec<(Split, ObjectInfo)>,
) -> Result<StdResult<DatasetView, Refused>> {
    let mut validated: Vec<DatasetFile> = Vec::new();
    for (split, object) in files {
        let format = validated.as_slice().first().map(|f| f.report.format);
        let file = validate(state, split, object, format).await?;
        let problem = (!file.report.is_valid()).then(|| refusal(split, &file.report));
        validated.push(file);
        if let Some(problem) = problem {
            return Ok(Err(Refused { files: validated, problem }));
        }
    }
    let id = dataset.id();
    let ready = async move |conn: &mut Conn| Dataset::set_ready(conn, id, validated).await;
    let row = state.db.tenant(dataset.owner(), ready).await?;
    let row = row.ok_or_else(|| Error::refused(Code::Conflict, "the dataset was deleted in the meantime"))?;
    Ok(Ok(row.into()))
}

async fn validate(
    state: &AppState,
    split: Split,
    object: ObjectInfo,
    format: Option<DatasetFormat>,
) -> Result<DatasetFile> {
    let report = state.gateway.validate_dataset(&object.key, format).await?;
    let sha256 = object.sha256.ok_or_else(|| Error::defect("the gateway stored a file without telling its digest"))?;
    Ok(DatasetFile { split, key: object.key, size: object.size, sha256, report })
}

/// Why a refused dataset was refused, as its uploader was told.
pub fn refusal_of(dataset: &Dataset) -> Option<Problem> {
    let wrong = dataset.files.0.iter().find(|f| !f.report.is_valid())?;
    Some(refusal(wrong.split, &wrong.report))
}

fn refusal(split: Split, report: &ValidationReport) -> Problem {
    let file = name(split);
    let errors: Vec<FieldError> = report.errors.iter().cloned().map(FieldError::from).collect();
    let errors = errors.into_iter().map(|mut e| {
        if split == Split::Validation {
            e.path = format!("{file}: {}", e.path);
        }
        e
    });
    let detail = match (report.error_count, report.errors.first()) {
        (0, _) | (_, None) => format!("the {file} file has no rows; its rows were not kept"),
        (1, Some(e)) => {
            format!("the {file} file has an error in line {}: {}; its rows were not kept", e.line, e.reason)
        }
        (n, Some(e)) => {
            format!(
                "the {file} file has {n} errors, the first in line {}: {}; its rows were not kept",
                e.line, e.reason
            )
        }
    };
    Problem::new(Code::DatasetInvalid, detail).with_errors(errors.collect())
}
