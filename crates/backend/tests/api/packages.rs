//! Training packages, and what there is to choose from.

use crate::app::{Reply, TestApp, send};
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000003";
const PACKAGES: &str = "/api/training/packages";

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect()
}

async fn patch(app: &TestApp, path: &str, body: Value) -> Reply {
    send(app.request(Method::PATCH, path).json(&body)).await
}

#[tokio::test]
async fn packages_are_created_read_changed_and_deleted() {
    let app = TestApp::new().await;
    let body = json!({"name": "support bot", "description": "answers", "config": {"lora": {"r": 8}}});
    let made = app.post(PACKAGES, &body).await.expect(201);
    assert_eq!((&made["version_count"], &made["latest_published_version"]), (&json!(0), &json!(0)));
    assert_eq!((&made["template_type"], &made["config"]), (&json!("lora_finetuning"), &json!({"lora": {"r": 8}})));
    let by_id = format!("{PACKAGES}/{}", made["id"].as_str().unwrap());
    assert_eq!(app.get(&by_id).await.expect(200), made);
    assert_eq!(app.get(&format!("{PACKAGES}/support%20bot")).await.expect(200), made);

    assert_snapshot!(app.post(PACKAGES, &body).await.problem(), @"409 CONFLICT: a package of this name exists; choose another name or delete it");
    assert_snapshot!(app.get(&format!("{PACKAGES}/suport%20bot")).await.problem(), @"404 NOT_FOUND: no package named `suport bot`; did you mean support bot?");
    assert_snapshot!(app.post(PACKAGES, &json!({"name": " x"})).await.problem(), @r"
    422 INVALID: name: must have 1 to 200 characters, none of them control characters, and no blank at either end
    - name: must have 1 to 200 characters, none of them control characters, and no blank at either end
    ");
    assert_snapshot!(app.post(PACKAGES, &json!({"name": "x", "config": {"lora": {"rr": 8}}})).await.problem(), @r"
    422 INVALID: training configuration: lora.rr: is not a configuration key (did you mean `lora.r`?)
    - lora.rr: is not a configuration key (did you mean `lora.r`?)
    ");

    let renamed = patch(&app, &by_id, json!({"name": "bot"})).await.expect(200);
    assert_eq!((&renamed["name"], &renamed["description"]), (&json!("bot"), &json!("answers")));
    assert!(renamed["updated_at"].as_str() > made["updated_at"].as_str());
    app.delete(&by_id).await.expect(204);
    app.get(&by_id).await.expect(404);
    app.delete(&by_id).await.expect(404);
    app.post(PACKAGES, &json!({"name": "bot"})).await.expect(201);
}

#[tokio::test]
async fn packages_are_listed_in_order_by_part_of_the_name_and_by_tenant() {
    let app = TestApp::new().await;
    for name in ["alpha", "beta", "alp_ine"] {
        app.post(PACKAGES, &json!({"name": name})).await.expect(201);
    }
    let list = async |query: &str| app.get(&format!("{PACKAGES}{query}")).await.expect(200);
    assert_eq!(names(&list("").await), ["alp_ine", "beta", "alpha"]);
    assert_eq!(names(&list("?sort=created_at").await), ["alpha", "beta", "alp_ine"]);
    assert_eq!(names(&list("?name=ALP").await), ["alp_ine", "alpha"]);
    assert_eq!(names(&list("?name=p_i").await), ["alp_ine"], "`_` is a letter like any other");
    patch(&app, &format!("{PACKAGES}/alpha"), json!({"description": "new"})).await.expect(200);
    assert_eq!(names(&list("?sort=-updated_at").await), ["alpha", "alp_ine", "beta"]);
    // Pages in both directions.
    for (sort, wanted) in [("-created_at", ["alp_ine", "beta", "alpha"]), ("updated_at", ["beta", "alp_ine", "alpha"])]
    {
        let first = list(&format!("?limit=2&sort={sort}")).await;
        let cursor = first["next_cursor"].as_str().unwrap();
        let second = list(&format!("?limit=2&sort={sort}&cursor={cursor}")).await;
        assert_eq!([names(&first), names(&second)].concat(), wanted, "{sort}");
        assert_eq!(second.get("next_cursor"), None);
    }
    app.add_user("other", OTHER_KEY).await;
    let theirs = send(app.anonymous(Method::GET, PACKAGES).bearer_auth(OTHER_KEY)).await.expect(200);
    assert!(names(&theirs).is_empty());
    send(app.anonymous(Method::GET, &format!("{PACKAGES}/alpha")).bearer_auth(OTHER_KEY)).await.expect(404);
    assert_snapshot!(app.get(&format!("{PACKAGES}?sort=size")).await.problem(), @"422 INVALID: query string: Query deserialize error: unknown variant `size`, expected one of `-created_at`, `created_at`, `-updated_at`, `updated_at`");
}

#[tokio::test]
async fn presets_and_gpu_configurations_come_from_the_configuration() {
    let app = TestApp::new().await;
    let ids = |list: Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(app.get("/api/presets").await.expect(200)), ["conservative", "balanced", "aggressive"]);
    assert!(ids(app.get("/api/gpu-configs").await.expect(200)).contains(&"a10g-small".to_owned()));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("catalog.yaml");
    let own = "gpu_configs: [{id: ours, name: Ours, gpu: H200, gpu_count: 8, memory_gb: 141, price_per_hour: 3.5, currency: EUR}]";
    std::fs::write(&file, own).unwrap();
    let other = app.sibling(&[("CATALOG_FILE", file.to_str().unwrap())]).await;
    let listed = other.get("/api/gpu-configs").await.expect(200);
    assert_eq!((ids(listed.clone()), &listed[0]["price_per_hour"]), (vec!["ours".to_owned()], &json!(3.5)));
    assert_eq!(ids(other.get("/api/presets").await.expect(200)).len(), 3);
}
