//! `hone-trainer generate`: text from a base model and its adapter, once or as a line protocol (`--stdio`).
//!
//! The protocol is one JSON request per input line, `{"messages": [{"role", "content"}…]}` or `{"prompt": "…"}`
//! with optional `max_tokens`, `temperature`, `top_p`, `seed`, `use_adapter`. Replies are lines too: per request any
//! number of `{"token": "…"}` and one
//! `{"done": true, "text", "prompt_tokens", "completion_tokens", "tokens_per_second", "finish_reason"}` or
//! `{"error": "…"}`. It ends when its input does.

use crate::engine::{
    DeviceChoice,
    device::HONE_DEVICE,
    generate::{FinishReason, Generator, Input, Message, Request, Response},
};
use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
    time::Instant,
};

/// Longest request line in bytes.
const MAX_LINE: u64 = 16 << 20;

/// Options of `hone-trainer generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Model directory in Hugging Face layout (config.json, *.safetensors, tokenizer.json).
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter directory (adapter_config.json, adapter_model.safetensors).
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Text to continue, as it is.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["messages", "stdio"], required_unless_present_any = ["messages", "stdio"])]
    prompt: Option<String>,
    /// JSON file with a conversation: [{"role": "user", "content": "…"}], answered through the chat template.
    #[arg(long, value_name = "FILE", conflicts_with = "stdio")]
    messages: Option<PathBuf>,
    /// Most new tokens.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Randomness; 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample only from the likeliest tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Answer twice: as the base model and with the adapter.
    #[arg(long, requires = "adapter", conflicts_with = "stdio")]
    compare: bool,
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, env = HONE_DEVICE, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Print one JSON document instead of text.
    #[arg(long, conflicts_with = "stdio")]
    json: bool,
    /// Serve requests: one JSON request per input line, JSON lines back.
    #[arg(long)]
    stdio: bool,
}

/// One request line of `--stdio`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    max_tokens: Option<usize>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<u64>,
    use_adapter: Option<bool>,
}

/// The last reply to a request, and the document of `--json`.
#[derive(Debug, Serialize)]
struct Answer {
    text: String,
    prompt_tokens: usize,
    completion_tokens: usize,
    tokens_per_second: f64,
    finish_reason: FinishReason,
}

/// Generates as the options say.
///
/// # Errors
/// Unusable model, adapter or request; in `--stdio` mode a bad request is answered and does not end the process.
pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let mut generator = Generator::load(&args.model, args.adapter.as_deref(), args.device.place()?)?;
    let mut out = io::stdout().lock();
    if args.stdio {
        return serve(args, &mut generator, io::stdin().lock(), &mut out);
    }
    let input = match (&args.prompt, &args.messages) {
        (Some(prompt), _) => Input::Prompt(prompt.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let context = || format!("{} is no JSON list of {{role, content}} messages", path.display());
            Input::Messages(serde_json::from_str(&text).with_context(context)?)
        }
        (None, None) => bail!("give --prompt, --messages or --stdio"),
    };
    let request = |use_adapter| Request { use_adapter, ..base_request(args, input.clone()) };
    if !args.compare {
        let answer = stream_plain(&mut generator, &request(true), !args.json, &mut out)?;
        return finish(args.json, &answer, &mut out);
    }
    let mut both = serde_json::Map::new();
    for (name, use_adapter) in [("base", false), ("tuned", true)] {
        if !args.json {
            writeln!(out, "── {name} ──")?;
        }
        let answer = stream_plain(&mut generator, &request(use_adapter), !args.json, &mut out)?;
        if !args.json {
            writeln!(out)?;
        }
        both.insert(name.to_owned(), serde_json::to_value(answer)?);
    }
    if args.json { finish(true, &both, &mut out) } else { Ok(()) }
}

fn base_request(args: &GenerateArgs, input: Input) -> Request {
    let GenerateArgs { max_tokens, temperature, top_p, seed, .. } = *args;
    Request { input, max_tokens, temperature, top_p, seed, use_adapter: true }
}

fn finish(json: bool, answer: &impl Serialize, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, answer)?;
    }
    writeln!(out)?;
    Ok(())
}

/// Prints the text as it comes when `shown`.
fn stream_plain(
    generator: &mut Generator,
    request: &Request,
    shown: bool,
    out: &mut impl Write,
) -> anyhow::Result<Answer> {
    let mut written = Ok(());
    let answer = timed(generator, request, &mut |token| {
        if shown && written.is_ok() {
            written = out.write_all(token.as_bytes()).and_then(|()| out.flush());
        }
    })?;
    written?;
    Ok(answer)
}

fn timed(generator: &mut Generator, request: &Request, on_token: &mut dyn FnMut(&str)) -> anyhow::Result<Answer> {
    let started = Instant::now();
    let Response { text, prompt_tokens, completion_tokens, finish_reason } = generator.generate(request, on_token)?;
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    let tokens = u32::try_from(completion_tokens).map_or(f64::INFINITY, f64::from);
    Ok(Answer { text, prompt_tokens, completion_tokens, tokens_per_second: tokens / seconds, finish_reason })
}

fn serve(
    args: &GenerateArgs,
    generator: &mut Generator,
    mut input: impl BufRead,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    loop {
        let mut line = Vec::new();
        let read = io::Read::take(&mut input, MAX_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if !line.ends_with(b"\n") && u64::try_from(read).is_ok_and(|n| n >= MAX_LINE) {
            bail!("a request line is longer than {MAX_LINE} bytes");
        }
        if let Err(error) = answer(args, generator, &line, out) {
            if error.downcast_ref::<io::Error>().is_some() {
                return Err(error);
            }
            reply(out, &serde_json::json!({"error": format!("{error:#}")}))?;
        }
    }
}

fn answer(args: &GenerateArgs, generator: &mut Generator, line: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let line: Line = serde_json::from_slice(line).context("the request is not valid")?;
    let input = match (line.messages, line.prompt) {
        (Some(messages), None) => Input::Messages(messages),
        (None, Some(prompt)) => Input::Prompt(prompt),
        _ => bail!("give either `messages` or `prompt`"),
    };
    let defaults = base_request(args, input);
    let request = Request {
        max_tokens: line.max_tokens.unwrap_or(defaults.max_tokens),
        temperature: line.temperature.unwrap_or(defaults.temperature),
        top_p: line.top_p.unwrap_or(defaults.top_p),
        seed: line.seed.unwrap_or(defaults.seed),
        use_adapter: line.use_adapter.unwrap_or(true),
        ..defaults
    };
    let mut written = Ok(());
    let answer = timed(generator, &request, &mut |token| {
        if written.is_ok() {
            written = reply(out, &serde_json::json!({"token": token}));
        }
    })?;
    written?;
    let mut done = serde_json::to_value(answer)?;
    if let Some(map) = done.as_object_mut() {
        map.insert("done".to_owned(), true.into());
    }
    reply(out, &done).map_err(Into::into)
}

fn reply(out: &mut impl Write, value: &serde_json::Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}
