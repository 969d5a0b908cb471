//! The one way to serve HTTP: `/health`, `/ready`, `/metrics`, trace context, request metrics, problem+json
//! for unknown routes, and a graceful stop on SIGTERM or SIGINT.

use crate::{
    breaker,
    env::{Env, EnvError},
    error::{ApiError, extractors},
    telemetry::adopt_parent,
};
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::{Next, from_fn},
    web,
};
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};
use tracing::Instrument;
use wire::problem::{Code, Problem};

/// Longest silence on a connection; our own clients leave after 30 s.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(75);

/// Where and how to serve.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub name: &'static str,
    /// Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Written once the service accepts connections, so that whoever started it learns the address.
    pub ready_file: Option<PathBuf>,
    pub workers: usize,
    /// Cap on JSON bodies in bytes.
    pub json_limit: usize,
}

impl ServerConfig {
    /// Reads `HONE_LISTEN`, `HONE_READY_FILE` and `HONE_WORKERS`.
    pub fn from_env(name: &'static str, env: &Env, default_port: u16) -> Result<Self, EnvError> {
        Ok(Self {
            name,
            listen: env.parse_or("HONE_LISTEN", SocketAddr::from(([127, 0, 0, 1], default_port)))?,
            ready_file: env.get("HONE_READY_FILE").map(PathBuf::from),
            workers: env.parse_or("HONE_WORKERS", 2)?,
            json_limit: 2 << 20,
        })
    }
}

/// Content of the ready file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub url: String,
    pub pid: u32,
}

/// Reply of `/ready`. When it is not ready, the problem's `current` has the breakers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyReply {
    pub status: String,
    /// Of the services this one calls.
    #[serde(default)]
    pub breakers: Vec<breaker::View>,
}

/// Answers whether the service can do its work now; the error says what is missing.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Binds the listening socket. Fails with a sentence that says what to do.
pub fn bind(config: &ServerConfig) -> io::Result<TcpListener> {
    TcpListener::bind(config.listen).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::AddrInUse => "another program uses this port; choose another one or 0 for any free port",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher one",
            _ => "check HONE_LISTEN",
        };
        io::Error::new(e.kind(), format!("cannot listen on {}: {e}; {hint}", config.listen))
    })
}

/// Serves until SIGTERM or SIGINT, then lets requests in flight finish (at most 5 s).
pub async fn serve<F>(
    config: ServerConfig,
    listener: TcpListener,
    metrics: PrometheusHandle,
    readiness: Readiness,
    configure: F,
) -> io::Result<()>
where
    F: Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
{
    let address = listener.local_addr()?;
    let json_limit = config.json_limit;
    let name = config.name;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(metrics.clone()))
            .app_data(web::Data::new(readiness.clone()))
            .wrap(from_fn(observe))
            .configure(extractors(json_limit))
            .route("/health", web::get().to(health))
            .route("/ready", web::get().to(ready))
            .route("/metrics", web::get().to(render_metrics))
            .configure(configure.clone())
            .default_service(web::to(unknown_route))
    })
    .workers(config.workers)
    // Longer than clients keep an idle connection, or they would use one that is being closed.
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(5)
    .client_request_timeout(std::time::Duration::from_secs(10))
    .listen(listener)?
    .run();
    if let Some(path) = &config.ready_file {
        let ready = Ready { url: format!("http://{address}"), pid: std::process::id() };
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, serde_json::to_vec(&ready)?)?;
        std::fs::rename(&temporary, path)?;
    }
    tracing::info!(%address, "{name} is listening");
    server.await?;
    tracing::info!("{name} stopped");
    Ok(())
}

async fn health() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

async fn ready(check: web::Data<Readiness>) -> Result<HttpResponse, ApiError> {
    match check().await {
        Ok(()) => Ok(HttpResponse::Ok().json(ReadyReply { status: "ready".into(), breakers: breaker::all() })),
        Err(reason) => {
            let problem = Problem::new(Code::Unavailable, format!("not ready: {reason}"));
            Err(problem.with_current(serde_json::json!({"breakers": breaker::all()})).into())
        }
    }
}

async fn render_metrics(handle: web::Data<PrometheusHandle>) -> HttpResponse {
    handle.run_upkeep();
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(handle.render())
}

async fn unknown_route(req: HttpRequest) -> Result<HttpResponse, ApiError> {
    Err(no_route(&req))
}

/// The answer to what is not served.
#[must_use]
pub fn no_route(req: &HttpRequest) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is no {} {}", req.method(), req.path()))
}

/// One span, one log line and two metrics per request, under the caller's trace.
async fn observe(
    req: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let started = Instant::now();
    let method = req.method().to_string();
    let route = req.match_pattern().unwrap_or_else(|| "unmatched".into());
    let span = tracing::info_span!("http", otel.name = %format!("{method} {route}"), trace_id = tracing::field::Empty);
    adopt_parent(&span, req.headers());
    if let Some(id) = span.in_scope(crate::telemetry::current_trace_id) {
        span.record("trace_id", id);
    }
    let quiet = matches!(route.as_str(), "/health" | "/ready" | "/metrics");
    let result = next.call(req).instrument(span.clone()).await;
    let status = match &result {
        Ok(reply) => reply.status().as_u16(),
        Err(e) => e.as_response_error().status_code().as_u16(),
    };
    let seconds = started.elapsed().as_secs_f64();
    metrics::counter!("http_requests_total", "method" => method.clone(), "route" => route.clone(), "status" => status.to_string()).increment(1);
    metrics::histogram!("http_request_duration_seconds", "method" => method.clone(), "route" => route.clone())
        .record(seconds);
    if !quiet {
        span.in_scope(|| tracing::debug!(status, ms = seconds * 1e3, "{method} {route}"));
    }
    result
}
