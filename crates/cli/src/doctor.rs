//! `hone doctor`: is this machine ready, and what to do where it is not.

use crate::{
    api::Api,
    context::{Context, sibling},
    error::{CliError, CliResult},
    postgres::{Account, Binaries},
    ui::{self, Style, paint},
    up::{datadir, ports},
};
use serde::Serialize;
use service::{
    ClientError,
    breaker::{State, View},
    server::ReadyReply,
};
use std::path::Path;

/// Programs that come with `hone`.
const PROGRAMS: [&str; 3] = ["hone-backend", "hone-gateway", "hone-trainer"];
const ENOUGH_DISK: u64 = 5_000_000_000;
const ENOUGH_MEMORY: u64 = 4_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failed(name: &'static str, found: impl Into<String>, remedy: Option<String>) -> Self {
        Self { name, verdict: Verdict::Failed, found: found.into(), remedy }
    }
}

pub async fn doctor(context: &Context) -> CliResult {
    let checks = vec![
        programs(context),
        database(context),
        data_dir(&context.data_dir),
        disk(&context.data_dir),
        memory(),
        cores(),
        port(context),
        server(context).await,
        breakers(context).await,
    ];
    let failed = checks.iter().filter(|c| c.verdict == Verdict::Failed).count();
    context.ui.show(&checks, |ui| {
        let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
        for check in &checks {
            let mark = match check.verdict {
                Verdict::Ok => paint("✓", Style::Green),
                Verdict::Warning => paint("!", Style::Yellow),
                Verdict::Failed => paint("✗", Style::Red),
            };
            ui.line(format!("{mark} {:width$}  {}", check.name, check.found));
            if let Some(remedy) = &check.remedy {
                ui.line(format!("  {:width$}  → {remedy}", ""));
            }
        }
    });
    match failed {
        0 => Ok(()),
        1 => Err(CliError::failed("1 check failed")),
        n => Err(CliError::failed(format!("{n} checks failed"))),
    }
}

fn programs(context: &Context) -> Check {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|p| sibling(&context.env, p).is_err()).collect();
    if missing.is_empty() {
        let at = sibling(&context.env, "hone-backend").ok().and_then(|p| p.parent().map(|d| d.display().to_string()));
        return Check::ok("programs", format!("{} in {}", PROGRAMS.join(", "), at.unwrap_or_default()));
    }
    let remedy = "install all of Hone's programs into one directory; from source `cargo build --release` builds them";
    Check::failed("programs", format!("missing: {}", missing.join(", ")), Some(remedy.into()))
}

fn database(context: &Context) -> Check {
    if context.env.get("DATABASE_URL").is_some() {
        return Check::ok("database", "DATABASE_URL is set; no Postgres is started here");
    }
    let found =
        Binaries::find(&context.env).and_then(|b| Ok((b, Account::choose(&context.data_dir.join("postgres"))?)));
    match found {
        Ok((binaries, _)) => {
            Check::ok("database", format!("Postgres {} in {}", binaries.major, binaries.dir.display()))
        }
        Err(e) => {
            let text = e.to_string();
            let (what, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            Check::failed("database", what, (!remedy.is_empty()).then(|| remedy.to_owned()))
        }
    }
}

fn data_dir(dir: &Path) -> Check {
    let existing = dir.ancestors().find(|d| d.is_dir()).unwrap_or(dir);
    let writable = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK).is_ok();
    match (writable, existing == dir) {
        (true, true) => Check::ok("data", dir.display().to_string()),
        (true, false) => Check::ok("data", format!("{} (made at the first start)", dir.display())),
        (false, _) => {
            let remedy = "choose a directory of your own with --data-dir or HONE_DATA_DIR".to_owned();
            Check::failed("data", format!("{} cannot be written to", existing.display()), Some(remedy))
        }
    }
}

fn disk(dir: &Path) -> Check {
    let free = dir.ancestors().find(|d| d.is_dir()).and_then(datadir::free_bytes).unwrap_or(0);
    let found = format!("{} free", ui::bytes(free));
    if free >= ENOUGH_DISK {
        return Check::ok("disk", found);
    }
    Check::warning(
        "disk",
        found,
        format!("models, checkpoints and datasets need room: {} or more", ui::bytes(ENOUGH_DISK)),
    )
}

/// Linux only; elsewhere nothing is claimed.
fn memory() -> Check {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib.saturating_mul(1024))
    };
    let (Some(total), Some(available)) = (field("MemTotal:"), field("MemAvailable:")) else {
        return Check::ok("memory", "unknown on this system");
    };
    let found = format!("{} available of {}", ui::bytes(available), ui::bytes(total));
    if available >= ENOUGH_MEMORY {
        return Check::ok("memory", found);
    }
    Check::warning("memory", found, "small models train in less; for larger ones close other programs")
}

fn cores() -> Check {
    match std::thread::available_parallelism() {
        Ok(n) => Check::ok("processor", format!("{n} cores")),
        Err(_) => Check::ok("processor", "unknown number of cores"),
    }
}

fn port(context: &Context) -> Check {
    if datadir::holder(&context.data_dir).is_some() {
        return Check::ok("port", "in use by the Hone that runs here");
    }
    match ports::for_api(None, ports::remembered(&context.data_dir)) {
        Ok(port) => Check::ok("port", format!("{port} on 127.0.0.1 is free")),
        Err(e) => Check::failed("port", e.message, e.hint),
    }
}

async fn server(context: &Context) -> Check {
    let client = match context.client() {
        Ok(client) => client,
        Err(_) => return Check::ok("server", "not started yet; `hone up` starts it"),
    };
    let url = client.base_url().to_owned();
    match (Api { client }).jobs(None, 1).await {
        Ok(_) => Check::ok("server", format!("{url} is up and accepts the key")),
        Err(e) if datadir::holder(&context.data_dir).is_none() && context.env.get("HONE_URL").is_none() => {
            Check::ok("server", format!("not running ({}); `hone up` starts it", e.message))
        }
        Err(e) => Check::failed("server", e.message, e.hint),
    }
}

/// What the server's circuit breakers say about the services it calls.
async fn breakers(context: &Context) -> Check {
    const NAME: &str = "services";
    let Ok(client) = context.client() else { return Check::ok(NAME, "nothing runs") };
    // Not ready is an answer too.
    let views: Vec<View> = match client.get::<ReadyReply>("/ready").await {
        Ok(reply) => reply.breakers,
        Err(ClientError::Problem { problem, .. }) => {
            let current = problem.current.and_then(|c| serde_json::from_value(c.get("breakers")?.clone()).ok());
            match current {
                Some(views) => views,
                None => return Check::ok(NAME, "unknown: the server does not tell"),
            }
        }
        Err(_) => return Check::ok(NAME, "unknown: the server does not answer"),
    };
    let open: Vec<&str> = views.iter().filter(|v| v.state != State::Closed).map(|v| v.service.as_str()).collect();
    if open.is_empty() {
        return Check::ok(NAME, "the server reaches all it calls");
    }
    let found = format!("the server has given up calling {} for now", open.join(", "));
    Check::failed(NAME, found, Some("see `hone status` and the logs of these services".into()))
}
