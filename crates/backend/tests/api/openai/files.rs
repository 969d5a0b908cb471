//! Files: in, out, wrong, and away.

use super::{OTHER_KEY, ids};
use crate::app::{TestApp, chat_rows, file, send};
use backend::{db::Conn, schema};
use chrono::{TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::{Method, multipart::Form};
use serde_json::json;

#[tokio::test]
async fn a_file_is_a_dataset_of_the_same_name() {
    let app = TestApp::new().await;
    let rows = chat_rows(20);
    let file = app.upload_file(rows.clone()).await.expect(200);
    let id = file["id"].as_str().unwrap();
    assert_eq!((&file["object"], &file["purpose"]), (&json!("file"), &json!("fine-tune")));
    assert_eq!((&file["bytes"], &file["filename"]), (&json!(rows.len()), &json!("rows.jsonl")));
    assert_eq!((&file["status"], &file["status_details"]), (&json!("processed"), &json!(null)));
    assert_eq!(app.get(&format!("/v1/files/{id}")).await.expect(200), file);
    let content = send(app.request(Method::GET, &format!("/v1/files/{id}/content"))).await;
    assert_eq!(content.body.as_str().unwrap(), rows);
    let dataset = app.get(&format!("/datasets/{id}")).await.expect(200);
    assert_eq!((&dataset["format"], &dataset["rows"]), (&json!("chat_jsonl"), &json!(20)));

    let gone = app.delete(&format!("/v1/files/{id}")).await.expect(200);
    assert_eq!(gone, json!({"id": id, "object": "file", "deleted": true}));
    let again = app.delete(&format!("/v1/files/{id}")).await.error().replace(id, "ID");
    assert_snapshot!(again, @"404 - (id): No such File object: ID");
    app.get(&format!("/datasets/{id}")).await.expect(404);
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_file_whose_dataset_is_deleted_is_gone_as_well() {
    let app = TestApp::new().await;
    let id = app.a_file(chat_rows(2)).await;
    app.delete(&format!("/datasets/{id}")).await.expect(204);
    app.get(&format!("/v1/files/{id}")).await.expect(404);
    assert!(ids(&app.get("/v1/files").await.expect(200)).is_empty());
}

#[tokio::test]
async fn bad_rows_are_told_in_the_status_and_not_kept() {
    let app = TestApp::new().await;
    let file = app.upload_file(format!("{}{{\"messages\": [\n", chat_rows(1))).await.expect(200);
    assert_eq!(file["status"], "error");
    assert_snapshot!(file["status_details"].as_str().unwrap(), @r"
    the train file has an error in line 2: broken JSON: EOF while parsing a list; each row must be complete on one line; its rows were not kept
    line 2, column 14: broken JSON: EOF while parsing a list; each row must be complete on one line
    ");
    let id = file["id"].as_str().unwrap();
    assert_eq!(app.get(&format!("/v1/files/{id}")).await.expect(200), file);
    assert_snapshot!(app.get(&format!("/v1/files/{id}/content")).await.error(), @"400 invalid_file (id): the rows of this file are not valid, so its content was not kept");
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await, Vec::<String>::new());
    assert_eq!(app.get("/datasets").await.expect(200)["items"], json!([]));
    app.delete(&format!("/v1/files/{id}")).await.expect(200);
}

#[tokio::test]
async fn forms_are_taken_in_any_order_and_refused_with_the_field_at_fault() {
    let app = TestApp::new().await;
    let part = || file("rows.jsonl", chat_rows(1));
    let after = Form::new().part("file", part()).text("purpose", "fine-tune");
    let after = after.text("expires_after[anchor]", "created_at").text("expires_after[seconds]", "3600");
    let file = app.send_file(after).await.expect(200);
    assert_eq!(file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap(), 3600);
    let refused = async |form: Form| app.send_file(form).await.error();
    assert_snapshot!(refused(Form::new().text("purpose", "assistants").part("file", part())).await, @"400 invalid_value (purpose): 'assistants' is not a purpose that is served here; files are for 'fine-tune'");
    assert_snapshot!(refused(Form::new().part("file", part()).text("purpose", "vision")).await, @"400 invalid_value (purpose): 'vision' is not a purpose that is served here; files are for 'fine-tune'");
    assert_snapshot!(refused(Form::new().part("file", part())).await, @"400 missing_required_parameter (purpose): Missing required parameter: 'purpose'.");
    assert_snapshot!(refused(Form::new().text("purpose", "fine-tune")).await, @"400 missing_required_parameter (file): Missing required parameter: 'file'.");
    assert_snapshot!(refused(Form::new().text("colour", "red").part("file", part())).await, @"400 unknown_parameter (colour): Unrecognized request argument supplied: colour");
    let short = Form::new().part("file", part()).text("purpose", "fine-tune").text("expires_after[seconds]", "1");
    assert_snapshot!(refused(short).await, @"400 invalid_value (expires_after): expires_after must have the anchor 'created_at' and a number of seconds");
    let large = vec![b'x'; crate::app::DATASET_MAX_BYTES + 1];
    assert_snapshot!(app.upload_file(large).await.error(), @"413 file_too_large (-): a dataset may have at most 1048576 bytes; nothing was stored");
    assert_snapshot!(app.post("/v1/files", &json!({"file": 1})).await.error(), @"400 invalid_value (-): form: Parsed Content-Type did not have 'multipart' top-level media type; send multipart/form-data with the fields file and purpose");
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 1, "refused files leave nothing behind");
}

#[tokio::test]
async fn files_are_listed_in_pages_both_ways_and_by_purpose() {
    let app = TestApp::new().await;
    let mut made = Vec::new();
    for rows in 1..=3 {
        made.push(app.a_file(chat_rows(rows)).await);
    }
    let oldest_first = app.get("/v1/files?order=asc&limit=2").await.expect(200);
    assert_eq!((ids(&oldest_first), &oldest_first["has_more"]), (vec![made[0].as_str(), &made[1]], &json!(true)));
    let rest = app.get(&format!("/v1/files?order=asc&after={}", made[1])).await.expect(200);
    assert_eq!((ids(&rest), &rest["has_more"]), (vec![made[2].as_str()], &json!(false)));
    made.reverse();
    assert_eq!(ids(&app.get("/v1/files?purpose=fine-tune").await.expect(200)), made);
    assert!(ids(&app.get("/v1/files?purpose=fine-tune-results").await.expect(200)).is_empty());
    assert_snapshot!(app.get("/v1/files?order=up").await.error(), @"400 invalid_value (order): order must be 'asc' or 'desc', not 'up'");
    assert_snapshot!(app.get("/v1/files?limit=0").await.error(), @"400 invalid_value (limit): limit must be a number from 1 to 10000, not '0'");
    assert_snapshot!(app.get("/v1/files?after=file-1").await.error(), @"404 - (after): No such File object: file-1");

    app.add_user("other", OTHER_KEY).await;
    let other = async |path: &str| send(app.anonymous(Method::GET, path).bearer_auth(OTHER_KEY)).await;
    assert!(ids(&other("/v1/files").await.expect(200)).is_empty());
    other(&format!("/v1/files/{}", made[0])).await.expect(404);
    other(&format!("/v1/files/{}/content", made[0])).await.expect(404);
}

#[tokio::test]
async fn the_retry_of_an_upload_finds_the_file_of_the_first_one() {
    let app = TestApp::new().await;
    let upload = async |count: &str, rows: usize| {
        let form = Form::new().text("purpose", "fine-tune").part("file", file("rows.jsonl", chat_rows(rows)));
        let request = app.request(Method::POST, "/v1/files").header("x-stainless-retry-count", count.to_owned());
        send(request.multipart(form)).await.expect(200)["id"].as_str().unwrap().to_owned()
    };
    let first = upload("0", 2).await;
    assert_eq!(upload("1", 2).await, first);
    assert_ne!(upload("0", 2).await, first, "the same file on purpose is another file");
    assert_ne!(upload("1", 3).await, first);
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 3);
}

#[tokio::test]
async fn a_file_is_deleted_when_its_time_is_over() {
    let app = TestApp::new().await;
    let id = app.a_file(chat_rows(2)).await;
    let past = Utc::now() - TimeDelta::seconds(1);
    let expire = async move |conn: &mut Conn| {
        let set = schema::openai_files::expires_at.eq(past);
        diesel::update(schema::openai_files::table).set(set).execute(conn).await?;
        Ok(())
    };
    app.db.system(expire).await.unwrap();
    app.get(&format!("/v1/files/{id}")).await.expect(404);
    backend::sweep::sweep(&crate::sweep::state(&app).await).await.unwrap();
    app.get(&format!("/datasets/{id}")).await.expect(404);
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await, Vec::<String>::new());
}
