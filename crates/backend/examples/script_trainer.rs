//! A trainer that trains nothing: it speaks the real contract (environment, callbacks, storage, exit codes)
//! and does what the script in its configuration's `name` says. The tests of the job machinery run it.
//!
//! The script is JSON: attempt number (or `*`) to a list of [`Op`].

#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test program may panic")]

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, time::Duration};
use wire::{CallbackReply, Directive, InstanceId, JobSpec, job_env, job_env::exit};

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Op {
    /// From now on notes in this file what was acknowledged, and syncs it.
    Ledger {
        file: String,
    },
    Started,
    Plan {
        total: u64,
    },
    /// Steps `from..=to` in one batch.
    Metrics {
        from: u64,
        to: u64,
    },
    /// Steps `from..=to`, each alone, `ms` apart.
    Paced {
        from: u64,
        to: u64,
        ms: u64,
    },
    /// Each step alone, the last one first.
    Reversed {
        from: u64,
        to: u64,
    },
    /// The last batch once more.
    Again,
    /// A batch sent without waiting for its reply.
    Deaf {
        from: u64,
        to: u64,
    },
    /// Uses up sequence numbers without sending anything until a reply asks for them.
    Skip {
        from: u64,
        to: u64,
    },
    Checkpoint {
        step: u64,
    },
    /// Uploads an artifact and says so.
    Finish {
        steps: u64,
    },
    /// Says so without uploading.
    FinishEmptyHanded {
        steps: u64,
    },
    /// The same through storage instead of callbacks, with steps `1..=steps`.
    FinishByStorage {
        steps: u64,
    },
    Fail {
        code: String,
        message: String,
    },
    /// Heartbeats and obeys, until told to end.
    Obey,
    /// Heartbeats and does not obey.
    Defy,
    /// Says nothing and lives on.
    Hang,
    IgnoreSigterm,
    /// Leaves a child process behind.
    Grandchild,
    Print {
        text: String,
    },
    /// Writes the environment to this file.
    Environment {
        file: String,
    },
    Exit {
        code: i32,
    },
    Signal {
        number: i32,
    },
}

struct Trainer {
    http: reqwest::Client,
    spec: JobSpec,
    callback: String,
    gateway: String,
    token: String,
    instance: InstanceId,
    seq: u64,
    last: Vec<Value>,
    skipped: Vec<Value>,
    ledger: Option<std::fs::File>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let file = |name: &str| std::fs::read_to_string(variable(name)).expect("a readable file");
    let text = std::env::var(job_env::JOB_SPEC).unwrap_or_else(|_| file(job_env::JOB_SPEC_FILE));
    let spec: JobSpec = serde_json::from_str(&text).expect("a job spec");
    let script: BTreeMap<String, Vec<Op>> =
        serde_json::from_str(spec.config.name.as_deref().unwrap_or("{}")).expect("a script");
    let ops = script.get(&spec.attempt.to_string()).or_else(|| script.get("*")).cloned().unwrap_or_default();
    let mut trainer = Trainer {
        http: reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("an HTTP client"),
        callback: variable(job_env::CALLBACK_URL),
        gateway: variable(job_env::STORAGE_GATEWAY_URL),
        token: file(job_env::JOB_TOKEN_FILE),
        instance: InstanceId::random(),
        spec,
        seq: 0,
        last: Vec::new(),
        skipped: Vec::new(),
        ledger: None,
    };
    for op in ops {
        trainer.perform(op).await;
    }
}

impl Trainer {
    async fn perform(&mut self, op: Op) {
        match op {
            Op::Ledger { file } => {
                let file = std::fs::File::options().append(true).create(true).open(file);
                self.ledger = Some(file.expect("a writable ledger"));
            }
            Op::Started => {
                let resumed = self.spec.resume_from.as_deref().and_then(step_of);
                let event = json!({"type": "started", "trainer_version": "script", "device": "cpu", "threads": 1, "resumed_from_step": resumed});
                self.say(vec![event]).await;
            }
            Op::Plan { total } => {
                let event = json!({"type": "plan", "total_steps": total, "epochs": 1.0, "train_rows": 10, "eval_rows": 0,
                    "train_tokens": 100, "truncated_rows": 0, "trainable_parameters": 1, "total_parameters": 2});
                self.say(vec![event]).await;
            }
            Op::Metrics { from, to } => self.say((from..=to).map(metrics).collect()).await,
            Op::Paced { from, to, ms } => {
                for step in from..=to {
                    self.say(vec![metrics(step)]).await;
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
            }
            Op::Reversed { from, to } => {
                let events = self.number((from..=to).map(metrics).collect());
                for event in events.into_iter().rev() {
                    self.last = vec![event];
                    self.send().await;
                }
            }
            Op::Again => self.send().await,
            Op::Deaf { from, to } => {
                self.last = self.number((from..=to).map(metrics).collect());
                let request = self.request().timeout(Duration::from_millis(1));
                // The reply is lost, whether or not the batch arrived; so it is sent again.
                let _ = request.send().await;
                self.send().await;
            }
            Op::Skip { from, to } => self.skipped = self.number((from..=to).map(metrics).collect()),
            Op::Checkpoint { step } => {
                let prefix = format!("{}checkpoints/checkpoint-{step}/", self.spec.output_prefix);
                self.say(vec![json!({"type": "checkpoint", "step": step, "prefix": prefix, "size": 10})]).await;
            }
            Op::Finish { steps } => {
                self.put("artifacts/adapter_model.safetensors", b"adapter".to_vec()).await;
                let event = self.finished(steps);
                self.say(vec![event]).await;
            }
            Op::FinishEmptyHanded { steps } => {
                let event = self.finished(steps);
                self.say(vec![event]).await;
            }
            Op::FinishByStorage { steps } => {
                self.put("artifacts/adapter_model.safetensors", b"adapter".to_vec()).await;
                let mut events: Vec<Value> = (1..=steps).map(metrics).collect();
                events.push(self.finished(steps));
                self.last = self.number(events);
                let (first, last) = (self.seq - steps, self.seq);
                let body = serde_json::to_vec(&self.batch()).expect("JSON");
                self.put(&format!("events/{}", wire::layout::event_batch_name(first, last)), body).await;
            }
            Op::Fail { code, message } => {
                self.say(vec![json!({"type": "failed", "failure": {"code": code, "message": message}})]).await;
            }
            Op::Obey => self.heartbeat(true).await,
            Op::Defy => self.heartbeat(false).await,
            Op::Hang => std::future::pending().await,
            Op::IgnoreSigterm => {
                let mut signals =
                    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
                tokio::spawn(async move { while signals.recv().await.is_some() {} });
            }
            Op::Grandchild => {
                let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
                std::thread::spawn(move || sleeper.wait());
            }
            Op::Print { text } => eprintln!("{text}"),
            Op::Environment { file } => {
                let all: BTreeMap<String, String> = std::env::vars().collect();
                std::fs::write(file, serde_json::to_vec(&all).expect("JSON")).expect("a writable file");
            }
            Op::Exit { code } => std::process::exit(code),
            Op::Signal { number } => {
                let signal = nix::sys::signal::Signal::try_from(number).expect("a signal");
                nix::sys::signal::raise(signal).expect("to raise a signal");
            }
        }
    }

    fn finished(&self, steps: u64) -> Value {
        let key = format!("{}artifacts/adapter_model.safetensors", self.spec.output_prefix);
        let sha256 = hex::encode(Sha256::digest(b"adapter"));
        json!({"type": "finished", "last_seq": self.seq + 1, "manifest": [{"key": key, "size": 7, "sha256": sha256}],
            "summary": {"steps": steps, "tokens": 10, "train_seconds": 1.0, "train_loss": 0.5, "initial_eval_loss": null,
                "eval_loss": 0.4, "peak_memory_bytes": null}})
    }

    fn number(&mut self, events: Vec<Value>) -> Vec<Value> {
        let mut numbered = Vec::new();
        for mut event in events {
            self.seq += 1;
            event["seq"] = json!(self.seq);
            event["at"] = json!("2026-01-01T00:00:00Z");
            numbered.push(event);
        }
        numbered
    }

    async fn say(&mut self, events: Vec<Value>) {
        self.last = self.number(events);
        self.send().await;
    }

    fn batch(&self) -> Value {
        json!({"job_id": self.spec.job_id, "attempt": self.spec.attempt, "instance_id": self.instance, "events": self.last})
    }

    fn request(&self) -> reqwest::RequestBuilder {
        self.http.post(&self.callback).bearer_auth(&self.token).json(&self.batch())
    }

    /// Sends the last batch until it is taken, and what the reply asks for.
    async fn send(&mut self) {
        let reply = self.deliver().await;
        if reply.resend_from.is_some() && !self.skipped.is_empty() {
            self.last = std::mem::take(&mut self.skipped);
            self.deliver().await;
        }
    }

    /// Writes the acknowledged batch down, in one piece and durably.
    fn note(&mut self) {
        use std::io::Write;
        let Some(ledger) = &mut self.ledger else { return };
        let lines: String = self.last.iter().map(|event| format!("{}\n", json!([self.spec.attempt, event]))).collect();
        ledger.write_all(lines.as_bytes()).and_then(|()| ledger.sync_data()).expect("a ledger that can be written");
    }

    async fn deliver(&mut self) -> CallbackReply {
        loop {
            match self.request().send().await {
                Ok(reply) if reply.status().is_success() => {
                    self.note();
                    // A reply that breaks off after its status is an acknowledgement, but says nothing else.
                    if let Ok(reply) = reply.json().await {
                        return reply;
                    }
                }
                Ok(reply) if reply.status().as_u16() == 410 => std::process::exit(exit::FENCED),
                Ok(reply) if reply.status().is_client_error() => panic!("{}", reply.text().await.unwrap_or_default()),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn heartbeat(&mut self, obey: bool) {
        loop {
            self.last.clear();
            let reply = self.deliver().await;
            match reply.directive {
                Directive::Cancel if obey => {
                    self.say(vec![json!({"type": "stopped", "reason": "cancelled", "step": 0, "checkpoint": null})])
                        .await;
                    std::process::exit(exit::CANCELLED);
                }
                Directive::Pause if obey => {
                    self.perform_checkpoint(7).await;
                    self.say(vec![json!({"type": "stopped", "reason": "paused", "step": 7, "checkpoint": null})]).await;
                    std::process::exit(exit::PAUSED);
                }
                Directive::Stop if obey => std::process::exit(exit::SUCCEEDED),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn perform_checkpoint(&mut self, step: u64) {
        let prefix = format!("{}checkpoints/checkpoint-{step}/", self.spec.output_prefix);
        self.say(vec![json!({"type": "checkpoint", "step": step, "prefix": prefix, "size": 10})]).await;
    }

    async fn put(&self, name: &str, body: Vec<u8>) {
        let url = format!("{}/objects/{}{name}", self.gateway, self.spec.output_prefix);
        let reply = self.http.put(url).bearer_auth(&self.token).body(body).send().await.expect("the gateway");
        assert!(reply.status().is_success(), "{}", reply.status());
    }
}

fn metrics(step: u64) -> Value {
    #[expect(clippy::as_conversions, reason = "small numbers")]
    let loss = 10.0 / (step as f64 + 1.0);
    json!({"type": "metrics", "step": step, "epoch": 0.5, "values": {"train_loss": loss, "step_seconds": 0.1}})
}

/// `…/checkpoint-7/` → 7.
fn step_of(prefix: &str) -> Option<u64> {
    prefix.trim_end_matches('/').rsplit_once('-')?.1.parse().ok()
}
