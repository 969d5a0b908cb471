//! A `hone-trainer generate --stdio` process: one JSON request per line in, JSON lines back.

use crate::error::{CliError, CliResult};
use serde::{Deserialize, Serialize};
use service::Env;
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Loading gigabytes from a slow disk, or a long answer of a large model: per line of reply.
const PATIENCE: Duration = Duration::from_secs(600);
/// The program needs nothing else; above all not the API key.
const ENV: [&str; 9] = [
    "PATH",
    "HOME",
    "RUST_LOG",
    "HONE_THREADS",
    "HONE_DEVICE",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LIB_DIR",
    "LD_LIBRARY_PATH",
    "TMPDIR",
];

#[derive(Debug, Clone, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

/// One request line.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    pub max_tokens: u32,
    pub temperature: f64,
    pub top_p: f64,
    pub seed: u64,
    pub use_adapter: bool,
}

/// The last line of a reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    pub text: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub tokens_per_second: f64,
    pub finish_reason: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply {
    Token { token: String },
    Error { error: String },
    Done(Answer),
}

#[derive(Debug)]
pub struct Generator {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Generator {
    pub fn start(env: &Env, program: &Path, model: &Path, adapter: Option<&Path>) -> CliResult<Self> {
        let mut command = Command::new(program);
        command.args(["generate", "--stdio", "--model"]).arg(model);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        command.env_clear().envs(ENV.iter().filter_map(|n| Some((n, env.get(n)?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| CliError::io("start", program, &e))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { child, input, output: BufReader::new(output).lines() }),
            _ => Err(CliError::failed("cannot talk to hone-trainer: it has no pipes")),
        }
    }

    /// Sends a request and hears the answer; `on_token` gets its text as it comes.
    pub async fn ask(&mut self, request: &Request, on_token: &mut dyn FnMut(&str)) -> CliResult<Answer> {
        let line =
            serde_json::to_vec(request).map_err(|e| CliError::failed(format!("cannot write the request: {e}")))?;
        let sent = async {
            self.input.write_all(&line).await?;
            self.input.write_all(b"\n").await?;
            self.input.flush().await
        };
        if sent.await.is_err() {
            return Err(self.died().await);
        }
        loop {
            let line = match tokio::time::timeout(PATIENCE, self.output.next_line()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None) | Err(_)) => return Err(self.died().await),
                Err(_) => {
                    return Err(CliError::failed(format!("hone-trainer said nothing for {} s", PATIENCE.as_secs())));
                }
            };
            let reply = serde_json::from_str(&line);
            match reply.map_err(|e| CliError::failed(format!("hone-trainer sent what cannot be read ({e}): {line}")))? {
                Reply::Token { token } => on_token(&token),
                Reply::Done(answer) => return Ok(answer),
                Reply::Error { error } => return Err(CliError::failed(error)),
            }
        }
    }

    /// Why the process is gone, in its own words.
    async fn died(&mut self) -> CliError {
        let mut words = String::new();
        if let Some(errors) = self.child.stderr.take() {
            let read = errors.take(64 << 10);
            tokio::pin!(read);
            let _ = tokio::time::timeout(Duration::from_secs(5), read.read_to_string(&mut words)).await;
        }
        let last = words.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it gave no reason").trim();
        CliError::failed(format!("the model cannot be run: {}", last.trim_start_matches("hone-trainer: ")))
    }
}
