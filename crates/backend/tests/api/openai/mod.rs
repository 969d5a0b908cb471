//! The OpenAI-compatible API request by request. That OpenAI's own clients work against it is shown by
//! `scripts/test-clients.sh`.

mod files;
mod jobs;
mod uploads;

use crate::app::{Reply, TestApp, file, send};
use crate::models::tiny;
use insta::assert_snapshot;
use reqwest::{Method, multipart::Form};
use serde_json::Value;

pub const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

impl Reply {
    /// What a client reads: `status code (param): message`.
    fn error(&self) -> String {
        let object = &self.body["error"];
        let text = |name: &str| object[name].as_str().unwrap_or("-").to_owned();
        assert!(object["message"].is_string() && object["type"].is_string(), "no error object: {:#}", self.body);
        format!("{} {} ({}): {}", self.status.as_u16(), text("code"), text("param"), text("message"))
    }
}

impl TestApp {
    /// With the model `tiny`.
    async fn with_model() -> Self {
        let app = Self::new().await;
        app.import_model("tiny", &tiny()).await;
        app
    }

    async fn upload_file(&self, content: impl Into<Vec<u8>>) -> Reply {
        self.send_file(Form::new().text("purpose", "fine-tune").part("file", file("rows.jsonl", content))).await
    }

    async fn send_file(&self, form: Form) -> Reply {
        send(self.request(Method::POST, "/v1/files").multipart(form)).await
    }

    /// The id of a good file.
    async fn a_file(&self, content: impl Into<Vec<u8>>) -> String {
        let file = self.upload_file(content).await.expect(200);
        assert_eq!(file["status"], "processed", "{file:#}");
        file["id"].as_str().unwrap().to_owned()
    }
}

/// The ids of a list.
fn ids(list: &Value) -> Vec<&str> {
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!((list["first_id"].as_str(), list["last_id"].as_str()), (ids.first().copied(), ids.last().copied()));
    ids
}

#[tokio::test]
async fn a_key_is_taken_from_either_header_and_its_refusal_is_an_error_object() {
    let app = TestApp::with_model().await;
    let get = |path: &str| app.anonymous(Method::GET, path);
    let refused = send(get("/v1/models")).await;
    assert_snapshot!(refused.error(), @"401 invalid_api_key (-): no valid API key; send `Authorization: Bearer hone_sk_…`");
    assert_eq!(refused.body["error"]["type"], "invalid_request_error");
    assert_eq!(send(get("/v1/models").bearer_auth("hone_sk_unknown")).await.error(), refused.error());
    for path in ["/v1/models", "/openai/models?api-version=2024-10-21", "/openai/v1/models?api-version=preview"] {
        let models = send(get(path).header("api-key", crate::app::KEY)).await.expect(200);
        assert_eq!(ids(&models), ["tiny"], "{path}");
    }
}

#[tokio::test]
async fn what_is_not_served_is_an_error_object_too() {
    let app = TestApp::with_model().await;
    assert_snapshot!(app.post("/v1/chat/completions", &Value::Null).await.error(), @"404 unknown_url (-): Unknown request URL: POST /v1/chat/completions. Please check the URL for typos.");
    assert_snapshot!(app.get("/v1/models/none").await.error(), @"404 model_not_found (model): The model 'none' does not exist or you do not have access to it.");
    assert_snapshot!(app.get("/v1/models/ft%3Atiny%3Alocal%3A%3Aabc").await.error(), @"404 model_not_found (model): The model 'ft:tiny:local::abc' does not exist or you do not have access to it.");
    assert_snapshot!(app.delete("/v1/models/tiny").await.error(), @"403 insufficient_permissions (model): The model 'tiny' is a base model of this server, which its users cannot delete.");
    assert_eq!(app.get("/v1/models/tiny").await.expect(200)["owned_by"], "hone");
}
