//! Uploads in parts: any order in, the named order out, and nothing left of what was given up.

use super::OTHER_KEY;
use crate::app::{Reply, TestApp, chat_rows, file, send};
use backend::{db::Conn, schema, sweep};
use chrono::{TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use reqwest::{Method, multipart::Form};
use serde_json::{Value, json};

impl TestApp {
    async fn open_upload(&self, bytes: usize) -> String {
        let body = json!({"bytes": bytes, "filename": "rows.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"});
        let upload = self.post("/v1/uploads", &body).await.expect(200);
        assert_eq!((&upload["status"], &upload["file"]), (&json!("pending"), &json!(null)));
        upload["id"].as_str().unwrap().to_owned()
    }

    async fn add_part(&self, upload: &str, content: impl Into<Vec<u8>>) -> Reply {
        let form = Form::new().part("data", file("upload", content));
        send(self.request(Method::POST, &format!("/v1/uploads/{upload}/parts")).multipart(form)).await
    }

    async fn part(&self, upload: &str, content: impl Into<Vec<u8>>) -> Value {
        self.add_part(upload, content).await.expect(200)["id"].clone()
    }

    async fn complete_upload(&self, upload: &str, parts: &[&Value]) -> Reply {
        self.post(&format!("/v1/uploads/{upload}/complete"), &json!({"part_ids": parts})).await
    }

    async fn stored(&self) -> usize {
        self.objects(&format!("datasets/{}/", self.user)).await.len()
    }
}

#[tokio::test]
async fn parts_become_a_file_in_the_order_that_is_named() {
    let app = TestApp::new().await;
    let rows = chat_rows(20);
    let (head, tail) = rows.as_bytes().split_at(100);
    let upload = app.open_upload(rows.len()).await;
    let last = app.part(&upload, tail).await;
    let spare = app.part(&upload, "not wanted after all").await;
    let first = app.part(&upload, head).await;
    assert_eq!(app.stored().await, 3);
    for wrong in [vec![&first], vec![&first, &first], vec![&first, &spare, &last], vec![&json!("part-1")]] {
        assert!(app.complete_upload(&upload, &wrong).await.error().starts_with("400 invalid_value (part_ids): "));
    }
    let done = app.complete_upload(&upload, &[&first, &last]).await.expect(200);
    assert_eq!((&done["status"], &done["file"]["status"]), (&json!("completed"), &json!("processed")));
    assert_eq!(app.complete_upload(&upload, &[&first, &last]).await.expect(200), done);
    let id = done["file"]["id"].as_str().unwrap();
    let content = send(app.request(Method::GET, &format!("/v1/files/{id}/content"))).await;
    assert_eq!(content.body.as_str().unwrap(), rows);
    assert_eq!(app.stored().await, 1, "the parts are gone");
    assert!(app.add_part(&upload, "x").await.error().ends_with("is completed"));
}

#[tokio::test]
async fn bad_rows_make_a_file_with_an_error_as_in_one_piece() {
    let app = TestApp::new().await;
    let upload = app.open_upload(1).await;
    let part = app.part(&upload, "{").await;
    let done = app.complete_upload(&upload, &[&part]).await.expect(200);
    assert_eq!((&done["status"], &done["file"]["status"]), (&json!("completed"), &json!("error")));
    assert_eq!(app.stored().await, 0);
}

#[tokio::test]
async fn an_upload_is_refused_cancelled_or_expires_without_a_trace() {
    let app = TestApp::new().await;
    let open = async |changes: Value| {
        let mut body = json!({"bytes": 9, "filename": "a", "mime_type": "x", "purpose": "fine-tune"});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        app.post("/v1/uploads", &body).await.error()
    };
    assert!(open(json!({"purpose": "vision"})).await.starts_with("400 invalid_value (purpose)"));
    assert!(open(json!({"bytes": 0})).await.starts_with("400 invalid_value (bytes)"));
    assert!(open(json!({"bytes": 2 << 20})).await.starts_with("413 file_too_large"));
    assert!(open(json!({"colour": "red"})).await.starts_with("400 unknown_parameter (colour)"));

    let upload = app.open_upload(9).await;
    app.part(&upload, "x").await;
    assert!(app.add_part(&upload, vec![b'x'; 1 << 20]).await.error().starts_with("413 file_too_large"));
    app.add_user("other", OTHER_KEY).await;
    let path = format!("/v1/uploads/{upload}/cancel");
    send(app.anonymous(Method::POST, &path).bearer_auth(OTHER_KEY)).await.expect(404);
    for _ in 0..2 {
        assert_eq!(app.post(&path, &Value::Null).await.expect(200)["status"], "cancelled");
    }
    assert_eq!(app.stored().await, 0);
    assert!(app.complete_upload(&upload, &[]).await.error().starts_with("409 conflict"));

    let late = app.open_upload(9).await;
    app.part(&late, "x").await;
    let past = Utc::now() - TimeDelta::hours(2);
    let expire = async move |conn: &mut Conn| {
        let set = schema::openai_uploads::expires_at.eq(past);
        diesel::update(schema::openai_uploads::table).set(set).execute(conn).await?;
        Ok(())
    };
    app.db.system(expire).await.unwrap();
    assert!(app.add_part(&late, "y").await.error().ends_with("has expired"));
    sweep::sweep(&crate::sweep::state(&app).await).await.unwrap();
    assert_eq!(app.stored().await, 0);
}
