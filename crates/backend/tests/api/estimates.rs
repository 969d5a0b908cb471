//! Estimates that are made in the background.

use crate::app::TestApp;
use diesel_async::SimpleAsyncConnection;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A draft that can be published; its path.
async fn draft(app: &TestApp) -> String {
    let dataset = app.get("/datasets/words").await.expect(200)["id"].clone();
    let steps = json!({"model": {"name": "tiny"}, "config": {"training": {"max_steps": 3}}, "dataset": {"datasets": [{"id": dataset}]}, "deploy": {"target": "local"}});
    let body = json!({"package_name": "p", "draft": {"steps": steps}});
    let draft = app.post("/api/training/versions/auto-save", &body).await.expect(200);
    format!("/api/training/versions/{}", draft["id"].as_str().unwrap())
}

async fn until(app: &TestApp, path: &str, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let told = app.get(path).await.expect(200);
        if done(&told) {
            return told;
        }
        assert!(Instant::now() < deadline, "{told:#}\n{}", app.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_version_keeps_its_estimate_and_one_lost_in_a_restart_is_made_again() {
    let first = TestApp::ready_to_train().await;
    let version = draft(&first).await;
    let path = format!("{version}/estimate");
    let missing = first.get(&path).await.problem();
    assert!(missing.contains("has no estimate: one is made when a version is published"), "{missing}");
    let published = first.post(&format!("{version}/publish"), &json!({})).await.expect(200);
    // No trainer can rehearse it here: what the shapes tell is kept, and it is tried again.
    let told = until(&first, &path, |told| told["estimate"].is_object()).await;
    assert_eq!((&told["status"], &told["estimate"]["basis"]), (&json!("pending"), &json!("shapes")), "{told:#}");
    assert!(told["estimate"]["note"].as_str().unwrap().starts_with("not rehearsed: "), "{told:#}");

    // As if the backend had died while it was being made, the last time it is tried.
    first.kill();
    let lost = "UPDATE estimates SET result = NULL, tries = 4, next_try_at = now()";
    first.db.system(async move |conn| Ok(conn.batch_execute(lost).await?)).await.unwrap();
    let second = first.sibling(&[]).await;
    let told = until(&second, &path, |told| told["status"] != "pending").await;
    assert_eq!((&told["status"], &told["estimate"]["basis"]), (&json!("done"), &json!("shapes")), "{told:#}");
    // The version itself never changed.
    assert_eq!(second.get(&version).await.expect(200)["revision"], published["revision"]);
}
