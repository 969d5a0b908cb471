//! A package from the configuration file to the trained version.

use crate::harness::Hone;
use std::fs;

#[test]
fn a_package_is_drafted_published_and_trained() {
    let hone = Hone::with_material();
    let config = hone.path("config.yaml");
    fs::write(&config, "model: tiny\ndataset: rows\ntraining: {max_steps: 4, learning_rate: 1.0e-2}\n").unwrap();
    let config = config.to_str().unwrap();

    let (code, message) = hone.fails(&["packages", "publish", "support"]);
    assert_eq!(code, 3, "{message}");
    let text = hone.ok(&["packages", "draft", "support", config, "--summary", "the first"]);
    assert!(text.contains("draft support-v1-draft-") && text.contains("hone packages publish support"), "{text}");
    let (code, message) = hone.fails(&["packages", "launch", "support"]);
    assert_eq!((code, message.contains("has no published version")), (3, true), "{message}");

    let published = hone.json(&["packages", "publish", "support"]);
    assert_eq!((&published["name"], &published["change_summary"]), (&"support-v1".into(), &"the first".into()));
    let (code, message) = hone.fails(&["packages", "publish", "support"]);
    assert_eq!((code, message.contains("has no draft")), (3, true), "{message}");

    let out = hone.run(&["packages", "launch", "support@1", "--follow"]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && told.contains("succeeded: 4 steps"), "{told}\n{}", hone.logs());
    assert_eq!(hone.job("latest")["version_id"], published["id"]);

    // What the job made is listed, and its files can be had.
    let file = hone.with_api(async |api| {
        let list: wire::Page<wire::artifact::ModelArtifactView> = api.client.get("/api/artifacts").await.unwrap();
        let path = format!("/api/artifacts/{}", list.items[0].id);
        let one: wire::artifact::ModelArtifactView = api.client.get(&path).await.unwrap();
        assert_eq!((one.name.as_str(), one.base_model.as_str(), list.items.len()), ("support-v1", "tiny", 1));
        let files = one.files.unwrap();
        let weights = files.iter().find(|f| f.path == "adapter_model.safetensors").unwrap();
        reqwest::get(&weights.url).await.unwrap().bytes().await.unwrap().len() == usize::try_from(weights.size).unwrap()
    });
    assert!(file);

    let shown = hone.json(&["packages", "show", "support"]);
    assert_eq!(shown["versions"][0]["training"]["status"], "completed");
    let text = hone.ok(&["packages", "show", "support"]);
    assert!(text.contains("support-v1") && text.contains("completed"), "{text}");
    let text = hone.ok(&["packages", "ls"]);
    assert!(text.contains("support") && text.contains("v1"), "{text}");
    // Version numbers go on, and a draft with an error is told before it is published.
    fs::write(config, "model: none\ndataset: rows\n").unwrap();
    let text = hone.ok(&["packages", "draft", "support", config]);
    assert!(text.contains("support-v2-draft-") && text.contains("no model named `none`"), "{text}");
    let (code, message) = hone.fails(&["packages", "publish", "support"]);
    assert_eq!(code, 4, "{message}");
}
