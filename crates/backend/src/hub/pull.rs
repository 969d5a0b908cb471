//! From a name on the Hub to a revision in the registry: the commit is pinned, its files are listed, and what the
//! registry lacks of them is fetched by the parts of its upload sessions, straight through. So whatever dies in
//! between, the next try goes on with the first part that is missing; sizes and digests are those the Hub lists, and
//! the registry takes nothing else.

use super::{
    HubClient,
    client::segment,
    rows::{CLAIM, Progress, Pull},
    select::{Entry, select},
};
use crate::{
    db::Conn,
    error::{Error, Result},
    registry,
    state::AppState,
    store::Model,
};
use actix_web::ResponseError;
use futures::TryStreamExt;
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wire::{
    UserId,
    hub::{PullModel, PullStatus},
    model::{ModelFile, is_valid_name},
    problem::Code,
    storage::{UploadPart, UploadSession},
};

/// Pulls at a time, and unfinished ones of one user.
const WORKERS: usize = 2;
const PER_USER: i64 = 10;
const TICK: Duration = Duration::from_secs(1);
/// Failures in a row after which a pull is given up.
const MAX_FAILURES: i32 = 8;
/// Entries of a repository that are looked at, and pages of them.
const MAX_PAGES: usize = 20;
/// Largest file that is not stored by its SHA-256: the Hub's own limit for those is 10 MB.
const MAX_SMALL: u64 = 16 << 20;
/// Signed URLs last minutes; a large model needs several rounds of them.
const ROUNDS: usize = 200;

/// Notes that a model is wanted; a worker fetches it.
pub async fn ask(state: &AppState, user: UserId, request: PullModel) -> Result<Pull> {
    let PullModel { id, revision, name } = request;
    let invalid = |detail: String| Err(Error::refused(Code::Invalid, detail));
    let parts: Vec<&str> = id.split('/').collect();
    if !matches!(parts.len(), 1 | 2) || !parts.iter().all(|p| is_valid_name(p)) {
        return invalid(format!("id: `{id}` is no name of a model on the Hub; give `owner/name`"));
    }
    let revision = revision.unwrap_or_else(|| "main".into());
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if !(1..=100).contains(&revision.len()) || !revision.chars().all(good) || revision.contains("..") {
        return invalid("revision: must be a branch, tag or commit".into());
    }
    let name = name.unwrap_or_else(|| id.replace('/', "--"));
    if !is_valid_name(&name) {
        return invalid("name: must be 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`".into());
    }
    let insert = async move |conn: &mut Conn| Pull::ensure(conn, user, &id, &revision, &name, PER_USER).await;
    state.db.tenant(user, insert).await
}

/// Pulls until `stop`; what is under way then goes on after the next start.
pub async fn run(state: AppState, stop: CancellationToken) {
    let (me, places) = (Uuid::new_v4(), Arc::new(Semaphore::new(WORKERS)));
    let mut workers = JoinSet::new();
    loop {
        while workers.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = workers.join_next() => continue,
            }
        };
        match state.db.system(async move |conn| Pull::claim(conn, me).await).await {
            Ok(Some(pull)) => {
                let state = state.clone();
                workers.spawn(async move {
                    attend(&state, pull, me).await;
                    drop(place);
                });
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(error = %service::error::chain(&error), "cannot look for models to pull"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Works on a pull until it is over, failed, cancelled, or somebody else's.
async fn attend(state: &AppState, pull: Pull, me: Uuid) {
    let id = pull.id();
    let mine = async {
        loop {
            tokio::time::sleep(CLAIM / 4).await;
            // When the database is away the claim runs out, and with it the right to go on.
            if !matches!(state.db.system(async move |conn| Pull::beat(conn, id, me).await).await, Ok(true)) {
                return;
            }
        }
    };
    let result = tokio::select! {
        result = fetch(state, &pull) => result,
        () = mine => return,
    };
    let (repo, error) = (&pull.repo, result.as_ref().err().map(|e| service::error::chain(e)));
    let transient = result.as_ref().err().is_some_and(may_pass);
    let noted = match error {
        None => {
            tracing::info!(pull.id = %id, "pulled {repo}");
            state.db.system(async move |conn| Pull::end(conn, id, PullStatus::Succeeded, None).await.map(drop)).await
        }
        Some(error) if transient && pull.failures < MAX_FAILURES => {
            let wait = Duration::from_secs(1 << pull.failures.clamp(0, 6));
            tracing::warn!(pull.id = %id, error, "cannot pull {repo} now, trying again in {wait:?}");
            state.db.system(async move |conn| Pull::postpone(conn, id, wait, &error).await).await
        }
        Some(error) => {
            tracing::warn!(pull.id = %id, error, "cannot pull {repo}");
            forget(state, &pull).await;
            let end = async move |conn: &mut Conn| Pull::end(conn, id, PullStatus::Failed, Some(error)).await.map(drop);
            state.db.system(end).await
        }
    };
    if let Err(error) = noted {
        tracing::warn!(pull.id = %id, error = %service::error::chain(&error), "cannot note how a pull went");
    }
}

/// Whether the same may go well later.
fn may_pass(error: &Error) -> bool {
    matches!(error.status_code().as_u16(), 429 | 502 | 503 | 504)
}

/// Removes what a pull left in the registry, unless it is a model already.
pub async fn forget(state: &AppState, pull: &Pull) {
    let (name, id) = (pull.name.clone(), pull.id());
    let find = async move |conn: &mut Conn| {
        // The commit may have been pinned since the pull was read.
        let Some(commit) = Pull::find(conn, id).await?.commit_hash else { return Ok(None) };
        Ok(Model::find_any(conn, &name, &commit).await.ok())
    };
    if let Ok(Some(model)) = state.db.system(find).await {
        registry::discard(state, &model).await;
    }
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

async fn fetch(state: &AppState, pull: &Pull) -> Result<()> {
    let (hub, id) = (&state.hub, pull.id());
    let repo = pull.repo.split('/').map(segment).collect::<Vec<_>>().join("/");
    let commit = match &pull.commit_hash {
        Some(commit) => commit.clone(),
        None => {
            let path = format!("/api/models/{repo}/revision/{}", segment(&pull.revision));
            let Revision { sha } = hub.json(&path).await?.value;
            if sha.len() != 40 || !sha.chars().all(|c| c.is_ascii_hexdigit()) {
                return Err(Error::refused(Code::ModelCorrupt, format!("the Hub names no commit but `{sha}`")));
            }
            let pinned = sha.clone();
            state.db.system(async move |conn| Pull::pin(conn, id, &pinned).await).await?;
            sha
        }
    };
    let entries = select(&pull.repo, list(hub, &repo, &commit).await?, hub.max_bytes)?;
    let mut files = Vec::new();
    for entry in &entries {
        files.push(describe(hub, &repo, &commit, entry).await?);
    }
    let bytes_total = files.iter().map(|f| f.size).sum();
    for _ in 0..ROUNDS {
        let (name, files) = (pull.name.clone(), files.clone());
        let created = registry::create_revision(state, pull.owner(), name, commit.clone(), files.clone()).await?;
        let missing = |s: &UploadSession| s.parts.iter().map(|p| p.size).sum::<u64>();
        let mut progress = Progress {
            files_total: files.len(),
            files_done: files.len().saturating_sub(created.uploads.iter().filter(|s| !s.parts.is_empty()).count()),
            bytes_total,
            bytes_done: bytes_total.saturating_sub(created.uploads.iter().map(missing).sum()),
        };
        note(state, pull, progress).await?;
        if progress.bytes_done == bytes_total {
            break;
        }
        let mut expired = false;
        'files: for session in &created.uploads {
            // A session names its object's key: `models/{name}/{revision}/` and the file's path.
            let path = session.key.splitn(4, '/').nth(3).unwrap_or(&session.key);
            let source = format!("/{repo}/resolve/{commit}/{}", segment(path));
            for part in &session.parts {
                if move_part(hub, &source, part).await? == Moved::Expired {
                    expired = true;
                    break 'files;
                }
                progress.bytes_done = progress.bytes_done.saturating_add(part.size);
                note(state, pull, progress).await?;
            }
            progress.files_done = progress.files_done.saturating_add(usize::from(!session.parts.is_empty()));
            note(state, pull, progress).await?;
        }
        if !expired {
            break;
        }
    }
    registry::complete(state, pull.owner(), pull.name.clone(), commit).await.map(drop)
}

async fn note(state: &AppState, pull: &Pull, progress: Progress) -> Result<()> {
    let id = pull.id();
    state.db.system(async move |conn| Pull::progress(conn, id, progress).await).await
}

/// Everything in the repository at a commit.
async fn list(hub: &HubClient, repo: &str, commit: &str) -> Result<Vec<Entry>> {
    let mut path = format!("/api/models/{repo}/tree/{commit}?recursive=false&expand=false");
    let mut entries = Vec::new();
    for _ in 0..MAX_PAGES {
        let answer = hub.json::<Vec<Entry>>(&path).await?;
        entries.extend(answer.value);
        let cursor =
            answer.next.and_then(|url| url.query_pairs().find(|(k, _)| k == "cursor").map(|(_, v)| v.into_owned()));
        let Some(cursor) = cursor else { return Ok(entries) };
        path = format!("/api/models/{repo}/tree/{commit}?recursive=false&expand=false&cursor={}", segment(&cursor));
    }
    Err(Error::refused(Code::TooLarge, "the repository has too many files to be a model"))
}

/// What the registry must know of a file before it takes it. The Hub tells the SHA-256 of large files; small ones are
/// read, and checked by their name in git.
async fn describe(hub: &HubClient, repo: &str, commit: &str, entry: &Entry) -> Result<ModelFile> {
    let (path, size) = (entry.path.clone(), entry.bytes());
    if let Some(lfs) = &entry.lfs {
        return Ok(ModelFile { path, size, sha256: lfs.oid.to_ascii_lowercase() });
    }
    if size > MAX_SMALL {
        let detail = format!("{path} has {size} bytes and no SHA-256 on the Hub");
        return Err(Error::refused(Code::ModelCorrupt, detail));
    }
    let source = format!("/{repo}/resolve/{commit}/{}", segment(&path));
    let broken = |e: reqwest::Error| {
        let why = service::error::chain(&e.without_url());
        Error::refused(Code::Unavailable, format!("{path} did not arrive from the Hub: {why}"))
    };
    let content = hub.piece(&source, 0, size).await?.bytes().await.map_err(broken)?;
    let mut name = Sha1::new();
    name.update(format!("blob {size}\0"));
    name.update(&content);
    if hex::encode(name.finalize()) != entry.oid {
        let detail = format!("{path} arrived from the Hub with other content than it lists");
        return Err(Error::refused(Code::ChecksumMismatch, detail));
    }
    Ok(ModelFile { path: path.clone(), size, sha256: hex::encode(Sha256::digest(&content)) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    Done,
    /// The signed URL is too old.
    Expired,
}

/// Streams a part from the Hub to storage.
async fn move_part(hub: &HubClient, source: &str, part: &UploadPart) -> Result<Moved> {
    let piece = hub.piece(source, part.offset, part.size).await?;
    let body = reqwest::Body::wrap_stream(piece.bytes_stream().map_err(reqwest::Error::without_url));
    let request = hub.storage(&part.url).header("content-length", part.size).body(body);
    let broken = |why: String| {
        Error::refused(Code::Unavailable, format!("a part of a file did not get from the Hub to storage: {why}"))
    };
    let reply = request.send().await.map_err(|e| broken(service::error::chain(&e.without_url())))?;
    match reply.status() {
        status if status.is_success() => Ok(Moved::Done),
        reqwest::StatusCode::FORBIDDEN => Ok(Moved::Expired),
        status => Err(broken(format!("storage answered {status}"))),
    }
}
