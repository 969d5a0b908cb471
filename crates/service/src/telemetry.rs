//! Logs, traces and metrics. A dead collector never slows a service: spans are exported in batches from a
//! thread of their own and dropped when its bounded queue is full, and so are log lines.

use crate::{
    env::{Env, EnvError},
    lines::Lines,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use std::{io::Write, str::FromStr, sync::Arc};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Histogram buckets in seconds for everything that is a duration.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error("cannot build the trace exporter")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    #[error("cannot start the thread that writes the log")]
    Log(#[source] std::io::Error),
    #[error("cannot install the metrics recorder")]
    Metrics(#[source] BuildError),
    #[error("telemetry is already initialised")]
    Twice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `text` or `json`"),
        }
    }
}

/// Keep it alive as long as the service runs; dropping it flushes the spans.
pub struct Telemetry {
    pub metrics: PrometheusHandle,
    provider: SdkTracerProvider,
    lines: Lines,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // Best effort: at this point there is nobody left to tell.
        let _ = self.provider.shutdown();
        self.lines.flush();
    }
}

/// Opens a writer for one log line; see [`init_tee`].
pub type LogSink = Arc<dyn Fn() -> Box<dyn Write> + Send + Sync>;

/// Sets up logging to standard error (`LOG_FORMAT=text|json`, `RUST_LOG`), trace context propagation, OTLP
/// export when `OTEL_EXPORTER_OTLP_ENDPOINT` is set, and the Prometheus recorder. Call once.
pub fn init(service: &'static str, env: &Env) -> Result<Telemetry, TelemetryError> {
    init_tee(service, env, None)
}

/// [`init`], with every log line also written as plain text to `tee`.
pub fn init_tee(service: &'static str, env: &Env, tee: Option<LogSink>) -> Result<Telemetry, TelemetryError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = Resource::builder().with_service_name(service).build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if env.get("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
        let exporter =
            opentelemetry_otlp::SpanExporter::builder().with_http().build().map_err(TelemetryError::Exporter)?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    let tracer = provider.tracer(service);

    let filter = EnvFilter::try_new(env.get("RUST_LOG").unwrap_or("info")).map_err(|e| EnvError::Invalid {
        name: "RUST_LOG".into(),
        value: env.get("RUST_LOG").unwrap_or("").into(),
        reason: e.to_string(),
    })?;
    let lines = Lines::to(std::io::stderr()).map_err(TelemetryError::Log)?;
    let log = tracing_subscriber::fmt::layer().with_writer(lines.clone());
    let log = match env.parse_or("LOG_FORMAT", LogFormat::Text)? {
        LogFormat::Json => log.json().flatten_event(true).boxed(),
        LogFormat::Text => log.compact().with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
    };
    let tee =
        tee.map(|sink| tracing_subscriber::fmt::layer().compact().with_ansi(false).with_writer(move || sink()).boxed());
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .with(log)
        .with(tee)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(TelemetryError::Metrics)?;
    Ok(Telemetry { metrics, provider, lines })
}

/// Trace id of the current span as 32 hex digits.
#[must_use]
pub fn current_trace_id() -> Option<String> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let id = span.span_context();
    id.is_valid().then(|| id.trace_id().to_string())
}

struct HeaderReader<'a>(&'a actix_web::http::header::HeaderMap);

impl Extractor for HeaderReader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|k| k.as_str()).collect()
    }
}

/// Makes `span` a child of the caller's `traceparent`.
pub fn adopt_parent(span: &tracing::Span, headers: &actix_web::http::header::HeaderMap) {
    let parent = global::get_text_map_propagator(|p| p.extract(&HeaderReader(headers)));
    // Fails only when no OpenTelemetry layer is installed, as in unit tests.
    let _ = span.set_parent(parent);
}

struct HeaderWriter<'a>(&'a mut reqwest::header::HeaderMap);

impl Injector for HeaderWriter<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = reqwest::header::HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, reqwest::header::HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

/// Adds the current span's `traceparent` to outgoing headers.
pub fn inject_parent(headers: &mut reqwest::header::HeaderMap) {
    let context = tracing::Span::current().context();
    global::get_text_map_propagator(|p| p.inject_context(&context, &mut HeaderWriter(headers)));
}

/// The current span's `traceparent` value, for a child process's `TRACEPARENT`.
#[must_use]
pub fn current_traceparent() -> Option<String> {
    let mut headers = reqwest::header::HeaderMap::new();
    inject_parent(&mut headers);
    headers.get("traceparent")?.to_str().ok().map(str::to_owned)
}
