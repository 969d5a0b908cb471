//! Database, storage gateway and backend of one machine: start in order, keep alive, stop in order.
//!
//! Invariant: whatever happens, what was started is stopped; what a killed `hone` left running is stopped
//! before anything is started.

use super::{
    datadir::{DataDir, Ports, ServiceState, State, random_hex, state},
    logs, ports,
    service::{Service, Spec},
    settings::{BACKEND, COMMON, GATEWAY, OUTSIDE_S3},
    trainers,
};
use crate::{
    context::{Connection, Context, sibling},
    error::{CliError, CliResult},
    postgres::{self, Binaries, Cluster, Durability, Lifetime, Settings},
    proc::ProcessId,
    ui::{self, Style, paint_err},
};
use nix::sys::signal::Signal;
use secrecy::{ExposeSecret, SecretString};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long trainers may take to store a checkpoint when everything stops.
const TRAINER_PATIENCE: Duration = Duration::from_secs(35);
/// How often the children are looked at.
const TICK: Duration = Duration::from_millis(100);
const LOG_TICK: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Stack<'a> {
    context: &'a Context,
    dir: &'a DataDir,
    database: Option<Database>,
    gateway: Option<Service>,
    backend: Option<Service>,
    url: String,
    started_at: chrono::DateTime<chrono::Utc>,
}

#[derive(Debug)]
struct Database {
    settings: Settings,
    cluster: Cluster,
}

/// What the user is told once everything runs.
#[derive(Debug)]
pub struct Started {
    pub connection: Connection,
    /// The key was made just now.
    pub first_start: bool,
}

impl<'a> Stack<'a> {
    #[must_use]
    pub fn new(context: &'a Context, dir: &'a DataDir) -> Self {
        let started_at = chrono::Utc::now();
        Self { context, dir, database: None, gateway: None, backend: None, url: String::new(), started_at }
    }

    /// Starts everything. After an error or when dropped half-way, [`Stack::stop`] cleans up.
    pub async fn start(&mut self, port: Option<u16>) -> CliResult<Started> {
        stop_leftovers(self.dir);
        let remembered = self.dir.ports();
        // Before anything is started: a taken port should not cost the time of a start.
        let api_port = ports::for_api(port, remembered.backend)?;
        let backend_program = sibling(&self.context.env, "hone-backend")?;
        let gateway_program = sibling(&self.context.env, "hone-gateway")?;
        let (token_file, _) = self.dir.secret("token-signing-key", random_hex)?;
        let first_start = !self.dir.join("secrets/api-key").exists();
        let (key_file, key) = self.dir.secret("api-key", || format!("hone_sk_{}", random_hex()))?;

        let begun = Instant::now();
        let database_url = self.spawn_database()?;
        let ports = self.start_gateway(gateway_program, &token_file, remembered).await?;
        self.progress("storage", begun, "");
        self.wait_for_database(begun).await?;
        let gateway_url = format!("http://127.0.0.1:{}", ports.gateway.unwrap_or_default());
        let mut env = self.environment(&[COMMON, BACKEND]);
        // Webhooks of the one user of this machine may lead to it.
        if !env.iter().any(|(name, _)| name == "OUTGOING_ALLOW") {
            env.push(("OUTGOING_ALLOW".to_owned(), "localhost,127.0.0.0/8,::1".to_owned()));
        }
        env.extend([
            ("DATABASE_URL".to_owned(), database_url.expose_secret().to_owned()),
            ("STORAGE_GATEWAY_URL".to_owned(), gateway_url),
            ("TOKEN_SIGNING_KEY_FILE".to_owned(), token_file.display().to_string()),
            ("HONE_BOOTSTRAP_KEY_FILE".to_owned(), key_file.display().to_string()),
            ("RUN_DIR".to_owned(), self.run_dir().display().to_string()),
        ]);
        let spec = self.spec("backend", backend_program, env, api_port);
        let url = self.backend.insert(Service::start(spec)?).wait_ready().await?;
        wait_healthy(&url).await?;
        let ports = Ports { backend: Some(port_of(&url)?), ..ports };
        self.keep_port(&ports);
        self.dir.set_ports(ports)?;
        self.progress("backend", begun, "");
        self.url.clone_from(&url);
        let connection = Connection { url, api_key: key.expose_secret().to_owned() };
        self.dir.set_connection(&connection)?;
        self.record()?;
        Ok(Started { connection, first_start })
    }

    fn spawn_database(&mut self) -> CliResult<SecretString> {
        if let Some(url) = self.context.env.secret("DATABASE_URL")? {
            return Ok(url);
        }
        let binaries = Binaries::find(&self.context.env)?;
        let (_, password) = self.dir.secret("postgres-password", random_hex)?;
        let settings = Settings {
            binaries,
            data_dir: self.dir.join("postgres"),
            socket_dir: postgres::socket_dir(&self.dir.join("sock")),
            password: Some(password),
            durability: Durability::Full,
            lifetime: Lifetime::Thread,
            log: self.dir.join("logs/postgres.log"),
        };
        if !settings.exists() {
            self.context.ui.note(format!("  making a new database in {}", settings.data_dir.display()));
        }
        for dir in settings.create()? {
            let path = dir.display();
            self.context.ui.note(format!(
                "  let the user Postgres runs as pass through {path} (chmod o+x); root cannot run Postgres"
            ));
        }
        let url = settings.url(postgres::DATABASE);
        let cluster = settings.start()?;
        self.database = Some(Database { settings, cluster });
        Ok(url)
    }

    async fn wait_for_database(&mut self, begun: Instant) -> CliResult {
        let Some(database) = &mut self.database else { return Ok(()) };
        let mut told = false;
        while !database.cluster.try_ready()? {
            if begun.elapsed() > postgres::START_TIMEOUT {
                let log = database.settings.log.clone();
                let reason = format!("it was not ready within {} s", postgres::START_TIMEOUT.as_secs());
                return Err(postgres::PostgresError::Start { reason, log }.into());
            }
            if begun.elapsed() > Duration::from_secs(3) && !told {
                self.context.ui.note("  the database recovers from a crash; this can take a while");
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.progress("database", begun, "");
        Ok(())
    }

    async fn start_gateway(
        &mut self,
        program: PathBuf,
        token: &std::path::Path,
        remembered: Ports,
    ) -> CliResult<Ports> {
        let outside = self.context.env.get("S3_ENDPOINT").is_some();
        let mut env = self.environment(&[COMMON, GATEWAY, if outside { OUTSIDE_S3 } else { &[] }]);
        env.push(("TOKEN_SIGNING_KEY_FILE".into(), token.display().to_string()));
        let mut ports = Ports { gateway: Some(ports::prefer(remembered.gateway)?), ..remembered };
        if !outside {
            let s3 = ports::prefer(remembered.s3.filter(|p| Some(*p) != ports.gateway))?;
            ports.s3 = Some(s3);
            env.push(("DATA_DIR".into(), self.dir.path().display().to_string()));
            env.push(("S3_LISTEN".into(), format!("127.0.0.1:{s3}")));
        }
        let spec = self.spec("gateway", program, env, ports.gateway.unwrap_or_default());
        let url = self.gateway.insert(Service::start(spec)?).wait_ready().await?;
        Ok(Ports { gateway: Some(port_of(&url)?), ..ports })
    }

    fn spec(&self, name: &'static str, program: PathBuf, env: Vec<(String, String)>, port: u16) -> Spec {
        let ready_file = self.run_dir().join(format!("{name}.ready"));
        Spec { name, program, env, port, ready_file, log: self.dir.join(&format!("logs/{name}.log")) }
    }

    /// A service that is started again must come back at the same place.
    fn keep_port(&mut self, ports: &Ports) {
        for (service, port) in [(&mut self.gateway, ports.gateway), (&mut self.backend, ports.backend)] {
            if let (Some(service), Some(port)) = (service, port) {
                service.spec.port = port;
            }
        }
    }

    fn environment(&self, lists: &[&[&str]]) -> Vec<(String, String)> {
        let names = lists.iter().flat_map(|list| list.iter());
        names.filter_map(|n| self.context.env.get(n).map(|v| ((*n).to_owned(), v.to_owned()))).collect()
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn progress(&self, what: &str, begun: Instant, detail: &str) {
        let mark = paint_err("✓", Style::Green);
        self.context.ui.note(format!("  {mark} {what:<9} {}{detail}", ui::duration(begun.elapsed())));
    }

    fn record(&self) -> CliResult {
        let Some(hone) = ProcessId::of(std::process::id()) else { return Ok(()) };
        let entry = |name: &str, process: Option<ProcessId>, url: Option<String>| {
            process.map(|process| ServiceState { name: name.into(), process, url })
        };
        let of = |s: &Option<Service>| s.as_ref().and_then(|s| s.process().cloned());
        let at = |s: &Option<Service>| s.as_ref().map(|s| format!("http://127.0.0.1:{}", s.spec.port));
        let database = self.database.as_ref().and_then(|d| ProcessId::of(d.cluster.pid()));
        let services = [
            entry("postgres", database, None),
            entry("gateway", of(&self.gateway), at(&self.gateway)),
            entry("backend", of(&self.backend), at(&self.backend)),
        ];
        self.dir.set_state(&State {
            hone,
            url: self.url.clone(),
            healthy: true,
            started_at: self.started_at,
            services: services.into_iter().flatten().collect(),
        })
    }

    /// Starts again what dies, until `stop` resolves.
    pub async fn supervise(&mut self, stop: impl Future<Output = ()>) -> CliResult {
        tokio::pin!(stop);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut logs_bounded = Instant::now();
        let mut database_start: Option<Instant> = None;
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                _ = tick.tick() => {}
            }
            let mut changed = false;
            for service in [&mut self.gateway, &mut self.backend].into_iter().flatten() {
                changed |= service.revive(self.context.ui);
            }
            changed |= self.revive_database(&mut database_start);
            if changed {
                self.record()?;
            }
            if logs_bounded.elapsed() > LOG_TICK {
                logs_bounded = Instant::now();
                logs::bound(&self.dir.join("logs"));
            }
        }
    }

    fn revive_database(&mut self, start_again: &mut Option<Instant>) -> bool {
        let Some(database) = &mut self.database else { return false };
        if let Some(at) = *start_again {
            if Instant::now() < at {
                return false;
            }
            match database.settings.start() {
                Ok(cluster) => {
                    database.cluster = cluster;
                    *start_again = None;
                    return true;
                }
                Err(e) => {
                    self.context.ui.warn(CliError::from(e));
                    *start_again = Some(Instant::now() + Duration::from_secs(5));
                }
            }
        } else if let Some(status) = database.cluster.try_exited() {
            let how = super::service::describe(status);
            self.context.ui.warn(format!("the database ended with {how}; starting it again"));
            *start_again = Some(Instant::now() + Duration::from_millis(500));
        }
        false
    }

    /// The backend first, or it would at once start a new attempt of a job whose trainer we stop; then the
    /// trainers, whose last reports wait in storage for the next backend; then storage and database. `hurry`
    /// cuts the wait for the trainers short.
    pub async fn stop(&mut self, hurry: impl Future<Output = ()>) {
        if let Some(mut backend) = self.backend.take() {
            let running = trainers::running(&self.run_dir());
            self.announce_trainers(running.len());
            backend.stop();
            self.stop_trainers(hurry).await;
        }
        if let Some(mut gateway) = self.gateway.take() {
            gateway.stop();
        }
        if let Some(mut database) = self.database.take() {
            database.cluster.stop();
        }
        self.dir.clear_state();
    }

    fn announce_trainers(&self, running: usize) {
        let what = match running {
            0 => return,
            1 => "the running job stores a checkpoint and goes".to_owned(),
            n => format!("{n} running jobs store a checkpoint and go"),
        };
        self.context.ui.note(format!("  {what} on at the next `hone up`"));
    }

    async fn stop_trainers(&self, hurry: impl Future<Output = ()>) {
        let running = trainers::running(&self.run_dir());
        running.iter().for_each(trainers::Trainer::ask_to_stop);
        let wait = async {
            let deadline = Instant::now() + TRAINER_PATIENCE;
            while running.iter().any(trainers::Trainer::is_alive) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! { () = wait => {}, () = hurry => {} }
        running.iter().filter(|t| t.is_alive()).for_each(trainers::Trainer::kill);
    }
}

/// Services of a `hone` that was killed. Postgres is found by its own lock file.
fn stop_leftovers(dir: &DataDir) {
    let services = state(dir.path()).map(|s| s.services).unwrap_or_default();
    for service in services.iter().filter(|s| s.name != "postgres") {
        service.process.stop(Signal::SIGTERM, Duration::from_secs(5));
    }
    dir.clear_state();
}

fn port_of(url: &str) -> CliResult<u16> {
    let port = url.rsplit(':').next().and_then(|p| p.trim_end_matches('/').parse().ok());
    port.ok_or_else(|| CliError::failed(format!("a service says it serves at `{url}`, which has no port")))
}

/// The API answers and reaches database and storage.
async fn wait_healthy(url: &str) -> CliResult {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build();
    let http = http.map_err(|e| CliError::failed(format!("cannot make an HTTP client: {e}")))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let why = match http.get(format!("{url}/ready")).send().await {
            Ok(reply) if reply.status().is_success() => return Ok(()),
            Ok(reply) => {
                let text = reply.text().await.unwrap_or_default();
                serde_json::from_str::<wire::Problem>(&text).map_or(text, |p| p.detail)
            }
            Err(e) => e.to_string(),
        };
        if Instant::now() > deadline {
            return Err(CliError::failed(format!("the backend runs but is not healthy: {why}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
