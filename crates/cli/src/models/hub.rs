//! `hone models search` and `hone models pull`: the Hugging Face Hub, by way of the server.

use crate::{
    api::Api,
    args::{PullArgs, SearchArgs},
    context::Context,
    error::{CliError, CliResult},
    ui,
};
use std::time::{Duration, Instant};
use wire::hub::{HubModel, PullModel, PullStatus, PullView};

const POLL: Duration = Duration::from_millis(300);

pub async fn search(context: &Context, args: &SearchArgs) -> CliResult {
    let found = Api { client: context.client()? }.search_models(args).await?.items;
    context.ui.show(&found, |ui| {
        if found.is_empty() {
            return ui.line("nothing found; try fewer words");
        }
        let kind = |m: &HubModel| m.pipeline_tag.clone().unwrap_or_default();
        let rows = found.iter().map(|m| {
            let gated = if m.gated { "gated" } else { "" };
            vec![m.id.clone(), kind(m), ui::count(m.downloads), ui::count(m.likes), gated.into()]
        });
        ui.line(ui::table(&["id", "task", "downloads", "likes", ""], &[2, 3], rows));
    });
    Ok(())
}

pub async fn pull(context: &Context, args: &PullArgs) -> CliResult {
    let api = Api { client: context.client()? };
    let body = PullModel { id: args.id.clone(), revision: args.revision.clone(), name: args.name.clone() };
    let begun = Instant::now();
    let mut pull = api.pull_model(&body).await?;
    let bar = context.ui.byte_bar(pull.bytes_total, "pulling");
    while !pull.status.is_over() {
        tokio::time::sleep(POLL).await;
        pull = api.model_pull(pull.id).await?;
        bar.set_length(pull.bytes_total);
        bar.set_position(pull.bytes_done);
        bar.set_message(pull.error.as_ref().map_or("pulling", |_| "waiting"));
    }
    bar.finish_and_clear();
    match pull.status {
        PullStatus::Succeeded => {}
        PullStatus::Cancelled => return Err(CliError::failed(format!("the pull of {} was cancelled", pull.repo))),
        PullStatus::Queued | PullStatus::Running | PullStatus::Failed => {
            let why = pull.error.clone().unwrap_or_default();
            return Err(CliError::failed(format!("cannot pull {}: {why}", pull.repo)));
        }
    }
    context.ui.show(&pull, |ui| ui.line(told(&pull, begun.elapsed())));
    Ok(())
}

fn told(pull: &PullView, took: Duration) -> String {
    let commit = pull.commit.as_deref().unwrap_or_default();
    let size = format!("{} files, {}", pull.files_total, ui::bytes(pull.bytes_total));
    let name = &pull.name;
    format!(
        "pulled {} as {name}@{commit} ({size}) in {}\n\nuse it with `model: {name}` in a training configuration",
        pull.repo,
        ui::duration(took)
    )
}
