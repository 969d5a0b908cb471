//! Row 37: whoever takes logs, traces and metrics is dead. The user sees nothing.

use crate::{
    oracle, seeds,
    world::{LogPipe, Setup},
};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::fault::{Link, Proxy, Target, Way};
use wire::JobState;

#[tokio::test(flavor = "multi_thread")]
async fn row_37_dead_sinks_slow_nothing() {
    for seed in seeds() {
        // It takes connections and never answers.
        let hole = Proxy::raw(Target::Tcp("127.0.0.1:9".into()), seed).await.unwrap();
        hole.link(Link::way(Way::Hold));
        let world = Setup::seed(seed)
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", hole.url())
            .with("MLFLOW_TRACKING_URI", hole.url())
            .with("RUST_LOG", "debug")
            .log_pipe(if seed % 2 == 0 { LogPipe::Full } else { LogPipe::Broken })
            .start()
            .await;
        let paced = json!({"op": "paced", "from": 1, "to": 60, "ms": 5});
        let job = world.job(json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": 60}]})).await;
        let mut slowest = Duration::ZERO;
        while !world.try_view(job).await.expect("the backend to answer").state.is_terminal() {
            let asked = Instant::now();
            let (status, _) = world.ask(Method::GET, "/training/jobs").await;
            assert_eq!(status, 200, "seed {seed}");
            slowest = slowest.max(asked.elapsed());
        }
        assert!(slowest < Duration::from_secs(3), "seed {seed}: a request took {slowest:?}");
        let view = oracle::check(&world, job).await;
        assert_eq!((view.state, view.attempt), (JobState::Succeeded, 1), "seed {seed}");
    }
}
