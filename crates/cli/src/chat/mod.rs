//! `hone chat`: talk to what a job has trained, on this machine.
//!
//! Base model and adapter are downloaded once into a cache and checked by digest; `hone-trainer generate`
//! runs them.

mod generator;
mod layout;

use crate::{
    api::{Api, short},
    args::ChatArgs,
    context::{Context, sibling},
    error::{CliError, CliResult},
    transfer::download_all,
    ui::{Style, Ui, paint, paint_err},
};
use generator::{Answer, Generator, Message, Request};
use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};
use wire::{JobState, JobView, config::Method, job::ArtifactView};

/// Base and tuned model: one process with an adapter to switch, or two models.
struct Models {
    tuned: Generator,
    /// Only when the tuned model is no adapter and the base was asked for.
    base: Option<Generator>,
}

/// One side of a conversation.
#[derive(Default)]
struct Side {
    history: Vec<Message>,
}

struct Chat<'a> {
    args: &'a ChatArgs,
    ui: Ui,
    models: Models,
    /// Continue text instead of answering messages: the model was trained on plain text.
    plain: bool,
    tuned: Side,
    base: Side,
}

pub async fn chat(context: &Context, args: &ChatArgs) -> CliResult {
    let api = Api { client: context.client()? };
    let job = api.find_job(&args.job).await?;
    if job.state != JobState::Succeeded {
        return Err(CliError::failed(format!("job {} has no result to talk to: it is {}", short(job.id), job.state))
            .hint(format!("`hone jobs show {} --follow` watches it", short(job.id))));
    }
    let models = load(context, &api, &job, args.compare).await?;
    let plain = job.config.method == Method::Pretrain;
    let mut chat = Chat { args, ui: context.ui, models, plain, tuned: Side::default(), base: Side::default() };
    match &args.prompt {
        Some(prompt) => chat.once(prompt).await,
        None => chat.converse(&job).await,
    }
}

async fn load(context: &Context, api: &Api, job: &JobView, compare: bool) -> CliResult<Models> {
    let program = sibling(&context.env, "hone-trainer")?;
    let cache = cache_dir(context)?;
    let artifacts = api.artifacts(job.id).await?;
    let result = cache.join("jobs").join(job.id.to_string());
    fetch(context, &result, "result", async || api.artifacts(job.id).await).await?;
    let is_adapter = artifacts.iter().any(|a| a.path == "adapter_config.json");
    let mut base_dir: Option<PathBuf> = None;
    if is_adapter || compare {
        let dir = cache.join("models").join(&job.model).join(&job.model_revision);
        fetch(context, &dir, "base model", async || api.model_files(&job.model, &job.model_revision).await).await?;
        base_dir = Some(dir);
    }
    let start = |model: &Path, adapter: Option<&Path>| Generator::start(&context.env, &program, model, adapter);
    match base_dir {
        Some(base) if is_adapter => Ok(Models { tuned: start(&base, Some(&result))?, base: None }),
        Some(base) => Ok(Models { tuned: start(&result, None)?, base: Some(start(&base, None)?) }),
        None => Ok(Models { tuned: start(&result, None)?, base: None }),
    }
}

async fn fetch(
    context: &Context,
    dir: &Path,
    what: &str,
    list: impl AsyncFn() -> CliResult<Vec<ArtifactView>>,
) -> CliResult {
    let files = list().await?;
    let total = files.iter().map(|f| f.size).sum();
    let bar = context.ui.byte_bar(total, what);
    let result = download_all(&files, dir, &bar, list).await;
    bar.finish_and_clear();
    result.map(drop)
}

fn cache_dir(context: &Context) -> CliResult<PathBuf> {
    let home = |name: &str| context.env.get(name).map(PathBuf::from);
    let dir = home("HONE_CACHE_DIR")
        .or_else(|| home("XDG_CACHE_HOME").map(|d| d.join("hone")))
        .or_else(|| home("HOME").map(|d| d.join(".cache/hone")));
    dir.ok_or_else(|| CliError::invalid("neither HOME nor HONE_CACHE_DIR is set, so there is no place for the model"))
}

impl Chat<'_> {
    async fn once(&mut self, prompt: &str) -> CliResult {
        if self.args.compare {
            let (base, tuned) = self.both(prompt).await?;
            let value = serde_json::json!({"prompt": prompt, "base": base, "tuned": tuned});
            self.ui.show(&value, |ui| show_both(ui, prompt, &base, &tuned));
            return Ok(());
        }
        let answer = self.stream(prompt).await?;
        if self.ui.json {
            self.ui.value(&serde_json::json!({"prompt": prompt, "tuned": answer}));
        }
        Ok(())
    }

    async fn converse(&mut self, job: &JobView) -> CliResult {
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            let what = if self.args.compare { "base and tuned" } else { "tuned" };
            self.ui.note(format!(
                "{what} {} ({}); /reset forgets the conversation, /exit or Ctrl-D ends it",
                job.model, job.name
            ));
        }
        loop {
            if terminal {
                let _ = write!(std::io::stderr(), "\n{} ", paint_err("you ›", Style::Cyan));
            }
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            if read.map_err(|e| CliError::failed(format!("cannot read your message: {e}")))? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => return Ok(()),
                "/reset" => (self.tuned, self.base) = (Side::default(), Side::default()),
                text => {
                    let turn = self.turn(text).await;
                    // A question the model cannot take (too long, say) must not end the conversation.
                    match turn {
                        Err(e) if terminal => self.ui.error(&e),
                        other => other?,
                    }
                }
            }
        }
    }

    async fn turn(&mut self, text: &str) -> CliResult {
        if self.args.compare {
            let (base, tuned) = self.both(text).await?;
            if self.ui.json {
                self.ui.json_line(&serde_json::json!({"prompt": text, "base": base, "tuned": tuned}));
            } else {
                self.ui.line(layout::side_by_side("base", &base.text, "tuned", &tuned.text));
            }
        } else {
            let answer = self.stream(text).await?;
            if self.ui.json {
                self.ui.json_line(&serde_json::json!({"prompt": text, "tuned": answer}));
            }
        }
        Ok(())
    }

    /// The tuned model's answer, printed as it comes.
    async fn stream(&mut self, text: &str) -> CliResult<Answer> {
        let request = request(self.args, self.plain, &self.tuned, text, true);
        let ui = self.ui;
        let mut print = |token: &str| {
            if !ui.json {
                ui.part(token);
            }
        };
        let answer = self.models.tuned.ask(&request, &mut print).await?;
        if !ui.json {
            ui.line("");
        }
        remember(&mut self.tuned, text, &answer);
        Ok(answer)
    }

    async fn both(&mut self, text: &str) -> CliResult<(Answer, Answer)> {
        let base_request = request(self.args, self.plain, &self.base, text, false);
        let tuned_request = request(self.args, self.plain, &self.tuned, text, true);
        let base = match &mut self.models.base {
            Some(base) => base.ask(&base_request, &mut |_| {}).await?,
            None => self.models.tuned.ask(&base_request, &mut |_| {}).await?,
        };
        let tuned = self.models.tuned.ask(&tuned_request, &mut |_| {}).await?;
        remember(&mut self.base, text, &base);
        remember(&mut self.tuned, text, &tuned);
        Ok((base, tuned))
    }
}

fn request(args: &ChatArgs, plain: bool, side: &Side, text: &str, use_adapter: bool) -> Request {
    let system = args.system.iter().map(|s| Message { role: "system", content: s.clone() });
    let asked = Message { role: "user", content: text.to_owned() };
    let messages = system.chain(side.history.iter().cloned()).chain([asked]).collect();
    Request {
        messages: (!plain).then_some(messages),
        prompt: plain.then(|| text.to_owned()),
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        use_adapter,
    }
}

fn remember(side: &mut Side, asked: &str, answer: &Answer) {
    side.history.push(Message { role: "user", content: asked.to_owned() });
    side.history.push(Message { role: "assistant", content: answer.text.clone() });
}

fn show_both(ui: Ui, prompt: &str, base: &Answer, tuned: &Answer) {
    ui.line(format!("{} {prompt}\n", paint("prompt", Style::Dim)));
    ui.line(layout::side_by_side("base", &base.text, "tuned", &tuned.text));
}
