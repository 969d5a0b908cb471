//! `POST /v1/files`: a form with `file` and `purpose` in any order, streamed to storage. Then the rows are validated;
//! a file with bad rows stays in the list with what is wrong with it, but its content is not kept.

use super::{
    FileObject, Purpose,
    rows::{FileRow, NewFile},
};
use crate::{
    audit,
    auth::AuthUser,
    datasets::{self, form},
    db::Conn,
    error::Error as Cause,
    openai::{
        auth::Delivery,
        error::{Error, Result},
        ids,
    },
    state::AppState,
    store::Dataset,
};
use actix_multipart::Field;
use actix_web::{HttpRequest, web};
use chrono::TimeDelta;
use wire::{
    dataset::Split,
    ids::DatasetId,
    problem::{Code, Problem},
    storage::ObjectInfo,
};

/// How long a file may live when it says so: an hour to 30 days.
const LIFETIME: std::ops::RangeInclusive<i64> = 3600..=2_592_000;
const MAX_FILENAME_CHARS: usize = 255;

/// Receives a whole form. Runs to its end, or to its clean-up, also when the client goes away.
pub async fn receive(state: AppState, user: AuthUser, req: &HttpRequest, payload: web::Payload) -> Result<FileObject> {
    let delivery = Delivery::of(req);
    let mut form = form::Form::new(req, payload, "the fields file and purpose");
    let task = actix_web::rt::spawn(audit::carry(async move {
        let result = read(&state, &user, delivery, &mut form).await;
        if result.is_err() {
            form.drain().await;
        }
        result
    }));
    task.await.map_err(Cause::defect)?
}

async fn read(state: &AppState, user: &AuthUser, delivery: Delivery, form: &mut form::Form) -> Result<FileObject> {
    let mut texts = Texts::default();
    let file = loop {
        let Some(mut field) = form.next().await? else {
            return Err(Error::invalid("file", "missing_required_parameter", "Missing required parameter: 'file'."));
        };
        if field.name() == Some("file") {
            break field;
        }
        texts.take(&mut field).await?;
    };
    // Refused before the file is read, when it was said already.
    if let Some(purpose) = &texts.purpose {
        check_purpose(purpose)?;
    }
    let source = Source { filename: filename(&file)?, delivery, user };
    let dataset = begin(state, user).await?;
    let work = async {
        match store(state, &dataset, file, form, texts).await {
            Ok((object, lifetime)) => source.finish(state, &dataset, object, lifetime).await,
            Err(error) => {
                datasets::discard(state, &dataset).await;
                Err(error)
            }
        }
    };
    datasets::keep_alive(state, &dataset, work).await
}

/// The dataset of a new file, still without rows.
pub async fn begin(state: &AppState, user: &AuthUser) -> Result<Dataset> {
    let id = DatasetId::random();
    let (owner, name) = (user.user_id, ids::show(ids::FILE, id.0));
    let begin = async move |conn: &mut Conn| Dataset::insert(conn, owner, id, &name).await;
    Ok(state.db.tenant(owner, begin).await?)
}

/// Stores the file and reads what comes behind it.
async fn store(
    state: &AppState,
    dataset: &Dataset,
    mut file: Field,
    form: &mut form::Form,
    mut texts: Texts,
) -> Result<(ObjectInfo, Option<TimeDelta>)> {
    let key = datasets::key(dataset, Split::Train, "train.jsonl");
    let object = form::stream_to(state, &key, 0, &mut file).await?;
    drop(file);
    while let Some(mut field) = form.next().await? {
        texts.take(&mut field).await?;
    }
    let missing = || Error::invalid("purpose", "missing_required_parameter", "Missing required parameter: 'purpose'.");
    check_purpose(texts.purpose.as_deref().ok_or_else(missing)?)?;
    Ok((object, lifetime(texts.anchor.as_deref(), texts.seconds.as_deref())?))
}

/// Where a file comes from.
#[derive(Debug)]
pub struct Source<'a> {
    pub filename: String,
    pub delivery: Delivery,
    pub user: &'a AuthUser,
}

impl Source<'_> {
    /// Makes a file of the stored object, which is the train file of `dataset`. Whatever goes wrong, nothing is kept.
    pub async fn finish(
        self,
        state: &AppState,
        dataset: &Dataset,
        object: ObjectInfo,
        lifetime: Option<TimeDelta>,
    ) -> Result<FileObject> {
        let (owner, key) = (self.user.user_id, self.user.key_id);
        let sha256 = object.sha256.clone();
        if let (Delivery::Again, Some(sha256)) = (self.delivery, sha256.clone()) {
            let name = self.filename.clone();
            let twin = async move |conn: &mut Conn| FileRow::twin(conn, key, &sha256, &name).await;
            if let Some(twin) = state.db.tenant(owner, twin).await? {
                datasets::discard(state, dataset).await;
                return Ok(twin.into());
            }
        }
        let size = object.size;
        let finished = datasets::finish(state, dataset.clone(), vec![(Split::Train, object)]).await;
        let (error, dataset_id) = match finished {
            Ok(_) => (None, Some(dataset.id)),
            Err(Cause::Refused(problem)) if problem.code == Code::DatasetInvalid => {
                // The report is the file's, and no dataset beside it.
                datasets::discard(state, dataset).await;
                (Some(details(&problem)), None)
            }
            Err(other) => return Err(other.into()),
        };
        let new = NewFile {
            id: dataset.id,
            user: owner,
            filename: self.filename,
            purpose: Purpose::FineTune,
            size,
            error,
            dataset: dataset_id,
            job: None,
            key,
            sha256,
            lifetime,
        };
        let inserted = state.db.tenant(owner, async move |conn| FileRow::insert(conn, new).await).await;
        match inserted {
            Ok(Some(row)) => Ok(row.into()),
            Ok(None) => Err(Cause::defect("the id of a new file is taken").into()),
            Err(error) => {
                datasets::discard(state, dataset).await;
                Err(error.into())
            }
        }
    }
}

/// What is wrong with a file's rows: a sentence, then the located errors.
fn details(problem: &Problem) -> String {
    let located = problem.errors.iter().map(|e| format!("\n{}: {}", e.path, e.message));
    format!("{}{}", problem.detail, located.collect::<String>())
}

fn filename(field: &Field) -> Result<String> {
    let name = field.content_disposition().and_then(|d| d.get_filename()).unwrap_or("file");
    check_filename("file", name)
}

pub fn check_filename(param: &str, name: &str) -> Result<String> {
    if name.is_empty() || name.chars().count() > MAX_FILENAME_CHARS || name.contains(|c: char| c.is_control()) {
        let message = format!("the name of a file must have 1 to {MAX_FILENAME_CHARS} printable characters");
        return Err(Error::invalid(param, "invalid_value", message));
    }
    Ok(name.to_owned())
}

pub fn check_purpose(purpose: &str) -> Result<()> {
    if purpose == "fine-tune" {
        return Ok(());
    }
    let message = format!("'{purpose}' is not a purpose that is served here; files are for 'fine-tune'");
    Err(Error::invalid("purpose", "invalid_value", message))
}

/// `expires_after` as a time from now.
pub fn lifetime(anchor: Option<&str>, seconds: Option<&str>) -> Result<Option<TimeDelta>> {
    let refuse = |message: String| Err(Error::invalid("expires_after", "invalid_value", message));
    let seconds = match (anchor, seconds) {
        (None, None) => return Ok(None),
        (Some("created_at"), Some(seconds)) => seconds,
        _ => return refuse("expires_after must have the anchor 'created_at' and a number of seconds".into()),
    };
    match seconds.parse::<i64>() {
        Ok(n) if LIFETIME.contains(&n) => Ok(TimeDelta::try_seconds(n)),
        _ => refuse(format!(
            "expires_after.seconds must be a number from {} to {}, not '{seconds}'",
            LIFETIME.start(),
            LIFETIME.end()
        )),
    }
}

/// The fields of the form beside the file.
#[derive(Debug, Default)]
struct Texts {
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

impl Texts {
    async fn take(&mut self, field: &mut Field) -> Result<()> {
        let slot = match field.name() {
            Some("purpose") => &mut self.purpose,
            Some("expires_after[anchor]") => &mut self.anchor,
            Some("expires_after[seconds]") => &mut self.seconds,
            other => {
                let name = other.unwrap_or_default().to_owned();
                let message = format!("Unrecognized request argument supplied: {name}");
                return Err(Error::invalid(&name, "unknown_parameter", message));
            }
        };
        *slot = Some(form::text(field).await?);
        Ok(())
    }
}
