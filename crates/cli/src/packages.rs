//! `hone packages`.

use crate::{
    api::Api,
    args::PackagesCommand,
    context::Context,
    error::{CliError, CliResult, Exit},
    train,
    ui::{self, Style, paint},
};
use std::path::Path;
use wire::{
    TrainingConfig,
    package::{
        AutoSave, DatasetChoice, DatasetStep, DeployStep, DeployTarget, Draft, LaunchVersion, ModelStep, PackageView,
        Steps, Summary, VersionStatus, VersionView,
    },
};

pub async fn run(context: &Context, command: PackagesCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        PackagesCommand::Ls => ls(context, &api).await,
        PackagesCommand::Show { name } => show(context, &api, &name).await,
        PackagesCommand::Draft { name, config, summary } => draft(context, &api, name, &config, summary).await,
        PackagesCommand::Publish { name, summary } => publish(context, &api, &name, summary).await,
        PackagesCommand::Launch { version, follow, max_attempts } => {
            let version = find(&api, &version).await?;
            let job = api.launch_version(version.id, &LaunchVersion { name: None, max_attempts }).await?;
            train::created(context, &api, job, follow).await
        }
    }
}

async fn ls(context: &Context, api: &Api) -> CliResult {
    let packages = api.packages().await?;
    context.ui.show(&packages, |ui| {
        if packages.is_empty() {
            return ui.line("no packages; `hone packages draft NAME CONFIG.yaml` makes one");
        }
        let row = |p: &PackageView| {
            let latest = match p.latest_published_version {
                0 => String::new(),
                number => format!("v{number}"),
            };
            vec![p.name.clone(), p.version_count.to_string(), latest, ui::ago(p.updated_at)]
        };
        ui.line(ui::table(&["name", "versions", "published", "changed"], &[1], packages.iter().map(row)));
    });
    Ok(())
}

async fn show(context: &Context, api: &Api, name: &str) -> CliResult {
    let package = api.package(name).await?;
    let versions = api.versions(package.id).await?;
    context.ui.show(&serde_json::json!({"package": package, "versions": versions}), |ui| {
        let mut rows = vec![("name", package.name.clone()), ("id", package.id.to_string())];
        if !package.description.is_empty() {
            rows.push(("description", package.description.clone()));
        }
        ui.line(ui::fields(&rows));
        let row = |v: &VersionView| {
            let model = v.steps.model.as_ref().map(|m| m.name.clone()).unwrap_or_default();
            let training = serde_json::to_value(v.training.status).ok();
            let training = training.and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default();
            let summary = v.change_summary.clone().unwrap_or_default();
            vec![v.name.clone(), status(v.status), model, training, ui::ago(v.created_at), summary]
        };
        let header = ["version", "status", "model", "training", "created", "what is different"];
        ui.line(format!("\n{}", ui::table(&header, &[], versions.iter().map(row))));
    });
    Ok(())
}

fn status(status: VersionStatus) -> String {
    let style = match status {
        VersionStatus::Draft => Style::Yellow,
        VersionStatus::Published => Style::Green,
        VersionStatus::Archived => Style::Cyan,
    };
    paint(status.as_str(), style)
}

async fn draft(context: &Context, api: &Api, name: String, config: &Path, summary: Option<String>) -> CliResult {
    let steps = steps(api, config).await?;
    let draft = Draft { name: None, change_summary: summary, steps };
    let saved = api.save_version(&AutoSave { package_name: Some(name.clone()), draft, ..AutoSave::default() }).await?;
    context.ui.show(&saved, |ui| {
        ui.line(format!("draft {} of {name}", saved.name));
        let found = saved.validation.clone().unwrap_or_default();
        for error in &found.errors {
            ui.line(format!("  {}: {}", error.path, error.message));
        }
        for warning in &found.warnings {
            ui.line(format!("  {}: {} {}", warning.path, warning.message, paint("(warning)", Style::Yellow)));
        }
        ui.line(format!("\npublish it   hone packages publish {name}"));
    });
    Ok(())
}

/// A training configuration as the four steps; it is to be deployed here.
async fn steps(api: &Api, path: &Path) -> CliResult<Steps> {
    let mut config = train::read(path)?;
    let parsed = TrainingConfig::from_value(&config)?;
    let dataset = api.dataset(&parsed.dataset).await?;
    if let Some(fields) = config.as_object_mut() {
        // Every job gets the name of its version.
        for elsewhere in ["model", "dataset", "name"] {
            fields.remove(elsewhere);
        }
    }
    let (model, revision) = parsed.model_ref();
    let chosen = DatasetChoice { id: dataset.id, name: Some(dataset.name), rows: None, size: None };
    Ok(Steps {
        model: Some(ModelStep { name: model.to_owned(), revision: revision.map(str::to_owned), size: None }),
        config: Some(config),
        dataset: Some(DatasetStep { datasets: vec![chosen], train_split: None }),
        deploy: Some(DeployStep { target: Some(DeployTarget::Local), ..DeployStep::default() }),
    })
}

async fn publish(context: &Context, api: &Api, name: &str, summary: Option<String>) -> CliResult {
    let package = api.package(name).await?;
    let newest = api.versions(package.id).await?.into_iter().find(|v| v.status == VersionStatus::Draft);
    let draft = newest.ok_or_else(|| {
        CliError::new(Exit::NotFound, format!("the package `{name}` has no draft"))
            .hint("`hone packages draft NAME CONFIG.yaml` makes one")
    })?;
    let published = api.publish_version(draft.id, &Summary { change_summary: summary }).await?;
    context.ui.show(&published, |ui| {
        ui.line(format!("published {}; it never changes again", published.name));
        ui.line(format!("\ntrain it   hone packages launch {name} --follow"));
    });
    Ok(())
}

/// The version that `NAME@NUMBER` names, or the newest published one of `NAME`.
async fn find(api: &Api, text: &str) -> CliResult<VersionView> {
    let numbered = text.rsplit_once('@').and_then(|(name, number)| Some((name, number.parse::<u32>().ok()?)));
    let (name, number) = numbered.map_or((text, None), |(name, number)| (name, Some(number)));
    let package = api.package(name).await?;
    let wanted = |v: &VersionView| match number {
        Some(number) => v.version_number == Some(number),
        None => v.status == VersionStatus::Published && v.version_number == Some(package.latest_published_version),
    };
    let found = api.versions(package.id).await?.into_iter().find(wanted);
    found.ok_or_else(|| match number {
        Some(number) => CliError::new(Exit::NotFound, format!("the package `{name}` has no version {number}"))
            .hint(format!("`hone packages show {name}` lists its versions")),
        None => CliError::new(Exit::NotFound, format!("the package `{name}` has no published version"))
            .hint(format!("`hone packages publish {name}` publishes its newest draft")),
    })
}
