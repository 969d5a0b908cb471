//! `hone models`: the registry of base models.

mod check;
mod hub;

use crate::{
    api::Api,
    args::{ImportArgs, ModelsCommand},
    context::Context,
    error::{CliError, CliResult},
    transfer::{put_sessions, sha256_file},
    ui::{self, Ui},
};
use check::LocalFile;
use std::time::Instant;
use wire::model::{CreateModel, ModelFile, ModelStatus, ModelView, is_valid_name, revision};

pub async fn run(context: &Context, command: ModelsCommand) -> CliResult {
    match command {
        ModelsCommand::Import(args) => import(context, &args).await,
        ModelsCommand::Search(args) => hub::search(context, &args).await,
        ModelsCommand::Pull(args) => hub::pull(context, &args).await,
        ModelsCommand::Ls => ls(context).await,
        ModelsCommand::Show { name } => show(context, &name).await,
    }
}

async fn import(context: &Context, args: &ImportArgs) -> CliResult {
    let ui = context.ui;
    if !is_valid_name(&args.name) {
        return Err(CliError::invalid(format!("`{}` is no name for a model", args.name))
            .hint("use letters, digits, `.`, `_` and `-`, at most 96 of them, beginning with a letter or digit"));
    }
    let files = check::model_dir(&args.path, args.skip_pickle, ui)?;
    let api = Api { client: context.client()? };
    let begun = Instant::now();
    let hashed = hash(&files, ui)?;
    let body = CreateModel { name: args.name.clone(), files: hashed };
    let revision = revision(&body.files);
    let total: u64 = body.files.iter().map(|f| f.size).sum();
    let view = upload(&api, &body, &files, ui).await?;
    let view = match view {
        Some(view) => view,
        None => {
            ui.note("  checking");
            api.complete_model(&args.name, &revision).await?
        }
    };
    ui.show(&view, |ui| {
        let size = format!("{} files, {}", body.files.len(), ui::bytes(total));
        ui.line(format!("imported {}@{} ({size}) in {}\n", view.name, view.revision, ui::duration(begun.elapsed())));
        ui.line(describe(&view));
        ui.line(format!("\nuse it with `model: {}` in a training configuration", view.name));
    });
    Ok(())
}

fn hash(files: &[LocalFile], ui: Ui) -> CliResult<Vec<ModelFile>> {
    let total = files.iter().map(|f| f.size).sum();
    let bar = ui.byte_bar(total, "hashing");
    let hashed = files.iter().map(|f| {
        let sha256 = sha256_file(&f.source, &bar).map_err(|e| CliError::file("read", &f.source, &e))?;
        Ok(ModelFile { path: f.path.clone(), size: f.size, sha256 })
    });
    let hashed: CliResult<Vec<ModelFile>> = hashed.collect();
    bar.finish_and_clear();
    hashed
}

/// Puts what the registry does not have. `Some` when this revision was complete already.
async fn upload(api: &Api, body: &CreateModel, files: &[LocalFile], ui: Ui) -> CliResult<Option<ModelView>> {
    let total = body.files.iter().map(|f| f.size).sum();
    let created = api.create_model(body).await?;
    if created.uploads.is_empty() {
        return Ok((created.model.status == ModelStatus::Ready).then_some(created.model));
    }
    let bar = ui.byte_bar(total, "uploading");
    let put = put_sessions(
        (created.uploads, total),
        &bar,
        |session| {
            // A session names its object's key: `models/{name}/{revision}/` and the file's path.
            let path = session.key.splitn(4, '/').nth(3).unwrap_or(&session.key);
            files.iter().find(|f| f.path == path).map(|f| f.source.as_path())
        },
        async || Ok(api.create_model(body).await?.uploads),
    );
    let put = put.await;
    bar.finish_and_clear();
    put.map(|()| None)
}

async fn ls(context: &Context) -> CliResult {
    let models = Api { client: context.client()? }.models().await?;
    context.ui.show(&models, |ui| {
        if models.is_empty() {
            return ui.line("no models yet; `hone models import DIR --name NAME` adds one");
        }
        let rows = models.iter().map(|m| {
            let info = m.info.as_ref();
            vec![
                m.name.clone(),
                m.revision.clone(),
                status(m.status).into(),
                info.map(|i| i.architecture.clone()).unwrap_or_default(),
                info.map(|i| ui::count(i.parameters)).unwrap_or_default(),
                ui::bytes(m.size),
                ui::ago(m.created_at),
            ]
        });
        ui.line(ui::table(
            &["name", "revision", "status", "architecture", "parameters", "size", "created"],
            &[4, 5],
            rows,
        ));
    });
    Ok(())
}

async fn show(context: &Context, name: &str) -> CliResult {
    let model = Api { client: context.client()? }.model(name).await?;
    context.ui.show(&model, |ui| {
        ui.line(describe(&model));
        let rows =
            model.files.iter().map(|f| vec![f.path.clone(), ui::bytes(f.size), f.sha256.chars().take(16).collect()]);
        ui.line(format!("\n{}", ui::table(&["file", "size", "sha256"], &[1], rows)));
    });
    Ok(())
}

const fn status(status: ModelStatus) -> &'static str {
    match status {
        ModelStatus::Uploading => "uploading",
        ModelStatus::Ready => "ready",
    }
}

fn describe(model: &ModelView) -> String {
    let mut rows = vec![
        ("name", format!("{}@{}", model.name, model.revision)),
        ("status", status(model.status).into()),
        ("size", ui::bytes(model.size)),
    ];
    if let Some(info) = &model.info {
        let template = if info.has_chat_template { "yes" } else { "no" };
        rows.extend([
            ("architecture", info.architecture.clone()),
            ("parameters", format!("{} ({})", ui::count(info.parameters), info.dtype)),
            ("vocabulary", ui::count(info.vocab_size)),
            ("context", format!("{} tokens", info.context_length)),
            ("chat template", template.into()),
        ]);
    }
    ui::fields(&rows)
}
