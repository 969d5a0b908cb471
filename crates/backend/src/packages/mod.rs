//! Training packages and their versions: drafts are saved and deleted, published versions never change, and all of
//! it happens under the lock on the package, so that whoever comes second sees what the first one did.

pub mod check;
mod compare;
mod naming;
mod run;

use check::Checked;
pub use run::{deploy, launch, not_served};

use crate::{
    audit, costs,
    db::Conn,
    error::{Error, Result},
    notifications::{Kind, News, Severity},
    state::AppState,
    store::{
        Json, Package, Version,
        idempotency::{self, IdempotencyKey},
        package::PackageChange,
        version::Content,
    },
};
use serde_json::{Value, json};
use wire::{
    ids::{PackageId, UserId, VersionId},
    package::{
        AutoSave, Comparison, CreatePackage, CreateVersion, Draft, ForkVersion, Steps, Summary, UpdatePackage,
        VersionStatus, VersionView,
    },
    problem::{Code, FieldError, Problem},
};

const MAX_NAME_CHARS: usize = 200;
const MAX_SUMMARY_CHARS: usize = 2000;
const DEFAULT_TEMPLATE: &str = "lora_finetuning";

/// What `If-Match` allows to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Anything,
    /// One of these revisions.
    Revision(Vec<i32>),
}

impl Expected {
    fn allows(&self, revision: i32) -> bool {
        match self {
            Self::Anything => true,
            Self::Revision(revisions) => revisions.contains(&revision),
        }
    }
}

fn invalid(path: &str, message: impl Into<String>) -> Error {
    let error = FieldError::new(path, message);
    Problem::new(Code::Invalid, format!("{path}: {}", error.message)).with_errors(vec![error]).into()
}

fn check_name(path: &str, name: &str) -> Result<()> {
    let count = name.chars().count();
    if count == 0 || count > MAX_NAME_CHARS || name.trim() != name || name.chars().any(char::is_control) {
        let message = format!(
            "must have 1 to {MAX_NAME_CHARS} characters, none of them control characters, and no blank at either end"
        );
        return Err(invalid(path, message));
    }
    Ok(())
}

fn check_texts(name: Option<&str>, summary: Option<&str>) -> Result<()> {
    name.map_or(Ok(()), |n| check_name("name", n))?;
    if summary.is_some_and(|s| s.chars().count() > MAX_SUMMARY_CHARS || s.contains('\0')) {
        return Err(invalid("change_summary", format!("must have at most {MAX_SUMMARY_CHARS} characters")));
    }
    Ok(())
}

/// Part of a training configuration, as packages keep it.
fn check_template(config: Option<&Value>) -> Result<()> {
    config.map_or(Ok(()), |c| check::parse(c).map(drop).map_err(Error::from))
}

pub async fn create_package(
    conn: &mut Conn,
    user: UserId,
    request: CreatePackage,
    key: Option<&IdempotencyKey>,
) -> Result<wire::package::PackageView> {
    check_name("name", &request.name)?;
    check_template(request.config.as_ref())?;
    if let Some(reply) = idempotency::claim(conn, user, key).await? {
        return Ok(reply);
    }
    let template = request.template_type.as_deref().unwrap_or(DEFAULT_TEMPLATE);
    check_name("template_type", template)?;
    let rest =
        PackageChange { name: None, description: Some(request.description), config_json: request.config.map(Json) };
    let row = Package::insert(conn, user, &request.name, template, rest).await?;
    audit::about(row.id);
    let view = row.into();
    idempotency::keep(conn, user, key, &view).await?;
    Ok(view)
}

pub async fn update_package(conn: &mut Conn, id_or_name: &str, change: UpdatePackage) -> Result<Package> {
    change.name.as_deref().map_or(Ok(()), |n| check_name("name", n))?;
    check_template(change.config.as_ref())?;
    let row = Package::find(conn, id_or_name).await?;
    let change =
        PackageChange { name: change.name, description: change.description, config_json: change.config.map(Json) };
    if change.is_empty() {
        return Ok(row);
    }
    Package::change(conn, row.id(), change).await
}

/// The view of one version; of a draft with what the rules say about it.
pub async fn view(conn: &mut Conn, state: &AppState, row: Version) -> Result<VersionView> {
    let draft = row.status.0 == VersionStatus::Draft;
    let mut view = VersionView::try_from(row)?;
    if draft {
        view.validation = Some(check::check(conn, &state.config.catalog, &view.steps).await?.found);
    }
    Ok(view)
}

pub async fn create_version(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    request: CreateVersion,
    key: Option<&IdempotencyKey>,
) -> Result<VersionView> {
    check_texts(request.draft.name.as_deref(), request.draft.change_summary.as_deref())?;
    if let Some(reply) = idempotency::claim(conn, user, key).await? {
        return Ok(reply);
    }
    let package = Package::lock(conn, request.package_id).await?;
    let row = insert_draft(conn, user, package, None, request.draft).await?;
    let view = view(conn, state, row).await?;
    idempotency::keep(conn, user, key, &view).await?;
    Ok(view)
}

/// A new draft of `package`, which is locked; it becomes the package's current version.
async fn insert_draft(
    conn: &mut Conn,
    user: UserId,
    package: Package,
    parent: Option<VersionId>,
    mut draft: Draft,
) -> Result<Version> {
    if draft.steps.config.is_none() && package.config_json.0.as_object().is_some_and(|c| !c.is_empty()) {
        draft.steps.config = Some(package.config_json.0.clone());
    }
    let name = match draft.name {
        Some(name) => name,
        None => {
            let next = Version::next_number(conn, package.id()).await?;
            naming::draft_name(&package.name, next, chrono::Utc::now().date_naive())
        }
    };
    let content = Content::new(name, draft.change_summary, &draft.steps)?;
    let row = Version::insert(conn, user, package.id(), parent, content, budget(&draft.steps)).await?;
    Package::set_current(conn, package.id(), row.id()).await?;
    Ok(row)
}

/// The budget as its column can hold it; the rules refuse any other when the version is published.
fn budget(steps: &Steps) -> Option<f64> {
    steps.deploy.as_ref()?.budget_limit.filter(|limit| (0.01..100_000_000.0).contains(limit))
}

/// A version to change, with its package locked.
async fn locked(conn: &mut Conn, id: VersionId) -> Result<(Package, Version)> {
    let package = Version::find(conn, id).await?.package();
    let package = Package::lock(conn, package).await?;
    // Again: whoever held the lock before may have changed it.
    Ok((package, Version::find(conn, id).await?))
}

/// A draft to change at a revision that `expected` allows, with its package locked.
async fn editable(
    conn: &mut Conn,
    state: &AppState,
    id: VersionId,
    expected: Option<&Expected>,
) -> Result<(Package, Version)> {
    let (package, row) = locked(conn, id).await?;
    if row.status.0 != VersionStatus::Draft {
        let (name, status) = (&row.name, row.status.0.as_str());
        let detail = format!("`{name}` is {status} and never changes; restore or fork it as a new draft");
        return Err(Error::refused(Code::Conflict, detail));
    }
    if expected.is_some_and(|e| !e.allows(row.revision)) {
        let detail = format!(
            "the draft was saved by someone else and is at revision {}; merge your changes into `current` and send its revision",
            row.revision
        );
        let current = serde_json::to_value(view(conn, state, row).await?)?;
        return Err(Problem::new(Code::PreconditionFailed, detail).with_current(current).into());
    }
    Ok((package, row))
}

/// Saves a draft, all of it.
pub async fn save(
    conn: &mut Conn,
    state: &AppState,
    id: VersionId,
    draft: Draft,
    expected: &Expected,
) -> Result<VersionView> {
    check_texts(draft.name.as_deref(), draft.change_summary.as_deref())?;
    let (package, row) = editable(conn, state, id, Some(expected)).await?;
    Package::set_current(conn, package.id(), id).await?;
    let content = Content::new(draft.name.unwrap_or(row.name), draft.change_summary, &draft.steps)?;
    let saved = Version::save(conn, id, row.revision, content, budget(&draft.steps)).await?;
    view(conn, state, saved.ok_or_else(|| Error::defect("a locked draft changed"))?).await
}

pub async fn auto_save(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    request: AutoSave,
    expected: Option<Expected>,
) -> Result<VersionView> {
    match (request.version_id, expected) {
        (Some(id), Some(expected)) => return save(conn, state, id, request.draft, &expected).await,
        (Some(_), None) => {
            let detail = "saving a draft needs `If-Match` with the revision that was edited, such as `\"3\"`";
            return Err(Error::refused(Code::PreconditionRequired, detail));
        }
        (None, _) => {}
    }
    check_texts(request.draft.name.as_deref(), request.draft.change_summary.as_deref())?;
    let package = match (request.package_id, &request.package_name) {
        (Some(id), None) => id,
        (None, Some(name)) => match Package::find_by_name(conn, name).await? {
            Some(package) => package.id(),
            None => new_package(conn, user, name).await?,
        },
        _ => return Err(invalid("package_id", "a new draft needs either `package_id` or `package_name`")),
    };
    let package = Package::lock(conn, package).await?;
    let row = insert_draft(conn, user, package, None, request.draft).await?;
    view(conn, state, row).await
}

async fn new_package(conn: &mut Conn, user: UserId, name: &str) -> Result<PackageId> {
    check_name("package_name", name)?;
    Ok(Package::insert(conn, user, name, DEFAULT_TEMPLATE, PackageChange::default()).await?.id())
}

/// Numbers a draft and fixes it for good, with everything it depends on pinned.
pub async fn publish(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    id: VersionId,
    summary: Summary,
    expected: Option<&Expected>,
) -> Result<VersionView> {
    check_texts(None, summary.change_summary.as_deref())?;
    let (package, row) = editable(conn, state, id, expected).await?;
    let Checked { steps, found, unsupported } = check::check(conn, &state.config.catalog, &row.steps()?).await?;
    if let Some(first) = found.errors.first() {
        let more = found.errors.len().saturating_sub(1);
        let tail = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let detail = format!("`{}` cannot be published: {}: {}{tail}", row.name, first.path, first.message);
        let code = if unsupported { Code::Unsupported } else { Code::Invalid };
        return Err(Problem::new(code, detail).with_errors(found.errors).into());
    }
    let number = Version::next_number(conn, package.id()).await?;
    let name = naming::published_name(&row.name, number);
    let content = Content::new(name, summary.change_summary.or(row.change_summary), &steps)?;
    let published = Version::publish(conn, user, id, row.revision, content).await?;
    let published = published.ok_or_else(|| Error::defect("a locked draft changed"))?;
    Package::set_current(conn, package.id(), id).await?;
    let mut view = VersionView::try_from(published)?;
    news(user, &package, &view).raise(conn).await?;
    if view.steps.dataset.as_ref().is_some_and(|d| d.datasets.len() == 1) {
        costs::estimate::of_version(conn, user, id).await?;
    }
    view.validation = Some(found);
    Ok(view)
}

fn news(user: UserId, package: &Package, version: &VersionView) -> News {
    let (id, name) = (version.id, &version.name);
    News {
        user,
        kind: Kind::VersionPublished,
        severity: Severity::Info,
        title: format!("`{name}` is published"),
        body: version.change_summary.clone().unwrap_or_default(),
        data: json!({
            "version_id": id, "name": name, "version_number": version.version_number,
            "package_id": version.package_id, "package": package.name,
        }),
        job: None,
        key: format!("version:{id}:published"),
    }
}

/// Archives a published version. Repeating it changes nothing.
pub async fn archive(conn: &mut Conn, id: VersionId) -> Result<VersionView> {
    let (_, row) = locked(conn, id).await?;
    match row.status.0 {
        VersionStatus::Archived => row.try_into(),
        VersionStatus::Draft => {
            Err(Error::refused(Code::Conflict, format!("`{}` is a draft: publish it or delete it", row.name)))
        }
        VersionStatus::Published => {
            Version::archive(conn, id).await?;
            Version::find(conn, id).await?.try_into()
        }
    }
}

/// Deletes a draft.
pub async fn delete(conn: &mut Conn, id: VersionId) -> Result<()> {
    let (_, row) = locked(conn, id).await?;
    if row.status.0 != VersionStatus::Draft {
        let detail = format!("`{}` is {} and is kept; archive it to hide it", row.name, row.status.0.as_str());
        return Err(Error::refused(Code::Conflict, detail));
    }
    Version::delete(conn, id).await?;
    Ok(())
}

/// Where a copy goes.
enum Destination<'a> {
    Package(PackageId),
    New(&'a str),
}

/// A new draft of the same package with the content of a version that is published or archived.
pub async fn restore(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    id: VersionId,
    summary: Summary,
    key: Option<&IdempotencyKey>,
) -> Result<VersionView> {
    let package = Version::find(conn, id).await?.package();
    copy(conn, state, user, id, Destination::Package(package), summary.change_summary, key).await
}

/// A new draft that has a version as its parent, in its package, another or a new one.
pub async fn fork(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    id: VersionId,
    request: ForkVersion,
    key: Option<&IdempotencyKey>,
) -> Result<VersionView> {
    let into = match (request.package_id, &request.package_name) {
        (None, None) => Destination::Package(Version::find(conn, id).await?.package()),
        (Some(package), None) => Destination::Package(package),
        (None, Some(name)) => Destination::New(name),
        (Some(_), Some(_)) => return Err(invalid("package_id", "give `package_id` or `package_name`, not both")),
    };
    copy(conn, state, user, id, into, request.change_summary, key).await
}

async fn copy(
    conn: &mut Conn,
    state: &AppState,
    user: UserId,
    id: VersionId,
    into: Destination<'_>,
    summary: Option<String>,
    key: Option<&IdempotencyKey>,
) -> Result<VersionView> {
    check_texts(None, summary.as_deref())?;
    if let Some(reply) = idempotency::claim(conn, user, key).await? {
        return Ok(reply);
    }
    let parent = Version::find(conn, id).await?;
    if parent.status.0 == VersionStatus::Draft {
        let detail = format!("`{}` is a draft, which may still change; publish it first", parent.name);
        return Err(Error::refused(Code::Conflict, detail));
    }
    let package = match into {
        Destination::Package(package) => package,
        Destination::New(name) => new_package(conn, user, name).await?,
    };
    let package = Package::lock(conn, package).await?;
    let summary = summary.unwrap_or_else(|| format!("from {}", parent.name));
    let draft = Draft { name: None, change_summary: Some(summary), steps: parent.steps()? };
    let row = insert_draft(conn, user, package, Some(id), draft).await?;
    let view = view(conn, state, row).await?;
    idempotency::keep(conn, user, key, &view).await?;
    Ok(view)
}

pub async fn compare(conn: &mut Conn, a: VersionId, b: VersionId) -> Result<Comparison> {
    let (a, b) = (Version::find(conn, a).await?, Version::find(conn, b).await?);
    Ok(Comparison { changes: compare::changes(&a.steps()?, &b.steps()?)?, a: a.reference(), b: b.reference() })
}
