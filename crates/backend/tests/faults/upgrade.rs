//! Row 36: backends and trainers of different builds. There is one build here, so the other one is played: reports as an
//! older or a newer trainer sends them, and a schema that is one migration behind while a trainer runs.

use crate::{
    oracle, seeds,
    world::{Played, Setup, World},
};
use reqwest::Method;
use serde_json::json;
use std::path::Path;
use wire::JobState;

#[tokio::test(flavor = "multi_thread")]
async fn row_36_the_schema_is_migrated_while_a_trainer_runs() {
    let mut world = Setup::seed(1).start().await;
    for seed in seeds() {
        let paced = json!({"op": "paced", "from": 1, "to": 60, "ms": 20});
        let job = world.job(json!({"1": [{"op": "started"}, paced, {"op": "finish", "steps": 60}]})).await;
        world.until(job, "a step", |view| view.progress.step > seed % 20).await;
        world.backend.process.kill().unwrap();
        revert_last_migration(&world).await;
        world.restart_with(&[]).await;
        assert!(world.log().contains("applied 1 migrations"), "seed {seed}");
        let view = oracle::check(&world, job).await;
        let seen = (view.state, view.attempt, &view.failure);
        assert_eq!(seen, (JobState::Succeeded, 1, &None), "seed {seed}: the user noticed\n{}", world.log());
    }
}

async fn revert_last_migration(world: &World) {
    let newest = "SELECT max(version) FROM __diesel_schema_migrations";
    let version: String = world.db.query_one(newest, &[]).await.unwrap().get(0);
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let dirs = std::fs::read_dir(all).unwrap().map(|dir| dir.unwrap().path());
    let dir = dirs.into_iter().find(|dir| dir.file_name().unwrap().to_str().unwrap().starts_with(&version)).unwrap();
    let down = std::fs::read_to_string(dir.join("down.sql")).unwrap();
    world.db.batch_execute(&down).await.unwrap();
    let forget = "DELETE FROM __diesel_schema_migrations WHERE version = $1";
    world.db.execute(forget, &[&version]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn row_36_reports_of_older_and_newer_trainers_are_taken() {
    let world = Setup::seed(1).start().await;
    let played = Played::external(&world).await;
    // Only what every version sends; then more than this one knows.
    let old = json!({"type": "started", "trainer_version": "0.0.1", "device": "cpu", "threads": 1});
    let new = json!({"type": "metrics", "step": 1, "epoch": 0.0, "values": {"train_loss": 1.0, "novelty": 2.0},
        "colour": "green"});
    let (status, reply) = played.send(&[(1, old), (2, new)]).await;
    assert_eq!((status, &reply["acked_seq"]), (200, &json!(2)), "{reply}");
    // A kind of event that is not known yet costs its content, and says so, but not its place.
    let (status, problem) = played.send(&[(3, json!({"type": "telepathy"}))]).await;
    assert_eq!((status, &problem["code"]), (422, &json!("INVALID")), "{problem}");
    let (status, reply) = played.send(&[(4, json!({"type": "log", "level": "info", "message": "on"}))]).await;
    assert_eq!((status, &reply["acked_seq"]), (200, &json!(4)), "{reply}");
    let (status, _) = world.ask(Method::POST, &format!("/training/jobs/{}/cancel", played.job)).await;
    assert_eq!(status, 200);
    oracle::check(&world, played.job).await;
}
