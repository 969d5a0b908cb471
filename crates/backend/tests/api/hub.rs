//! Models of the Hugging Face Hub, with a stand-in for it.

use crate::app::TestApp;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};
use testkit::hub::{COMMIT, Hub, TOKEN};
use wire::hub::{PullStatus, PullView};

impl TestApp {
    async fn pull(&self, body: Value) -> PullView {
        serde_json::from_value(self.post("/api/models/pull", &body).await.expect(202)).unwrap()
    }

    async fn pulled(&self, pull: &PullView) -> PullView {
        self.until_pull(pull, |p| p.status.is_over()).await
    }

    async fn until_pull(&self, pull: &PullView, done: impl Fn(&PullView) -> bool) -> PullView {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let now = self.get(&format!("/api/models/pulls/{}", pull.id)).await.expect(200);
            let now: PullView = serde_json::from_value(now).unwrap();
            if done(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn assert_no_model(&self) {
        assert_eq!(self.get("/api/models").await.expect(200)["items"], json!([]));
        assert_eq!(self.objects("models/o--m/").await, Vec::<String>::new());
    }
}

async fn waiting_for_weights(hub: &Hub) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while hub.requests("/large/").is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_goes_to_the_hub_once_and_pages_by_its_links() {
    let hub = Hub::start();
    let app = TestApp::set(&hub.environment()).await;
    let path = "/api/models/search?search=tiny%20llama&author=o&library=transformers&num_parameters=min%3A1B&sort=likes&limit=1";
    let page = app.get(path).await.expect(200);
    assert_eq!(page["next_cursor"], "abc=");
    let model = &page["items"][0];
    assert_eq!((&model["id"], &model["gated"], &model["downloads"]), (&json!("o/m"), &json!(true), &json!(7)));
    assert_eq!(app.get(path).await.expect(200), page);
    let seen = hub.requests("/api/models");
    assert_eq!(seen.len(), 1, "the second answer comes from the cache");
    assert!(seen[0].1, "without the token");
    let fields = seen[0].0.split_once("&expand").unwrap().0;
    assert_eq!(
        fields,
        "/api/models?sort=likes&limit=1&search=tiny%20llama&author=o&filter=transformers&num_parameters=min%3A1B"
    );
    app.get(&format!("{path}&cursor=abc%3D")).await.expect(200);
    assert!(hub.requests("/api/models").last().unwrap().0.ends_with("&cursor=abc%3D"));
    app.get("/api/models/popular?limit=3").await.expect(200);
    assert!(
        hub.requests("/api/models").last().unwrap().0.contains("sort=downloads&limit=3&pipeline_tag=text-generation")
    );
    assert_eq!(app.get("/api/models/search?limit=0").await.status, 422);
    hub.break_down();
    let problem = app.get("/api/models/search?search=other").await.problem();
    assert_snapshot!(problem, @"503 UNAVAILABLE: the Hugging Face Hub (127.0.0.1) cannot be used now: it answered 502 Bad Gateway; try again, check HF_ENDPOINT, or bring a model from a folder with `hone models import`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_brings_one_commit_into_the_registry() {
    let hub = Hub::start();
    let app = TestApp::set(&hub.environment()).await;
    let pull = app.pull(json!({"id": "o/m"})).await;
    let done = app.pulled(&pull).await;
    assert_eq!(
        (done.status, done.error.as_deref(), done.commit.as_deref()),
        (PullStatus::Succeeded, None, Some(COMMIT))
    );
    assert_eq!((done.files_done, done.files_total, done.bytes_done), (5, 5, done.bytes_total));
    let model = app.get("/api/models/o--m").await.expect(200);
    assert_eq!((&model["revision"], &model["info"]["architecture"]), (&json!(COMMIT), &json!("LlamaForCausalLM")));
    for file in model["files"].as_array().unwrap() {
        let content = hub.file(file["path"].as_str().unwrap());
        assert_eq!(file["sha256"], hex::encode(Sha256::digest(content)));
    }
    assert_eq!(app.get("/api/models/cached").await.expect(200)["items"][0], model);
    // Neither pickled weights nor what is no part of a model, and the token goes to nobody else.
    assert!(
        hub.requests("/o/m/resolve")
            .iter()
            .all(|(path, token)| *token && !path.contains(".bin") && !path.contains("README"))
    );
    assert!(!hub.requests("/large/").is_empty() && hub.requests("/large/").iter().all(|(_, token)| !token));
    assert!(!app.log().contains(TOKEN));
    // What is there is not fetched again.
    let before = hub.requests("/large/").len();
    let again = app.pull(json!({"id": "o/m"})).await;
    assert_eq!(app.pulled(&again).await.status, PullStatus::Succeeded);
    assert_eq!(hub.requests("/large/").len(), before);
    assert_eq!(app.get("/api/models/pulls").await.expect(200)["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_after_a_restart() {
    let hub = Hub::start();
    hub.hold(true);
    let first = TestApp::set(&hub.environment()).await;
    let pull = first.pull(json!({"id": "o/m", "name": "mine"})).await;
    assert_eq!(first.pull(json!({"id": "o/m", "name": "mine"})).await.id, pull.id, "asked twice is asked once");
    waiting_for_weights(&hub).await;
    first.kill();
    let second = first.sibling(&hub.environment()).await;
    hub.hold(false);
    let done = second.pulled(&pull).await;
    assert_eq!((done.status, done.error), (PullStatus::Succeeded, None));
    assert_eq!(second.get("/api/models/mine").await.expect(200)["revision"], COMMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_leaves_nothing() {
    let hub = Hub::start();
    hub.hold(true);
    let app = TestApp::set(&hub.environment()).await;
    let pull = app.pull(json!({"id": "o/m"})).await;
    waiting_for_weights(&hub).await;
    let path = format!("/api/models/pulls/{}/cancel", pull.id);
    let view = app.post(&path, &json!({})).await.expect(200);
    assert_eq!(view["status"], "cancelled");
    assert_eq!(app.post(&path, &json!({})).await.expect(200), view);
    app.assert_no_model().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_the_hub_lists_is_refused_and_nothing_is_kept() {
    let hub = Hub::start();
    hub.spoil();
    let app = TestApp::set(&hub.environment()).await;
    let pull = app.pull(json!({"id": "o/m"})).await;
    let failed = app.pulled(&pull).await;
    assert_eq!(failed.status, PullStatus::Failed);
    assert!(failed.error.as_deref().unwrap().contains("model.safetensors` has sha256"), "{failed:?}");
    app.assert_no_model().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_cannot_send_us_into_the_private_network_and_refusals_say_what_to_do() {
    let hub = Hub::start();
    let app = TestApp::set(&[("HF_ENDPOINT", &hub.url)]).await;
    let error = async |body: Value| app.pulled(&app.pull(body).await).await.error.unwrap();
    let refused = error(json!({"id": "o/m"})).await;
    assert!(refused.contains("the Hub sends us to another place") && hub.requests("/large/").is_empty(), "{refused}");
    app.assert_no_model().await;
    let gated = error(json!({"id": "o/m", "revision": "locked"})).await;
    assert!(gated.contains("HF_TOKEN"), "{gated}");
    let missing = error(json!({"id": "o/m", "revision": "v9"})).await;
    assert!(missing.contains("the Hub has no /api/models/o/m/revision/v9 for us"), "{missing}");
    for body in [json!({"id": "../m"}), json!({"id": "a/b/c"}), json!({"id": "o/m", "revision": "a..b"})] {
        assert_eq!(app.post("/api/models/pull", &body).await.status, 422, "{body}");
    }
    // A pull is its user's own.
    let pull = app.get("/api/models/pulls").await.expect(200)["items"][0]["id"].as_str().unwrap().to_owned();
    let other = "hone_sk_0000000000000000000000000000000000000000000000000000000000000003";
    app.add_user("other", other).await;
    let get = app.anonymous(Method::GET, &format!("/api/models/pulls/{pull}")).bearer_auth(other);
    assert_eq!(get.send().await.unwrap().status(), 404);
}
