//! Base models: import, resume, and every reason to refuse one.

use crate::app::{Reply, TestApp, send};
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::model::{CreatedModel, ModelView};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

type Files = Vec<(&'static str, Vec<u8>)>;

/// The smallest folder that is a model: one tensor of two numbers.
pub fn tiny() -> Files {
    let header = br#"{"lm_head.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
    let mut weights = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    weights.extend_from_slice(header);
    weights.extend_from_slice(&[0; 8]);
    let config = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 2, "max_position_embeddings": 64}"#;
    vec![
        ("config.json", config.to_vec()),
        ("model.safetensors", weights),
        ("tokenizer.json", br#"{"model": {"type": "BPE"}}"#.to_vec()),
    ]
}

/// Another revision: other weights.
pub fn tiny_with(last_byte: u8) -> Files {
    let mut files = tiny();
    *files[1].1.last_mut().unwrap() = last_byte;
    files
}

pub fn describe(files: &Files) -> Value {
    files
        .iter()
        .map(|(path, content)| json!({"path": path, "size": content.len(), "sha256": hex::encode(Sha256::digest(content))}))
        .collect()
}

impl TestApp {
    async fn open_model(&self, name: &str, files: &Files) -> CreatedModel {
        let created = self.post("/api/models", &json!({"name": name, "files": describe(files)})).await.expect(201);
        serde_json::from_value(created).unwrap()
    }

    async fn put_model(&self, created: &CreatedModel, files: &Files) {
        for session in &created.uploads {
            let (_, content) = files.iter().find(|(path, _)| session.key.ends_with(&format!("/{path}"))).unwrap();
            self.put_parts(session, content).await;
        }
    }

    async fn complete_model(&self, model: &ModelView) -> Reply {
        self.post(&format!("/api/models/{}/{}/complete", model.name, model.revision), &Value::Null).await
    }

    /// Imports a model the whole way.
    pub async fn import_model(&self, name: &str, files: &Files) -> ModelView {
        let created = self.open_model(name, files).await;
        self.put_model(&created, files).await;
        serde_json::from_value(self.complete_model(&created.model).await.expect(200)).unwrap()
    }
}

#[tokio::test]
async fn a_model_is_ready_once_its_files_are_verified() {
    let app = TestApp::new().await;
    let files = tiny();
    let created = app.open_model("tiny", &files).await;
    assert_eq!(created.uploads.len(), 3);
    assert_eq!(app.get("/api/models").await.expect(200)["items"], json!([]), "not listed before it is ready");
    app.put_model(&created, &files).await;
    let done = app.complete_model(&created.model).await.expect(200);
    let info = json!({"architecture": "LlamaForCausalLM", "parameters": 2, "dtype": "F32", "vocab_size": 2,
        "context_length": 64, "has_chat_template": false,
        "shape": {"hidden": 0, "layers": 0, "parameters": 2, "wide_parameters": 2, "projections": []}});
    assert_eq!((&done["status"], &done["info"]), (&json!("ready"), &info));
    assert_eq!(app.complete_model(&created.model).await.expect(200), done, "repeating it changes nothing");

    assert_eq!(app.get("/api/models/tiny").await.expect(200), done);
    assert_eq!(app.get(&format!("/api/models/tiny@{}", created.model.revision)).await.expect(200), done);
    let prefix = format!("models/tiny/{}/", created.model.revision);
    let mut keys: Vec<String> =
        ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"].map(|f| format!("{prefix}{f}")).into();
    keys.sort();
    assert_eq!(app.objects(&prefix).await, keys);

    let downloads = app.get(&format!("/api/models/tiny/{}/download", created.model.revision)).await.expect(200);
    for (path, content) in &files {
        let file = downloads.as_array().unwrap().iter().find(|f| f["path"] == *path).unwrap();
        let reply = app.anonymous(Method::GET, file["url"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(reply.bytes().await.unwrap().as_ref(), content.as_slice());
    }
}

#[tokio::test]
async fn a_revision_that_is_there_is_not_uploaded_again() {
    let app = TestApp::new().await;
    let first = app.import_model("tiny", &tiny()).await;
    let again = app.open_model("tiny", &tiny()).await;
    assert_eq!((again.uploads.len(), again.model), (0, first));
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped() {
    let app = TestApp::new().await;
    let files = tiny();
    let first = app.open_model("tiny", &files).await;
    app.put_parts(&first.uploads[0], &files[0].1).await;
    let early = app.complete_model(&first.model).await;
    assert_eq!(early.status.as_u16(), 409, "{:?}", early.body);
    let second = app.open_model("tiny", &files).await;
    let ids = |c: &CreatedModel| c.uploads.iter().map(|u| u.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second), "the same sessions");
    assert!(second.uploads[0].parts.is_empty() && !second.uploads[1].parts.is_empty());
    app.put_model(&second, &files).await;
    app.complete_model(&second.model).await.expect(200);
}

#[tokio::test]
async fn the_newest_revision_is_the_default() {
    let app = TestApp::new().await;
    let first = app.import_model("tiny", &tiny()).await;
    let second = app.import_model("tiny", &tiny_with(1)).await;
    assert_ne!(first.revision, second.revision);
    assert_eq!(app.get("/api/models/tiny").await.expect(200)["revision"], second.revision);
    assert_eq!(app.get("/api/models?limit=1").await.expect(200)["items"][0]["revision"], second.revision);
    let missing = app.get("/api/models/tiny@0123456789abcdef").await.problem();
    let missing = missing.replace(&first.revision, "FIRST").replace(&second.revision, "SECOND");
    assert!(missing.starts_with("404 NOT_FOUND: no revision of tiny named `0123456789abcdef`"), "{missing}");
}

#[tokio::test]
async fn files_that_cannot_be_a_model_are_refused_before_anything_is_uploaded() {
    let app = TestApp::new().await;
    let create = async |name: &str, files: Files| {
        app.post("/api/models", &json!({"name": name, "files": describe(&files)})).await.problem()
    };
    let with = |path: &'static str| {
        let mut files = tiny();
        files.push((path, b"x".to_vec()));
        files
    };
    assert_snapshot!(create("unmade", with("pytorch_model.bin")).await, @r"
    422 INVALID: model: pytorch_model.bin: is a pickle file, which can run code when it is loaded; convert the weights to safetensors
    - pytorch_model.bin: is a pickle file, which can run code when it is loaded; convert the weights to safetensors
    ");
    assert_snapshot!(create("unmade", with("../../jobs/evil")).await, @r"
    422 INVALID: model: ../../jobs/evil: is not a safe path; use `/` between names of letters, digits, `.`, `_` or `-` that do not start with `.` or `-`
    - ../../jobs/evil: is not a safe path; use `/` between names of letters, digits, `.`, `_` or `-` that do not start with `.` or `-`
    ");
    assert_snapshot!(create("unmade", with("/etc/passwd")).await, @r"
    422 INVALID: model: /etc/passwd: is not a safe path; use `/` between names of letters, digits, `.`, `_` or `-` that do not start with `.` or `-`
    - /etc/passwd: is not a safe path; use `/` between names of letters, digits, `.`, `_` or `-` that do not start with `.` or `-`
    ");
    assert_snapshot!(create("unmade", with("config.json")).await, @r"
    422 INVALID: model: config.json: is listed twice
    - config.json: is listed twice
    ");
    assert_snapshot!(create("unmade", with("manifest.json")).await, @r"
    422 INVALID: model: manifest.json: is a name the registry uses itself
    - manifest.json: is a name the registry uses itself
    ");
    assert_snapshot!(create("a/b", tiny()).await, @r"
    422 INVALID: model: name: must be 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`
    - name: must be 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`
    ");
    assert_snapshot!(create("unmade", Vec::new()).await, @r"
    422 INVALID: model: config.json: is missing; a model is a folder in the Hugging Face layout
    - config.json: is missing; a model is a folder in the Hugging Face layout
    ");
    assert_snapshot!(create("unmade", vec![("config.json", b"{}".to_vec())]).await, @r"
    422 INVALID: model: files: holds no .safetensors file; weights must be safetensors
    - files: holds no .safetensors file; weights must be safetensors
    ");
    let file = json!({"path": "config.json", "size": 1, "sha256": "ABC"});
    assert_snapshot!(app.post("/api/models", &json!({"name": "unmade", "files": [file]})).await.problem(), @r"
    422 INVALID: model: config.json: needs a sha256 of 64 lowercase hex digits
    - config.json: needs a sha256 of 64 lowercase hex digits
    ");
    assert_eq!(app.objects("models/unmade/").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_model_over_the_limit_is_refused_before_anything_is_uploaded() {
    let app = TestApp::new().await;
    let mut files = describe(&tiny());
    files[1]["size"] = json!(6_000_000_000_u64);
    let reply = app.post("/api/models", &json!({"name": "huge", "files": files})).await;
    assert_snapshot!(reply.problem(), @"413 TOO_LARGE: a model file may have 5000000000 bytes, this one has 6000000000 bytes; nothing was stored (MODEL_MAX_BYTES sets the limit)");
}

/// Imports `files` and gives what the user reads; nothing may be left of it.
async fn refused(app: &TestApp, name: &str, files: Files) -> String {
    let created = app.open_model(name, &files).await;
    app.put_model(&created, &files).await;
    let problem = app.complete_model(&created.model).await.problem();
    assert_eq!(app.objects(&format!("models/{name}/")).await, Vec::<String>::new());
    app.complete_model(&created.model).await.expect(404);
    problem.replace(&created.model.revision, "REVISION")
}

#[tokio::test]
async fn corrupt_weights_are_refused_by_name_and_removed() {
    let app = TestApp::new().await;
    let mut truncated = tiny();
    truncated[1].1.pop();
    assert_snapshot!(refused(&app, "truncated", truncated).await, @r"
    422 MODEL_CORRUPT: `models/truncated/REVISION/` is not a usable model: model.safetensors: tensor `lm_head.weight`: its bytes 0..8 lie outside the 7 bytes of data
    - model.safetensors: tensor `lm_head.weight`: its bytes 0..8 lie outside the 7 bytes of data
    ");
    let mut garbage = tiny();
    garbage[1].1 = b"PK\x03\x04 this is a zip file, as torch.save writes it".to_vec();
    assert_snapshot!(refused(&app, "garbage", garbage).await, @r"
    422 MODEL_CORRUPT: `models/garbage/REVISION/` is not a usable model: model.safetensors: this is a pickle (a PyTorch checkpoint), not safetensors; convert it
    - model.safetensors: this is a pickle (a PyTorch checkpoint), not safetensors; convert it
    ");
    let mut config = tiny();
    config[0].1 = b"{\"architectures\": ".to_vec();
    assert_snapshot!(refused(&app, "config", config).await, @r"
    422 MODEL_CORRUPT: `models/config/REVISION/` is not a usable model: config.json: it is not what it should be: EOF while parsing a value at line 1 column 18
    - config.json: it is not what it should be: EOF while parsing a value at line 1 column 18
    ");
    let mut tokenizer = tiny();
    tokenizer.pop();
    assert_snapshot!(refused(&app, "tokenizer", tokenizer).await, @r"
    422 MODEL_CORRUPT: `models/tokenizer/REVISION/` is not a usable model: tokenizer.json: the file is missing
    - tokenizer.json: the file is missing
    ");
}

#[tokio::test]
async fn content_that_is_not_what_was_declared_is_refused_and_removed() {
    let app = TestApp::new().await;
    let created = app.open_model("mismatch", &tiny()).await;
    app.put_model(&created, &tiny_with(9)).await;
    let reply = app.complete_model(&created.model).await;
    assert_eq!((reply.status.as_u16(), &reply.body["code"]), (422, &json!("CHECKSUM_MISMATCH")), "{:?}", reply.body);
    assert_eq!(app.objects("models/mismatch/").await, Vec::<String>::new());
    app.complete_model(&created.model).await.expect(404);
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_near_names() {
    let app = TestApp::new().await;
    assert_snapshot!(app.get("/api/models/tiny").await.problem(), @"404 NOT_FOUND: no model named `tiny`; there is no model yet");
    app.import_model("tiny", &tiny()).await;
    assert_snapshot!(app.get("/api/models/tinny").await.problem(), @"404 NOT_FOUND: no model named `tinny`; did you mean tiny?");
    assert_snapshot!(app.get("/api/models/llama").await.problem(), @"404 NOT_FOUND: no model named `llama`; known: tiny");
}

#[tokio::test]
async fn the_registry_is_shared_and_anyone_may_finish_an_upload() {
    let app = TestApp::new().await;
    app.add_user("other", OTHER_KEY).await;
    let files = tiny();
    let created = app.open_model("tiny", &files).await;
    let other = async |method: Method, path: &str, body: &Value| {
        send(app.anonymous(method, path).bearer_auth(OTHER_KEY).json(body)).await
    };
    let body = json!({"name": "tiny", "files": describe(&files)});
    let theirs: CreatedModel =
        serde_json::from_value(other(Method::POST, "/api/models", &body).await.expect(201)).unwrap();
    app.put_model(&theirs, &files).await;
    let complete = format!("/api/models/tiny/{}/complete", created.model.revision);
    other(Method::POST, &complete, &Value::Null).await.expect(200);
    app.get("/api/models/tiny").await.expect(200);
}
