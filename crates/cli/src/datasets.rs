//! `hone datasets`.

use crate::{
    api::Api,
    args::{DatasetsCommand, SplitArg, SplitArgs, UploadArgs},
    context::Context,
    error::{CliError, CliResult, Exit},
    transfer::{put_sessions, sha256_file},
    ui,
};
use futures::TryStreamExt;
use indicatif::ProgressBar;
use reqwest::{Method, multipart};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio_util::io::ReaderStream;
use wire::{
    Code, Problem,
    dataset::{
        CreateDataset, CreateDatasetFile, DatasetFormat, DatasetStatus, DatasetView, Split, SplitDataset,
        ValidationReport,
    },
    model::is_valid_name,
};

/// A small upload over a slow line, and its validation.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// Files of more bytes than this together go in parts, which can be resumed.
const IN_ONE_PIECE: u64 = 8 << 20;

pub async fn run(context: &Context, command: DatasetsCommand) -> CliResult {
    match command {
        DatasetsCommand::Upload(args) => upload(context, &args).await,
        DatasetsCommand::Validate { file } => validate(context, &file),
        DatasetsCommand::Ls => ls(context).await,
        DatasetsCommand::Show { name } => show(context, &name).await,
        DatasetsCommand::Preview { name, limit, split } => preview(context, &name, limit, split).await,
        DatasetsCommand::Split(args) => split(context, args).await,
        DatasetsCommand::Rm { name } => rm(context, &name).await,
    }
}

async fn upload(context: &Context, args: &UploadArgs) -> CliResult {
    if !is_valid_name(&args.name) {
        return Err(CliError::invalid(format!("`{}` is no name for a dataset", args.name))
            .hint("use letters, digits, `.`, `_` and `-`, at most 96 of them, beginning with a letter or digit"));
    }
    let files: Vec<(Split, &Path)> = [(Split::Train, Some(&args.file)), (Split::Validation, args.validation.as_ref())]
        .into_iter()
        .filter_map(|(split, path)| Some((split, path?.as_path())))
        .collect();
    let mut total = 0_u64;
    for (_, path) in &files {
        total = total.saturating_add(size(path)?);
    }
    let begun = Instant::now();
    let view = if total <= IN_ONE_PIECE {
        send_form(context, &args.name, &files, total).await?
    } else {
        send_parts(context, &args.name, &files, total).await?
    };
    context.ui.show(&view, |ui| {
        ui.line(format!("uploaded {} ({}) in {}\n", view.name, ui::bytes(total), ui::duration(begun.elapsed())));
        ui.line(describe(&view));
        ui.line(format!("\nuse it with `dataset: {}` in a training configuration", view.name));
    });
    Ok(())
}

/// One request.
async fn send_form(context: &Context, name: &str, files: &[(Split, &Path)], total: u64) -> CliResult<DatasetView> {
    let client = context.client()?;
    let bar = context.ui.byte_bar(total, "uploading");
    let mut form = multipart::Form::new().text("name", name.to_owned());
    for (split, path) in files {
        let field = if *split == Split::Train { "file" } else { "validation" };
        form = form.part(field, part(path, &bar).await?);
    }
    let request = client.request(Method::POST, "/datasets/upload")?.timeout(UPLOAD_TIMEOUT).multipart(form);
    let sent = client.send(request).await;
    bar.finish_and_clear();
    let broken_off = |error: service::ClientError| {
        let lost = error.status().is_none();
        let mut error = CliError::from(error);
        if let (true, Some((_, path))) = (lost, files.first()) {
            error.message = format!("uploading {}: {}", path.display(), error.message);
        }
        error
    };
    sent.map_err(broken_off)?.json().await.map_err(|e| CliError::failed(format!("the reply cannot be read: {e}")))
}

/// Parts straight to storage; the same command again goes on where this one stopped.
async fn send_parts(context: &Context, name: &str, files: &[(Split, &Path)], total: u64) -> CliResult<DatasetView> {
    let api = Api { client: context.client()? };
    let bar = context.ui.byte_bar(total, "hashing");
    let hashed = files.iter().map(|(split, path)| {
        let sha256 = sha256_file(path, &bar).map_err(|e| CliError::file("read", path, &e))?;
        let filename = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(CreateDatasetFile { split: *split, filename, size: size(path)?, sha256: Some(sha256) })
    });
    let body = CreateDataset { name: name.to_owned(), files: hashed.collect::<CliResult<_>>()? };
    bar.finish_and_clear();
    let bar = context.ui.byte_bar(total, "uploading");
    let created = api.create_dataset(&body).await?;
    let put = put_sessions(
        (created.uploads, total),
        &bar,
        |session| {
            // `…/train.jsonl` or `…/validation.jsonl`
            let file = session.key.rsplit('/').next().unwrap_or_default();
            let of = |split: &Split| file.starts_with(if *split == Split::Train { "train." } else { "validation." });
            files.iter().find(|(split, _)| of(split)).map(|(_, path)| *path)
        },
        async || Ok(api.dataset_uploads(name).await?.uploads),
    );
    put.await?;
    bar.finish_and_clear();
    context.ui.note("  checking");
    api.complete_dataset(created.dataset.id).await
}

fn size(path: &Path) -> CliResult<u64> {
    let meta = std::fs::metadata(path).map_err(|e| CliError::file("read", path, &e))?;
    if meta.is_dir() {
        return Err(CliError::invalid(format!("{} is a directory; give a file", path.display())));
    }
    if meta.len() == 0 {
        return Err(CliError::invalid(format!("{} is empty", path.display())));
    }
    Ok(meta.len())
}

/// A form field that streams the file and moves the bar.
async fn part(path: &Path, bar: &ProgressBar) -> CliResult<multipart::Part> {
    let size = size(path)?;
    let file = tokio::fs::File::open(path).await.map_err(|e| CliError::file("read", path, &e))?;
    let bar = bar.clone();
    let stream = ReaderStream::with_capacity(file, 256 << 10).inspect_ok(move |chunk| {
        bar.inc(u64::try_from(chunk.len()).unwrap_or(0));
    });
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(multipart::Part::stream_with_length(reqwest::Body::wrap_stream(stream), size).file_name(name))
}

fn validate(context: &Context, path: &Path) -> CliResult {
    let size = size(path)?;
    let file = std::fs::File::open(path).map_err(|e| CliError::file("read", path, &e))?;
    let bar = context.ui.byte_bar(size, "checking");
    let report = dataset::validate(bar.wrap_read(file), None, None).map_err(|e| CliError::file("read", path, &e))?;
    bar.finish_and_clear();
    if !report.is_valid() {
        return Err(invalid(path, &report));
    }
    context.ui.show(&report, |ui| {
        ui.line(format!("{} is valid\n", path.display()));
        ui.line(ui::fields(&[
            ("format", format_name(report.format).into()),
            ("rows", rows(&report)),
            ("size", ui::bytes(report.bytes)),
        ]));
    });
    Ok(())
}

fn invalid(path: &Path, report: &ValidationReport) -> CliError {
    let shown = report.errors.len();
    let what = match report.error_count {
        0 => "it holds no rows".to_owned(),
        1 => "1 error".to_owned(),
        n if usize::try_from(n).is_ok_and(|n| n > shown) => format!("{n} errors, the first {shown} of them"),
        n => format!("{n} errors"),
    };
    let detail = format!("{} is no valid dataset ({}): {what}", path.display(), format_name(report.format));
    let errors = report.errors.iter().cloned().map(Into::into).collect();
    let mut error = CliError::from(Problem::new(Code::DatasetInvalid, detail));
    error.errors = errors;
    debug_assert_eq!(error.exit, Exit::Invalid);
    error
}

fn rows(report: &ValidationReport) -> String {
    match report.duplicates {
        0 => report.rows.to_string(),
        1 => format!("{} (1 duplicate)", report.rows),
        n => format!("{} ({n} duplicates)", report.rows),
    }
}

async fn ls(context: &Context) -> CliResult {
    let datasets = Api { client: context.client()? }.datasets().await?;
    context.ui.show(&datasets, |ui| {
        if datasets.is_empty() {
            return ui.line("no datasets yet; `hone datasets upload FILE --name NAME` adds one");
        }
        let rows = datasets.iter().map(|d| {
            vec![
                d.name.clone(),
                status(d.status).into(),
                d.format.map(format_name).unwrap_or_default().into(),
                split_rows(d, Split::Train),
                split_rows(d, Split::Validation),
                ui::bytes(d.size),
                ui::ago(d.created_at),
            ]
        });
        ui.line(ui::table(&["name", "status", "format", "rows", "validation", "size", "created"], &[3, 4, 5], rows));
    });
    Ok(())
}

async fn show(context: &Context, name: &str) -> CliResult {
    let dataset = Api { client: context.client()? }.dataset(name).await?;
    context.ui.show(&dataset, |ui| ui.line(describe(&dataset)));
    Ok(())
}

async fn split(context: &Context, args: SplitArgs) -> CliResult {
    let SplitArgs { name, ratio, seed, file, train_name, validation_name } = args;
    let body = SplitDataset { ratio, seed, file: part_of(file), train_name, validation_name };
    let made = Api { client: context.client()? }.split_dataset(&name, &body).await?;
    context.ui.show(&made, |ui| {
        for dataset in [&made.train, &made.validation] {
            ui.line(format!("made {} with {} rows", dataset.name, dataset.rows));
        }
        let names = (&made.train.name, &made.validation.name);
        ui.line(format!("\nuse them with `dataset: {}` and `validation_dataset: {}`", names.0, names.1));
    });
    Ok(())
}

const fn part_of(split: SplitArg) -> Split {
    match split {
        SplitArg::Train => Split::Train,
        SplitArg::Validation => Split::Validation,
    }
}

async fn preview(context: &Context, name: &str, limit: u16, split: SplitArg) -> CliResult {
    let split = part_of(split);
    let preview = Api { client: context.client()? }.preview(name, limit, split).await?;
    context.ui.show(&preview, |ui| {
        for (i, row) in preview.rows.iter().enumerate() {
            let number = ui::paint(&format!("── {} ", i.saturating_add(1)), ui::Style::Dim);
            ui.line(format!("{number}\n{}", render_row(row)));
        }
    });
    Ok(())
}

/// A chat row as a conversation, anything else as what it is.
fn render_row(row: &serde_json::Value) -> String {
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    if let Some(messages) = row.get("messages").and_then(|m| m.as_array()) {
        let line = |m: &serde_json::Value| {
            let role = m.get("role").map(text).unwrap_or_default();
            format!("{:<10} {}", ui::paint(&role, ui::Style::Cyan), m.get("content").map(text).unwrap_or_default())
        };
        return messages.iter().map(line).collect::<Vec<_>>().join("\n");
    }
    match row.as_object() {
        Some(fields) => {
            let line = |(key, value): (&String, &serde_json::Value)| {
                format!("{} {}", ui::paint(key, ui::Style::Cyan), text(value))
            };
            fields.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        None => text(row),
    }
}

async fn rm(context: &Context, name: &str) -> CliResult {
    Api { client: context.client()? }.delete_dataset(name).await?;
    context.ui.show(&serde_json::json!({"deleted": name}), |ui| ui.line(format!("deleted {name}")));
    Ok(())
}

const fn status(status: DatasetStatus) -> &'static str {
    match status {
        DatasetStatus::Uploading => "uploading",
        DatasetStatus::Validating => "validating",
        DatasetStatus::Ready => "ready",
        DatasetStatus::Invalid => "invalid",
    }
}

/// As users call it.
#[must_use]
pub const fn format_name(format: DatasetFormat) -> &'static str {
    match format {
        DatasetFormat::ChatJsonl => "chat JSONL",
        DatasetFormat::InstructionJsonl => "instruction JSONL",
        DatasetFormat::PreferenceJsonl => "preference JSONL",
        DatasetFormat::LabelledJsonl => "labelled JSONL",
        DatasetFormat::Text => "text",
    }
}

fn split_rows(dataset: &DatasetView, split: Split) -> String {
    let rows: u64 = dataset.files.iter().filter(|f| f.split == split).map(|f| f.report.rows).sum();
    if rows == 0 { "–".into() } else { rows.to_string() }
}

fn describe(dataset: &DatasetView) -> String {
    let mut lines = vec![
        ("name", dataset.name.clone()),
        ("id", dataset.id.to_string()),
        ("status", status(dataset.status).into()),
        ("format", dataset.format.map(format_name).unwrap_or("unknown").into()),
    ];
    if let Some(origin) = &dataset.origin {
        let part = match origin.part {
            Split::Train => origin.ratio,
            Split::Validation => 1.0 - origin.ratio,
        };
        lines.push(("made of", format!("{:.1} % of {}, seed {}", part * 100.0, origin.dataset_id, origin.seed)));
    }
    for file in &dataset.files {
        let label = match file.split {
            Split::Train => "training",
            Split::Validation => "validation",
        };
        let mut text = format!("{} rows, {}", rows(&file.report), ui::bytes(file.size));
        if !file.report.is_valid() {
            let count = file.report.error_count;
            text = format!("{count} {} in {}", if count == 1 { "error" } else { "errors" }, ui::bytes(file.size));
            for e in file.report.errors.iter().cloned().map(wire::problem::FieldError::from) {
                text.push_str(&format!("\n{}: {}", e.path, e.message));
            }
        }
        lines.push((label, text));
    }
    lines.push(("created", ui::ago(dataset.created_at)));
    ui::fields(&lines)
}
