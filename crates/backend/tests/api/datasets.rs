//! Datasets: upload by form and straight to storage, every way to be refused, and that refusal keeps nothing.

use crate::app::{DATASET_MAX_BYTES, TestApp, chat_rows, file, form, send};
use futures::StreamExt;
use insta::assert_snapshot;
use reqwest::{Method, multipart::Form};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wire::dataset::{CreatedDataset, DatasetView};

const OTHER_KEY: &str = "hone_sk_0000000000000000000000000000000000000000000000000000000000000002";

impl TestApp {
    /// Neither a row nor an object is left.
    async fn assert_no_dataset(&self) {
        assert_eq!(self.get("/datasets").await.expect(200)["items"], json!([]));
        assert_eq!(self.objects(&format!("datasets/{}/", self.user)).await, Vec::<String>::new());
    }
}

/// The dataset is listed with the report of its refusal, and no object is left.
async fn assert_invalid(app: &TestApp, name: &str, errors: usize) {
    let list = app.get("/datasets").await.expect(200);
    let [dataset] = list["items"].as_array().unwrap().as_slice() else { panic!("{list:#}") };
    assert_eq!((&dataset["name"], &dataset["status"], &dataset["size"]), (&json!(name), &json!("invalid"), &json!(0)));
    let files = dataset["files"].as_array().unwrap();
    assert_eq!(files.last().unwrap()["report"]["errors"].as_array().map(Vec::len), Some(errors), "{dataset:#}");
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await, Vec::<String>::new());
}

fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

#[tokio::test]
async fn a_good_dataset_is_ready_after_one_request() {
    let app = TestApp::new().await;
    let rows = chat_rows(30);
    let form = form("words", rows.clone()).part("validation", file("held-out.jsonl", chat_rows(3)));
    let view = app.upload_form(form).await.expect(201);
    let view: DatasetView = serde_json::from_value(view).unwrap();
    assert_eq!((view.name.as_str(), view.rows, view.files.len()), ("words", 33, 2));
    let train = &view.files[0];
    assert_eq!(train.key, format!("datasets/{}/{}/train.jsonl", app.user, view.id));
    assert_eq!((train.size, train.sha256.clone()), (u64::try_from(rows.len()).unwrap(), sha256(rows.as_bytes())));

    let by_name: DatasetView = serde_json::from_value(app.get("/datasets/words").await.expect(200)).unwrap();
    let by_id = app.get(&format!("/datasets/{}", view.id)).await.expect(200);
    assert_eq!((serde_json::from_value::<DatasetView>(by_id).unwrap(), &by_name), (view.clone(), &view));
    let preview = app.get("/datasets/words/preview?limit=2&split=validation").await.expect(200);
    assert_eq!(preview["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(preview["rows"][1]["messages"][0]["content"], "What is word 1?");
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 2);
}

#[tokio::test]
async fn broken_rows_are_located_and_only_the_report_is_kept() {
    let app = TestApp::new().await;
    let good = chat_rows(1);
    let text = format!(
        "{good}{{\"messages\": [\n{{\"messages\": [{{\"role\": \"asistant\", \"content\": \"x\"}}]}}\n\n{{\"message\": []}}\n"
    );
    assert_snapshot!(app.upload("words", text).await.problem(), @r"
    422 DATASET_INVALID: the train file has 4 errors, the first in line 2: broken JSON: EOF while parsing a list; each row must be complete on one line; its rows were not kept
    - line 2, column 14: broken JSON: EOF while parsing a list; each row must be complete on one line
    - line 3, column 24: unknown role `asistant` in message 1; did you mean `assistant`?
    - line 4: empty row: remove the blank line
    - line 5, column 1: the row has no `messages`; did you mean `message` to be `messages`?
    ");
    let mut poison = good.clone().into_bytes();
    poison.extend_from_slice(b"{\"messages\": \"\xff\xfe\"}\n");
    assert_snapshot!(app.upload("words", poison).await.problem(), @r"
    422 DATASET_INVALID: the train file has an error in line 2: bad UTF-8: byte 0xff is not part of a character; save the file as UTF-8; its rows were not kept
    - line 2, column 15: bad UTF-8: byte 0xff is not part of a character; save the file as UTF-8
    ");
    assert_snapshot!(app.upload("words", "").await.problem(), @r"
    422 DATASET_INVALID: the train file has an error in line 1: the file is empty; its rows were not kept
    - line 1: the file is empty
    ");
    assert_snapshot!(app.upload("words", "\n\n").await.problem(), @r"
    422 DATASET_INVALID: the train file has an error in line 1: the file has no rows, only blank lines; its rows were not kept
    - line 1: the file has no rows, only blank lines
    ");
    assert_invalid(&app, "words", 1).await;
}

#[tokio::test]
async fn at_most_twenty_errors_are_listed_but_all_are_counted() {
    let app = TestApp::new().await;
    let reply = app.upload("words", format!("{}{}", chat_rows(2), "{\"messages\": [\n".repeat(50))).await;
    assert_eq!(reply.body["errors"].as_array().map(Vec::len), Some(20));
    assert_snapshot!(reply.body["detail"].as_str().unwrap(), @"the train file has 50 errors, the first in line 3: broken JSON: EOF while parsing a list; each row must be complete on one line; its rows were not kept");
    assert_invalid(&app, "words", 20).await;
}

#[tokio::test]
async fn a_bad_validation_file_refuses_the_whole_dataset() {
    let app = TestApp::new().await;
    let form = form("words", chat_rows(2)).part("validation", file("v.jsonl", "{\"messages\": []}\n"));
    assert_snapshot!(app.upload_form(form).await.problem(), @r"
    422 DATASET_INVALID: the validation file has an error in line 1: empty row: `messages` has no messages; its rows were not kept
    - validation: line 1, column 14: empty row: `messages` has no messages
    ");
    assert_invalid(&app, "words", 1).await;
}

#[tokio::test]
async fn an_upload_over_the_limit_is_refused_before_a_byte_is_stored() {
    let app = TestApp::new().await;
    let big = "x".repeat(DATASET_MAX_BYTES + (128 << 10));
    assert_snapshot!(app.upload("big", big.clone()).await.problem(), @"413 TOO_LARGE: a dataset may have at most 1048576 bytes; nothing was stored");
    let create =
        json!({"name": "big", "files": [{"split": "train", "filename": "t.txt", "size": DATASET_MAX_BYTES + 1}]});
    assert_snapshot!(app.post("/datasets", &create).await.problem(), @"413 TOO_LARGE: a dataset may have at most 1048576 bytes; nothing was stored");
    app.assert_no_dataset().await;

    // A client that does not say how much it sends is cut off at the limit.
    let chunks = futures::stream::iter(vec![big.into_bytes()]).map(Ok::<_, std::io::Error>);
    let part = reqwest::multipart::Part::stream(reqwest::Body::wrap_stream(chunks)).file_name("t.txt");
    let form = Form::new().text("name", "big").part("file", part);
    assert_snapshot!(app.upload_form(form).await.problem(), @"413 TOO_LARGE: a dataset may have at most 1048576 bytes; nothing was stored");
    app.assert_no_dataset().await;
}

#[tokio::test]
async fn names_are_checked_before_anything_is_stored() {
    let app = TestApp::new().await;
    assert_snapshot!(app.upload("../etc", chat_rows(1)).await.problem(), @"422 INVALID: name: `../etc` cannot be a dataset name; use 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`");
    assert_snapshot!(app.upload("", chat_rows(1)).await.problem(), @"422 INVALID: name: `` cannot be a dataset name; use 1 to 96 letters, digits, `.`, `_` or `-`, not starting with `.` or `-`");
    app.upload("words", chat_rows(1)).await.expect(201);
    assert_snapshot!(app.upload("words", chat_rows(2)).await.problem(), @"409 CONFLICT: a dataset named `words` exists; choose another name, or delete it first");
    let create = json!({"name": "words", "files": [{"split": "train", "filename": "t.txt", "size": 1}]});
    assert_snapshot!(app.post("/datasets", &create).await.problem(), @"409 CONFLICT: a dataset named `words` exists; choose another name, or delete it first");
    assert_eq!(app.get("/datasets/words").await.expect(200)["rows"], 1);
}

#[tokio::test]
async fn a_form_that_is_none_says_what_to_send() {
    let app = TestApp::new().await;
    let late_name = Form::new().part("file", file("t.jsonl", chat_rows(1))).text("name", "words");
    assert_snapshot!(app.upload_form(late_name).await.problem(), @"422 INVALID: name: must be the first field of the form, before the files");
    let no_file = Form::new().text("name", "words");
    assert_snapshot!(app.upload_form(no_file).await.problem(), @"422 INVALID: file: is missing; send the dataset as a file in the field `file`");
    let unknown = form("words", chat_rows(1)).part("tests", file("t.jsonl", chat_rows(1)));
    assert_snapshot!(app.upload_form(unknown).await.problem(), @"422 INVALID: form: unexpected field `tests`; send name, file and optionally validation, in this order");
    let json = app.post("/datasets/upload", &json!({"name": "words"})).await;
    assert_snapshot!(json.problem(), @"422 INVALID: form: Parsed Content-Type did not have 'multipart' top-level media type; send multipart/form-data with name, file and optionally validation");
    app.assert_no_dataset().await;
}

#[tokio::test]
async fn a_client_that_goes_away_in_mid_upload_leaves_nothing() {
    let app = TestApp::new().await;
    let (sent, all_sent) = tokio::sync::oneshot::channel();
    let chunks = futures::stream::unfold(Some(sent), |sent| async {
        match sent {
            Some(sent) => {
                let _ = sent.send(());
                Some((Ok::<_, std::io::Error>(chat_rows(100).into_bytes()), None))
            }
            None => std::future::pending().await,
        }
    });
    let part = reqwest::multipart::Part::stream(reqwest::Body::wrap_stream(chunks)).file_name("t.jsonl");
    let form = Form::new().text("name", "words").part("file", part);
    let request = app.request(Method::POST, "/datasets/upload").multipart(form).send();
    tokio::select! {
        reply = request => panic!("answered an unfinished upload: {reply:?}"),
        _ = all_sent => {}
    }
    // The connection is closed now; the name is free again once the backend has noticed.
    loop {
        let reply = app.upload("words", chat_rows(1)).await;
        if reply.status.as_u16() == 201 {
            break;
        }
        assert_eq!(reply.status.as_u16(), 409, "{:?}", reply.body);
    }
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 1);
}

#[tokio::test]
async fn an_unknown_dataset_is_answered_with_near_names() {
    let app = TestApp::new().await;
    assert_snapshot!(app.get("/datasets/word").await.problem(), @"404 NOT_FOUND: no dataset named `word`; there is no dataset yet");
    app.upload("words", chat_rows(1)).await.expect(201);
    assert_snapshot!(app.get("/datasets/word").await.problem(), @"404 NOT_FOUND: no dataset named `word`; did you mean words?");
    assert_snapshot!(app.get("/datasets/words/preview?split=validation").await.problem(), @"404 NOT_FOUND: the dataset words has no such file");
    assert_snapshot!(app.get("/datasets/words/preview?limit=1000").await.problem(), @"422 INVALID: limit: must be between 1 and 100, not 1000");
    assert_snapshot!(app.get("/datasets?cursor=x").await.problem(), @"422 INVALID: cursor: is not a cursor of this list; leave it out to start again");
    assert_snapshot!(app.get("/datasets?limit=0").await.problem(), @"422 INVALID: limit: must be between 1 and 200, not 0");
}

#[tokio::test]
async fn a_deleted_dataset_is_gone_and_its_name_is_free() {
    let app = TestApp::new().await;
    app.upload("words", chat_rows(1)).await.expect(201);
    app.delete("/datasets/words").await.expect(204);
    app.get("/datasets/words").await.expect(404);
    app.delete("/datasets/words").await.expect(404);
    app.assert_no_dataset().await;
    app.upload("words", chat_rows(2)).await.expect(201);
}

#[tokio::test]
async fn lists_are_paged_newest_first() {
    let app = TestApp::new().await;
    for i in 0..5 {
        app.upload(&format!("d{i}"), chat_rows(1)).await.expect(201);
    }
    let (mut names, mut path) = (Vec::new(), "/datasets?limit=2".to_owned());
    loop {
        let page = app.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        names.extend(items.iter().map(|d| d["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/datasets?limit=2&cursor={cursor}");
    }
    assert_eq!(names, ["d4", "d3", "d2", "d1", "d0"]);
}

async fn open(app: &TestApp, name: &str, content: &[u8], sha256: Option<String>) -> CreatedDataset {
    let file = json!({"split": "train", "filename": "t.jsonl", "size": content.len(), "sha256": sha256});
    let created = app.post("/datasets", &json!({"name": name, "files": [file]})).await.expect(201);
    serde_json::from_value(created).unwrap()
}

#[tokio::test]
async fn a_dataset_put_straight_to_storage_is_validated_on_completion() {
    let app = TestApp::new().await;
    let rows = chat_rows(10).into_bytes();
    let created = open(&app, "words", &rows, Some(sha256(&rows))).await;
    let complete = format!("/datasets/{}/complete", created.dataset.id);
    let early = app.post(&complete, &Value::Null).await;
    assert_eq!(early.status.as_u16(), 409, "{:?}", early.body);
    assert_eq!(app.get("/datasets/words").await.expect(200)["status"], "uploading");

    app.put_parts(&created.uploads[0], &rows).await;
    let done = app.post(&complete, &Value::Null).await.expect(200);
    assert_eq!((&done["status"], &done["rows"]), (&json!("ready"), &json!(10)));
    assert_eq!(app.post(&complete, &Value::Null).await.expect(200), done, "repeating it changes nothing");
}

#[tokio::test]
async fn an_upload_that_was_begun_goes_on_when_the_same_files_are_announced_again() {
    let app = TestApp::new().await;
    let (train, rest) = (chat_rows(10).into_bytes(), chat_rows(3).into_bytes());
    let files = |train_digest: Option<String>| {
        let file = |split: &str, content: &[u8], sha256| json!({"split": split, "filename": "t.jsonl", "size": content.len(), "sha256": sha256});
        json!({"name": "words", "files": [file("train", &train, train_digest), file("validation", &rest, Some(sha256(&rest)))]})
    };
    let begin = app.post("/datasets", &files(Some(sha256(&train)))).await.expect(201);
    let created: CreatedDataset = serde_json::from_value(begin).unwrap();
    app.put_parts(&created.uploads[0], &train).await;

    let again = app.post("/datasets", &files(Some(sha256(&train)))).await.expect(201);
    let told = app.get("/datasets/words/uploads").await.expect(200);
    for seen in [again, told] {
        let seen: CreatedDataset = serde_json::from_value(seen).unwrap();
        assert_eq!(seen.dataset.id, created.dataset.id);
        let sessions: Vec<_> = seen.uploads.iter().map(|u| (u.id.as_str(), u.parts.len())).collect();
        assert_eq!(sessions, [(created.uploads[0].id.as_str(), 0), (created.uploads[1].id.as_str(), 1)]);
    }

    // Other content under the name, or content nobody vouches for, is another upload.
    for digest in [Some("0".repeat(64)), None] {
        let reply = app.post("/datasets", &files(digest)).await;
        let told = "409 CONFLICT: a dataset named `words` is being uploaded; wait until it is there, or delete it";
        assert_eq!(reply.problem(), told);
    }
    app.put_parts(&created.uploads[1], &rest).await;
    let done = app.post(&format!("/datasets/{}/complete", created.dataset.id), &Value::Null).await.expect(200);
    assert_eq!((&done["status"], &done["rows"]), (&json!("ready"), &json!(13)));
    assert_eq!(app.get("/datasets/words/uploads").await.expect(200)["uploads"], json!([]));
}

#[tokio::test]
async fn a_session_that_is_gone_is_opened_anew() {
    let app = TestApp::new().await;
    let rows = chat_rows(3).into_bytes();
    let created = open(&app, "words", &rows, None).await;
    crate::sweep::state(&app).await.gateway.abort_upload(&created.uploads[0].id).await.unwrap();
    let told: CreatedDataset = serde_json::from_value(app.get("/datasets/words/uploads").await.expect(200)).unwrap();
    assert_ne!(told.uploads[0].id, created.uploads[0].id);
    app.put_parts(&told.uploads[0], &rows).await;
    let done = app.post(&format!("/datasets/{}/complete", created.dataset.id), &Value::Null).await.expect(200);
    assert_eq!(done["status"], "ready");
}

#[tokio::test]
async fn concurrent_completions_do_not_lose_the_dataset() {
    let app = TestApp::new().await;
    let rows = chat_rows(200).into_bytes();
    let created = open(&app, "words", &rows, None).await;
    app.put_parts(&created.uploads[0], &rows).await;
    let complete = format!("/datasets/{}/complete", created.dataset.id);
    let replies = futures::future::join_all((0..6).map(|_| app.post(&complete, &Value::Null))).await;
    let statuses: Vec<u16> = replies.iter().map(|r| r.status.as_u16()).collect();
    assert!(statuses.contains(&200) && statuses.iter().all(|s| matches!(s, 200 | 409)), "{statuses:?}");
    assert_eq!(app.get("/datasets/words").await.expect(200)["status"], "ready");
    assert_eq!(app.objects(&format!("datasets/{}/", app.user)).await.len(), 1);
}

#[tokio::test]
async fn bad_rows_put_straight_to_storage_are_refused_and_removed() {
    let app = TestApp::new().await;
    let rows = b"{\"messages\": []}\n";
    let created = open(&app, "words", rows, None).await;
    app.put_parts(&created.uploads[0], rows).await;
    let complete = format!("/datasets/{}/complete", created.dataset.id);
    let reply = app.post(&complete, &Value::Null).await;
    assert_snapshot!(reply.problem(), @r"
    422 DATASET_INVALID: the train file has an error in line 1: empty row: `messages` has no messages; its rows were not kept
    - line 1, column 14: empty row: `messages` has no messages
    ");
    assert_eq!(app.post(&complete, &Value::Null).await.problem(), reply.problem(), "repeating it changes nothing");
    assert_invalid(&app, "words", 1).await;
}

#[tokio::test]
async fn content_that_is_not_what_was_declared_is_refused_and_removed() {
    let app = TestApp::new().await;
    let rows = chat_rows(3).into_bytes();
    let created = open(&app, "words", &rows, Some(sha256(b"something else"))).await;
    app.put_parts(&created.uploads[0], &rows).await;
    let reply = app.post(&format!("/datasets/{}/complete", created.dataset.id), &Value::Null).await;
    assert_eq!((reply.status.as_u16(), &reply.body["code"]), (422, &json!("CHECKSUM_MISMATCH")));
    app.assert_no_dataset().await;
}

#[tokio::test]
async fn an_upload_can_be_given_up_by_deleting_it() {
    let app = TestApp::new().await;
    let rows = chat_rows(3).into_bytes();
    let created = open(&app, "words", &rows, None).await;
    assert_snapshot!(app.upload("words", chat_rows(1)).await.problem(), @"409 CONFLICT: a dataset named `words` is being uploaded; wait until it is there, or delete it");
    app.delete("/datasets/words").await.expect(204);
    app.assert_no_dataset().await;
    app.post(&format!("/datasets/{}/complete", created.dataset.id), &Value::Null).await.expect(404);
}

#[tokio::test]
async fn files_of_a_session_are_checked() {
    let app = TestApp::new().await;
    let file = |split: &str, size: u64| json!({"split": split, "filename": "t.txt", "size": size});
    let create = async |files: Value| app.post("/datasets", &json!({"name": "d", "files": files})).await.problem();
    assert_snapshot!(create(json!([])).await, @"422 INVALID: files: must hold one train file and at most one validation file");
    assert_snapshot!(create(json!([file("train", 1), file("train", 1)])).await, @"422 INVALID: files: must hold one train file and at most one validation file");
    assert_snapshot!(create(json!([file("train", 0)])).await, @"422 INVALID: files: t.txt is empty");
    let unknown = app.post("/datasets", &json!({"name": "d", "files": [], "format": "text"})).await;
    assert_snapshot!(unknown.problem(), @r"
    422 INVALID: request body: format: unknown field `format`, expected `name` or `files`
    - format: unknown field `format`, expected `name` or `files`
    ");
    app.assert_no_dataset().await;
}

#[tokio::test]
async fn another_user_sees_nothing_of_a_dataset() {
    let app = TestApp::new().await;
    let view = app.upload("words", chat_rows(2)).await.expect(201);
    let id = view["id"].as_str().unwrap();
    app.add_user("other", OTHER_KEY).await;
    let other = async |method: Method, path: &str| send(app.anonymous(method, path).bearer_auth(OTHER_KEY)).await;
    assert_eq!(other(Method::GET, "/datasets").await.expect(200)["items"], json!([]));
    for path in ["/datasets/words".to_owned(), format!("/datasets/{id}"), format!("/datasets/{id}/preview")] {
        let reply = other(Method::GET, &path).await;
        assert_eq!(reply.status.as_u16(), 404, "{path}");
        assert!(!reply.body["detail"].as_str().unwrap().contains("words;"), "near names are one's own: {}", reply.body);
    }
    other(Method::DELETE, &format!("/datasets/{id}")).await.expect(404);
    other(Method::POST, &format!("/datasets/{id}/complete")).await.expect(404);
    // The same name is free for them.
    let form = form("words", chat_rows(1));
    let theirs = send(app.anonymous(Method::POST, "/datasets/upload").bearer_auth(OTHER_KEY).multipart(form)).await;
    theirs.expect(201);
    assert_eq!(app.get("/datasets/words").await.expect(200)["rows"], 2);
}
