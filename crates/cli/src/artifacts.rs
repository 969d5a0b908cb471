//! `hone artifacts`: what jobs made.

use crate::{
    api::Api,
    args::ArtifactsCommand,
    context::Context,
    error::{CliError, CliResult},
    transfer::download_all,
    ui,
};
use std::path::Path;
use wire::{
    artifact::{ArtifactKind, ModelArtifactView},
    ids::ArtifactId,
};

pub async fn run(context: &Context, command: ArtifactsCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        ArtifactsCommand::Ls => ls(context, &api).await,
        ArtifactsCommand::Download { id, dir } => download(context, &api, id, &dir).await,
    }
}

async fn ls(context: &Context, api: &Api) -> CliResult {
    let artifacts = api.model_artifacts().await?;
    context.ui.show(&artifacts, |ui| {
        if artifacts.is_empty() {
            return ui.line("no artifacts yet; a job that succeeds leaves one");
        }
        let rows = artifacts.iter().map(|a| {
            let base = format!("{}@{}", a.base_model, a.base_revision.chars().take(12).collect::<String>());
            vec![a.id.to_string(), a.name.clone(), kind(a).into(), base, ui::bytes(a.size), ui::ago(a.created_at)]
        });
        ui.line(ui::table(&["id", "name", "kind", "base model", "size", "created"], &[4], rows));
    });
    Ok(())
}

const fn kind(artifact: &ModelArtifactView) -> &'static str {
    match artifact.kind {
        ArtifactKind::Adapter => "adapter",
        ArtifactKind::Model => "model",
        ArtifactKind::Gguf => "gguf",
    }
}

async fn download(context: &Context, api: &Api, id: ArtifactId, dir: &Path) -> CliResult {
    let files = api.download_artifact(id).await?.files;
    std::fs::create_dir_all(dir).map_err(|e| CliError::file("create the directory", dir, &e))?;
    let bar = context.ui.byte_bar(files.iter().map(|f| f.size).sum(), "downloading");
    let transferred = download_all(&files, dir, &bar, async || Ok(api.download_artifact(id).await?.files)).await?;
    bar.finish_and_clear();
    let there = files.len().saturating_sub(transferred);
    context.ui.show(&files, |ui| {
        ui.line(format!("{transferred} files downloaded to {}, {there} were there already", dir.display()));
    });
    Ok(())
}
