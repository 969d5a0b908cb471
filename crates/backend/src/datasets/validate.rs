//! From stored files to a ready dataset, or to nothing.

use super::{discard, name};
use crate::{
    db::Conn,
    error::{Error, Result},
    notifications::{Kind, News, Severity},
    state::AppState,
    store::Dataset,
};
use wire::{
    dataset::{DatasetFile, DatasetFormat, DatasetStatus, DatasetView, Split, ValidationReport},
    problem::{Code, FieldError, Problem},
    storage::ObjectInfo,
};

/// Validates the stored files of `dataset` and makes it ready. When it is refused, or anything else goes
/// wrong, nothing is kept.
pub async fn finish(state: &AppState, dataset: Dataset, files: Vec<(Split, ObjectInfo)>) -> Result<DatasetView> {
    let (user, id) = (dataset.owner(), dataset.id());
    let step = async move |conn: &mut Conn| {
        Dataset::advance(conn, id, DatasetStatus::Uploading, DatasetStatus::Validating).await
    };
    if !state.db.tenant(user, step).await? {
        // Whoever is validating it, or has deleted it, also decides what becomes of its objects.
        return Err(Error::refused(Code::Conflict, "the dataset was deleted, or another request is validating it"));
    }
    match try_finish(state, &dataset, files).await {
        Ok(view) => Ok(view),
        Err(error) => {
            discard(state, &dataset).await;
            if let Error::Refused(problem) = &error
                && problem.code == Code::DatasetInvalid
            {
                tell(state, &dataset, problem).await?;
            }
            Err(error)
        }
    }
}

/// Tells the owner, who may have started the upload and left.
async fn tell(state: &AppState, dataset: &Dataset, problem: &Problem) -> Result<()> {
    let (id, name) = (dataset.id(), &dataset.name);
    let news = News {
        user: dataset.owner(),
        kind: Kind::DatasetInvalid,
        severity: Severity::Error,
        title: format!("the dataset `{name}` cannot be used"),
        body: problem.detail.clone(),
        data: serde_json::json!({"dataset_id": id, "name": name, "detail": problem.detail, "errors": problem.errors}),
        job: None,
        key: format!("dataset:{id}:invalid"),
    };
    state.db.tenant(dataset.owner(), async move |conn| news.raise(conn).await).await?;
    Ok(())
}

async fn try_finish(state: &AppState, dataset: &Dataset, files: Vec<(Split, ObjectInfo)>) -> Result<DatasetView> {
    let mut validated: Vec<DatasetFile> = Vec::new();
    for (split, object) in files {
        let format = validated.as_slice().first().map(|f| f.report.format);
        validated.push(validate(state, split, object, format).await?);
    }
    let id = dataset.id();
    let ready = async move |conn: &mut Conn| Dataset::set_ready(conn, id, validated).await;
    let row = state.db.tenant(dataset.owner(), ready).await?;
    row.map(Into::into).ok_or_else(|| Error::refused(Code::Conflict, "the dataset was deleted in the meantime"))
}

async fn validate(
    state: &AppState,
    split: Split,
    object: ObjectInfo,
    format: Option<DatasetFormat>,
) -> Result<DatasetFile> {
    let report = state.gateway.validate_dataset(&object.key, format).await?;
    if !report.is_valid() {
        return Err(refusal(split, &report).into());
    }
    let sha256 = object.sha256.ok_or_else(|| Error::defect("the gateway stored a file without telling its digest"))?;
    Ok(DatasetFile { split, key: object.key, size: object.size, sha256, report })
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
        (0, _) | (_, None) => format!("the {file} file has no rows; nothing was kept"),
        (1, Some(e)) => format!("the {file} file has an error in line {}: {}; nothing was kept", e.line, e.reason),
        (n, Some(e)) => {
            format!("the {file} file has {n} errors, the first in line {}: {}; nothing was kept", e.line, e.reason)
        }
    };
    Problem::new(Code::DatasetInvalid, detail).with_errors(errors.collect())
}
