//! `hone train`: a configuration file becomes a job.

use crate::{
    api::{Api, short},
    args::TrainArgs,
    context::Context,
    error::{CliError, CliResult},
    follow, ui,
};
use serde_json::{Map, Value};
use std::{io::Read, path::Path, time::Duration};
use wire::{
    JobView, TrainingConfig,
    estimate::{Basis, JobEstimate},
    job::{CreateJob, TrainerKind},
};

pub async fn train(context: &Context, args: &TrainArgs) -> CliResult {
    let mut config = read(&args.config)?;
    for assignment in &args.set {
        assign(&mut config, assignment)?;
    }
    // The server checks it again, and against model and dataset; this needs no server.
    TrainingConfig::from_value(&config)?;
    let api = Api { client: context.client()? };
    let request = CreateJob {
        config,
        max_attempts: args.max_attempts,
        trainer: TrainerKind::Candle,
        gpu_config: args.gpu_config.clone(),
        budget_limit: args.budget,
    };
    if args.estimate {
        let told = api.estimate(&request).await?;
        context.ui.show(&told, |ui| ui.line(table(&told)));
        return if told.fits { Ok(()) } else { Err(CliError::invalid("the job does not fit into memory")) };
    }
    let job = api.create_job(&request).await?;
    created(context, &api, job, args.follow).await
}

/// Says that a job was created, and follows it if that is wanted.
pub async fn created(context: &Context, api: &Api, job: JobView, follow: bool) -> CliResult {
    if follow {
        let id = short(job.id);
        context.ui.note(format!(
            "{} as job {id}: {} on {}",
            ui::paint_err("created", ui::Style::Bold),
            job.model,
            job.dataset
        ));
        return follow::follow(context, api, job).await;
    }
    context.ui.show(&job, |ui| {
        let id = short(job.id);
        ui.line(format!("created job {id}: {} on {}", job.model, job.dataset));
        ui.line(format!("\nwatch it   hone jobs show {id} --follow\nstop it    hone jobs cancel {id}"));
    });
    Ok(())
}

/// One line for each thing that is known.
fn table(told: &JobEstimate) -> String {
    let at_least = if told.basis == Basis::Shapes { "at least " } else { "" };
    let limit = told.memory_limit_bytes.map(|n| format!(" of {}", ui::bytes(n))).unwrap_or_default();
    let trained = told.trainable_parameters.zip(told.total_parameters);
    let seconds = |s: f64| ui::duration(Duration::from_secs_f64(s.max(0.0)));
    let lines = [
        trained.map(|(some, all)| format!("parameters  {some} of {all} are trained")),
        told.total_steps.zip(told.total_tokens).map(|(n, tokens)| format!("steps       {n}, {tokens} tokens")),
        told.peak_memory_bytes.map(|n| format!("memory      {at_least}{}{limit}", ui::bytes(n))),
        told.train_seconds.map(|s| format!("training    {}", seconds(s))),
        told.total_seconds.map(|s| format!("everything  {}", seconds(s))),
        told.cost.map(|amount| format!("cost        {}", ui::money(amount, &told.currency))),
        told.note.clone(),
    ];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// A configuration file as a mapping; `-` is standard input.
pub fn read(path: &Path) -> CliResult<Value> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|e| CliError::file("read", path, &e))?;
    let value: Value = serde_yaml_ng::from_str(&text)
        .map_err(|e| CliError::invalid(format!("{} is not valid YAML: {e}", path.display())))?;
    match value {
        Value::Object(_) => Ok(value),
        Value::Null => Err(CliError::invalid(format!("{} is empty", path.display()))
            .hint("`hone train --help` shows a small configuration")),
        _ => Err(CliError::invalid(format!("{} is no mapping of keys to values", path.display()))
            .hint("`hone train --help` shows a small configuration")),
    }
}

/// Sets `a.b.c=value`; the value is YAML.
fn assign(config: &mut Value, assignment: &str) -> CliResult {
    let wrong = |why: &str| {
        CliError::invalid(format!("--set {assignment}: {why}")).hint("write it as --set training.max_steps=10")
    };
    let (path, value) = assignment.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    if path.is_empty() || path.split('.').any(str::is_empty) {
        return Err(wrong("the key is empty"));
    }
    let value: Value = serde_yaml_ng::from_str(value).map_err(|e| wrong(&e.to_string()))?;
    let mut place = config;
    for key in path.split('.') {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(map) = place else {
            return Err(wrong(&format!("`{key}` would be inside of something that is no mapping")));
        };
        place = map.entry(key).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn set_changes_and_adds_nested_values() {
        let mut config = json!({"model": "m", "training": {"seed": 1}});
        for a in ["training.seed=7", "training.max_steps=10", "lora.target_modules=[q_proj, v_proj]", "model=n"] {
            assign(&mut config, a).unwrap();
        }
        assert_eq!(
            config,
            json!({"model": "n", "training": {"seed": 7, "max_steps": 10}, "lora": {"target_modules": ["q_proj", "v_proj"]}})
        );
    }

    #[test]
    fn a_wrong_set_says_how_to_write_it() {
        let error = assign(&mut json!({}), "training.max_steps").unwrap_err().to_string();
        assert_eq!(error, "--set training.max_steps: there is no `=`\nhint: write it as --set training.max_steps=10");
        assert!(assign(&mut json!({"model": "m"}), "model.name=x").is_err());
    }
}
