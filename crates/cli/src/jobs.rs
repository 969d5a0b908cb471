//! `hone jobs`.

use crate::{
    api::{Api, short},
    args::JobsCommand,
    context::Context,
    dead_letters,
    error::{CliError, CliResult},
    follow,
    transfer::download_all,
    ui::{self, Style, paint},
};
use std::{path::Path, time::Duration};
use wire::{JobState, JobView, cost::UpdateJob, event::metric, job::MetricPoint};

const LOG_POLL: Duration = Duration::from_secs(1);

pub async fn run(context: &Context, command: JobsCommand) -> CliResult {
    let api = Api { client: context.client()? };
    match command {
        JobsCommand::Ls { state, limit } => ls(context, &api, state.as_deref(), limit.into()).await,
        JobsCommand::Show { id, follow: true } => {
            let job = api.find_job(&id).await?;
            follow::follow(context, &api, job).await
        }
        JobsCommand::Show { id, follow: false } => {
            let job = api.find_job(&id).await?;
            context.ui.show(&job, |ui| ui.line(describe(&job)));
            Ok(())
        }
        JobsCommand::DeadLetters(command) => dead_letters::run(context, &api, command).await,
        JobsCommand::Logs { id, follow } => logs(context, &api, &id, follow).await,
        JobsCommand::Metrics { id, after } => metrics(context, &api, &id, after).await,
        JobsCommand::Cancel { id } => act(context, &api, &id, "cancel").await,
        JobsCommand::Pause { id } => act(context, &api, &id, "pause").await,
        JobsCommand::Resume { id } => act(context, &api, &id, "resume").await,
        JobsCommand::Budget { id, amount } => budget(context, &api, &id, &amount).await,
        JobsCommand::Artifacts { id, download } => artifacts(context, &api, &id, download.as_deref()).await,
    }
}

async fn ls(context: &Context, api: &Api, state: Option<&str>, limit: usize) -> CliResult {
    if let Some(Err(why)) = state.map(str::parse::<JobState>) {
        let known = JobState::ALL.map(JobState::as_str).join(", ");
        return Err(CliError::invalid(why).hint(format!("the states are {known}")));
    }
    let jobs = api.jobs(state, limit).await?;
    context.ui.show(&jobs, |ui| {
        if jobs.is_empty() {
            return ui.line("no jobs; `hone train CONFIG.yaml` creates one");
        }
        let rows = jobs.iter().map(|j| {
            let p = &j.progress;
            let step = p.total_steps.map_or_else(|| p.step.to_string(), |t| format!("{}/{t}", p.step));
            let loss = |l: Option<f64>| l.map(|l| format!("{l:.4}")).unwrap_or_default();
            vec![
                short(j.id),
                j.name.clone(),
                state_text(j.state),
                step,
                loss(p.loss),
                loss(p.eval_loss),
                ui::ago(j.created_at),
            ]
        });
        ui.line(ui::table(&["id", "name", "state", "step", "loss", "eval loss", "created"], &[3, 4, 5], rows));
    });
    Ok(())
}

fn state_text(state: JobState) -> String {
    let style = match state {
        JobState::Succeeded => Style::Green,
        JobState::Failed => Style::Red,
        JobState::Cancelled | JobState::Cancelling | JobState::Paused | JobState::Pausing | JobState::RetryWait => {
            Style::Yellow
        }
        JobState::Validating | JobState::Queued | JobState::Starting | JobState::Running | JobState::Finalizing => {
            Style::Cyan
        }
    };
    paint(state.as_str(), style)
}

fn describe(job: &JobView) -> String {
    let p = &job.progress;
    let mut rows = vec![
        ("id", job.id.to_string()),
        ("name", job.name.clone()),
        ("state", state_text(job.state)),
        ("model", format!("{}@{}", job.model, job.model_revision)),
        ("dataset", job.dataset.clone()),
        ("attempt", format!("{} of {}", job.attempt, job.max_attempts)),
    ];
    let total = p.total_steps.map(|t| format!(" of {t}")).unwrap_or_default();
    let phase = p.phase.filter(|_| !job.state.is_terminal()).map(|f| format!(", {}", f.as_str())).unwrap_or_default();
    rows.push(("step", format!("{}{total} (epoch {:.2}{phase})", p.step, p.epoch)));
    rows.extend(p.loss.map(|l| ("training loss", format!("{l:.4}"))));
    if let Some(after) = p.eval_loss {
        let before = p.initial_eval_loss.map(|b| format!("{b:.4} → ")).unwrap_or_default();
        rows.push(("validation loss", format!("{before}{after:.4}")));
    }
    if !job.state.is_terminal() {
        rows.extend(p.tokens_per_second.map(|t| ("tokens/s", format!("{t:.0}"))));
        let eta = p.eta_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        rows.extend(eta.map(|d| ("ETA", ui::duration(d))));
        rows.extend(job.last_contact_at.map(|t| ("last contact", ui::ago(t))));
    }
    if let Some(failure) = &job.failure {
        let code =
            serde_json::to_value(failure.code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        rows.push(("failure", format!("{code}: {}", failure.message)));
    }
    rows.extend(job.pause.as_ref().map(|p| ("why", p.message.clone())));
    let cost = &job.cost;
    let money = |amount| ui::money(amount, &cost.currency);
    rows.extend(job.gpu_config.clone().map(|id| ("hardware", id)));
    if cost.price_per_hour > 0.0 || cost.budget_limit.is_some() {
        rows.extend(cost.estimated.map(|n| ("estimated cost", money(n))));
        let limit = cost.budget_limit.map(|n| format!(" of at most {}", money(n))).unwrap_or_default();
        rows.push(("cost", format!("{}{limit}", money(cost.actual.unwrap_or_default()))));
    }
    rows.push(("created", ui::ago(job.created_at)));
    rows.extend(follow::took(job).map(|d| ("took", ui::duration(d))));
    ui::fields(&rows)
}

async fn logs(context: &Context, api: &Api, id: &str, follow: bool) -> CliResult {
    let mut job = api.find_job(id).await?;
    let mut printed = String::new();
    loop {
        let text = api.logs(job.id).await?;
        // A log that was shortened meanwhile is printed whole.
        let new = text.strip_prefix(printed.as_str()).unwrap_or(&text);
        if !new.is_empty() {
            context.ui.part(new);
        }
        printed = text;
        if !follow || job.state.is_terminal() {
            return Ok(());
        }
        tokio::time::sleep(LOG_POLL).await;
        job = api.job(job.id).await?;
    }
}

async fn metrics(context: &Context, api: &Api, id: &str, after: Option<u64>) -> CliResult {
    let job = api.find_job(id).await?;
    let points = api.metrics(job.id, after).await?;
    context.ui.show(&points, |ui| {
        if points.is_empty() {
            return ui.line("no steps yet");
        }
        let columns = [
            ("loss", metric::TRAIN_LOSS, 4),
            ("eval loss", metric::EVAL_LOSS, 4),
            ("learning rate", metric::LEARNING_RATE, 7),
            ("grad norm", metric::GRAD_NORM, 3),
            ("tokens/s", metric::TOKENS_PER_SECOND, 0),
        ];
        let used: Vec<_> =
            columns.into_iter().filter(|(_, name, _)| points.iter().any(|p| p.values.contains_key(*name))).collect();
        let header: Vec<&str> = ["step", "epoch"].into_iter().chain(used.iter().map(|(label, _, _)| *label)).collect();
        let cell = |p: &MetricPoint, name: &str, digits: usize| {
            p.values.get(name).map(|v| format!("{v:.digits$}")).unwrap_or_default()
        };
        let rows = points.iter().map(|p| {
            let fixed = [p.step.to_string(), format!("{:.2}", p.epoch)];
            fixed.into_iter().chain(used.iter().map(|(_, name, digits)| cell(p, name, *digits))).collect()
        });
        ui.line(ui::table(&header, &[0, 1, 2, 3, 4, 5, 6], rows));
    });
    Ok(())
}

async fn act(context: &Context, api: &Api, id: &str, action: &str) -> CliResult {
    let job = api.find_job(id).await?;
    let job = api.job_action(job.id, action).await?;
    context.ui.show(&job, |ui| ui.line(format!("job {} is {}", short(job.id), state_text(job.state))));
    Ok(())
}

async fn budget(context: &Context, api: &Api, id: &str, amount: &str) -> CliResult {
    let limit = match amount {
        "none" => None,
        amount => {
            let read = amount.parse::<f64>();
            Some(read.map_err(|_| CliError::invalid(format!("`{amount}` is neither an amount nor `none`")))?)
        }
    };
    let job = api.find_job(id).await?;
    let job = api.update_job(job.id, &UpdateJob { budget_limit: Some(limit) }).await?;
    context.ui.show(&job, |ui| {
        let limit = limit.map_or_else(|| "no limit".to_owned(), |n| ui::money(n, &job.cost.currency));
        ui.line(format!("the limit of job {} is {limit}; it is {}", short(job.id), state_text(job.state)));
    });
    Ok(())
}

async fn artifacts(context: &Context, api: &Api, id: &str, download: Option<&Path>) -> CliResult {
    let job = api.find_job(id).await?;
    let artifacts = api.artifacts(job.id).await?;
    if artifacts.is_empty() {
        let id = short(job.id);
        let why = if job.state.is_terminal() { "it left no artifacts" } else { "it has not finished" };
        return Err(CliError::failed(format!("job {id} has nothing to download: {why} ({})", job.state)));
    }
    let total = artifacts.iter().map(|a| a.size).sum();
    let Some(dir) = download else {
        context.ui.show(&artifacts, |ui| {
            let rows = artifacts.iter().map(|a| vec![a.path.clone(), ui::bytes(a.size), a.sha256.clone()]);
            ui.line(ui::table(&["file", "size", "sha256"], &[1], rows));
            if let Some(place) = follow::location(&artifacts, &context.data_dir) {
                ui.line(format!("\nin {place}"));
            }
        });
        return Ok(());
    };
    std::fs::create_dir_all(dir).map_err(|e| CliError::file("create the directory", dir, &e))?;
    let bar = context.ui.byte_bar(total, "downloading");
    download_all(&artifacts, dir, &bar, async || api.artifacts(job.id).await).await?;
    bar.finish_and_clear();
    context.ui.show(
        &serde_json::json!({"directory": dir, "files": artifacts.iter().map(|a| &a.path).collect::<Vec<_>>()}),
        |ui| {
            ui.line(format!("{} files ({}) in {}, digests verified", artifacts.len(), ui::bytes(total), dir.display()));
        },
    );
    Ok(())
}
