//! Base models: from a list of files to a verified revision in the registry.
//!
//! A revision is named by the digests of its files, and the gateway stores a file only under its declared
//! digest. So a revision that is ready never changes, and two uploads of one revision cannot disagree.

use crate::{
    audit,
    db::Conn,
    error::Result,
    state::AppState,
    store::{Model, model::PendingUpload},
};
use std::collections::HashSet;
use wire::{
    ids::UserId,
    layout,
    model::{CreateModel, CreatedModel, ModelFile, ModelView, is_valid_name},
    problem::{Code, FieldError, Problem},
    storage::{FileRef, Manifest, OpenUpload, UploadKind, UploadSession},
};

const MAX_FILES: usize = 1000;
/// Formats that run code of the file's author when they are loaded.
const PICKLE: [&str; 7] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib"];

/// Opens uploads for what the registry lacks of this model. Creating a revision that is there already is no
/// error and opens nothing; one that is half uploaded goes on where it stopped.
pub async fn create(state: &AppState, user: UserId, request: CreateModel) -> Result<CreatedModel> {
    let revision = wire::model::revision(&request.files);
    let CreateModel { name, files } = request;
    create_revision(state, user, name, revision, files).await
}

/// As [`create`], for a revision that is named by what is not ours, such as a commit of the Hugging Face Hub: whoever
/// calls this knows that the name stands for these files.
pub async fn create_revision(
    state: &AppState,
    user: UserId,
    name: String,
    revision: String,
    files: Vec<ModelFile>,
) -> Result<CreatedModel> {
    let request = CreateModel { name, files };
    check(&request)?;
    let CreateModel { name, files } = request;
    audit::about(format!("{name}@{revision}"));
    let insert = async move |conn: &mut Conn| Model::ensure(conn, user, &name, &revision, &files).await;
    let model = state.db.tenant(user, insert).await?;
    if model.is_ready() {
        return Ok(CreatedModel { model: model.into(), uploads: Vec::new() });
    }
    let uploads = open_missing(state, &model).await?;
    Ok(CreatedModel { model: model.into(), uploads })
}

fn check(request: &CreateModel) -> Result<()> {
    let mut errors = Vec::new();
    if !is_valid_name(&request.name) {
        let rule = "must be 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`";
        errors.push(FieldError::new("name", rule));
    }
    if request.files.len() > MAX_FILES {
        errors.push(FieldError::new("files", format!("must be at most {MAX_FILES} files")));
    }
    let mut seen = HashSet::new();
    for file in request.files.iter().take(MAX_FILES) {
        if let Some(reason) = refusal(file) {
            errors.push(FieldError::new(&file.path, reason));
        } else if !seen.insert(&file.path) {
            errors.push(FieldError::new(&file.path, "is listed twice"));
        }
    }
    let has = |wanted: &dyn Fn(&str) -> bool| request.files.iter().any(|f| wanted(&f.path));
    if errors.is_empty() && !has(&|p| p == "config.json") {
        errors.push(FieldError::new("config.json", "is missing; a model is a folder in the Hugging Face layout"));
    }
    if errors.is_empty() && !has(&|p| p.ends_with(".safetensors")) {
        errors.push(FieldError::new("files", "holds no .safetensors file; weights must be safetensors"));
    }
    let Some(first) = errors.first() else { return Ok(()) };
    let more = match errors.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let detail = format!("model: {}: {}{more}", first.path, first.message);
    Err(Problem::new(Code::Invalid, detail).with_errors(errors).into())
}

/// Why a file cannot be part of a model.
fn refusal(file: &ModelFile) -> Option<&'static str> {
    let good = |segment: &str| is_valid_name(segment);
    if file.path.len() > 300 || !file.path.split('/').all(good) {
        return Some(
            "is not a safe path; use `/` between names of letters, digits, `.`, `_` or `-` that do not start with `.` or `-`",
        );
    }
    if file.path == layout::MANIFEST {
        return Some("is a name the registry uses itself");
    }
    let extension = file.path.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase()).unwrap_or_default();
    if PICKLE.contains(&extension.as_str()) {
        return Some("is a pickle file, which can run code when it is loaded; convert the weights to safetensors");
    }
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    if file.sha256.len() != 64 || !file.sha256.chars().all(hex) {
        return Some("needs a sha256 of 64 lowercase hex digits");
    }
    (file.size == 0).then_some("is empty")
}

/// Sessions for the files that are not stored yet; sessions of an earlier call are used again.
async fn open_missing(state: &AppState, model: &Model) -> Result<Vec<UploadSession>> {
    let known = &model.uploads.0;
    let (mut sessions, mut pending) = (Vec::new(), Vec::new());
    for file in &model.files.0 {
        let before = known.iter().find(|u| u.path == file.path);
        let session = match before {
            Some(upload) => resume(state, model, file, upload).await?,
            None => Some(open(state, model, file).await?),
        };
        let id = session.as_ref().map(|s| s.id.clone()).or_else(|| before.map(|u| u.session.clone()));
        pending.extend(id.map(|session| PendingUpload { path: file.path.clone(), session }));
        sessions.extend(session);
    }
    if pending != *known {
        let (model, pending) = (model.clone(), pending);
        // As system: the content is the same whoever brings it, so anyone may continue an upload.
        state.db.system(async move |conn| model.set_uploads(conn, pending).await).await?;
    }
    Ok(sessions)
}

/// The session of an earlier call, a new one when it has expired, or none when the file is stored.
async fn resume(
    state: &AppState,
    model: &Model,
    file: &ModelFile,
    upload: &PendingUpload,
) -> Result<Option<UploadSession>> {
    match state.gateway.upload(&upload.session).await {
        Ok(session) => Ok(Some(session)),
        Err(e) if e.status() == Some(404) => match state.gateway.verify(vec![reference(model, file)]).await {
            Ok(()) => Ok(None),
            Err(e) if e.is_transient() => Err(e.into()),
            Err(_) => Ok(Some(open(state, model, file).await?)),
        },
        Err(e) => Err(e.into()),
    }
}

async fn open(state: &AppState, model: &Model, file: &ModelFile) -> Result<UploadSession> {
    let FileRef { key, size, sha256 } = reference(model, file);
    let request = OpenUpload { key, size, kind: UploadKind::Model, sha256: Some(sha256) };
    Ok(state.gateway.open_upload(&request).await?)
}

fn reference(model: &Model, file: &ModelFile) -> FileRef {
    FileRef { key: format!("{}{}", model.prefix(), file.path), size: file.size, sha256: file.sha256.clone() }
}

/// Completes the uploads, verifies every file, reads the headers, and puts the revision into the registry.
/// Files that are corrupt, or not what was declared, leave nothing behind.
pub async fn complete(state: &AppState, user: UserId, name: String, revision: String) -> Result<ModelView> {
    let find = async move |conn: &mut Conn| Model::find_any(conn, &name, &revision).await;
    let model = state.db.tenant(user, find).await?;
    if model.is_ready() {
        return Ok(model.into());
    }
    match verify(state, &model).await {
        Ok(view) => Ok(view),
        Err(error) => {
            if matches!(error.code(), Some(Code::ModelCorrupt | Code::ChecksumMismatch)) {
                discard(state, &model).await;
            }
            Err(error)
        }
    }
}

async fn verify(state: &AppState, model: &Model) -> Result<ModelView> {
    for upload in &model.uploads.0 {
        match state.gateway.complete_upload(&upload.session).await {
            // Over already; whether the file is there is checked next.
            Err(error) if error.status() == Some(404) => {}
            other => drop(other?),
        }
    }
    let files: Vec<FileRef> = model.files.0.iter().map(|f| reference(model, f)).collect();
    state.gateway.verify(files.clone()).await?;
    let info = state.gateway.inspect_model(&model.prefix()).await?;
    let mut manifest = Manifest { files, step: None };
    manifest.files.sort_by(|a, b| a.key.cmp(&b.key));
    let body = serde_json::to_vec(&manifest)?.into();
    state.gateway.put_bytes(&format!("{}{}", model.prefix(), layout::MANIFEST), body).await?;
    let model = model.clone();
    let row = state.db.system(async move |conn| model.set_ready(conn, &info).await).await?;
    Ok(row.into())
}

/// Removes an upload that did not become a model. Objects first: the row is what the sweeper finds them by.
pub async fn discard(state: &AppState, model: &Model) {
    if let Err(error) = try_discard(state, model).await {
        let error = service::error::chain(&error);
        tracing::warn!(model = %model.name, revision = %model.revision, %error, "cannot remove a refused model yet");
    }
}

async fn try_discard(state: &AppState, model: &Model) -> Result<()> {
    let (name, revision) = (model.name.clone(), model.revision.clone());
    let now = state.db.system(async move |conn| Model::find_any(conn, &name, &revision).await).await;
    if now.is_ok_and(|row| row.is_ready()) {
        return Ok(());
    }
    for upload in &model.uploads.0 {
        state.gateway.abort_upload(&upload.session).await?;
    }
    state.gateway.delete_prefix(&model.prefix()).await?;
    let model = model.clone();
    state.db.system(async move |conn| model.delete_unfinished(conn).await).await
}
