//! Fine-tuning jobs: what becomes of a request, and every reason to refuse one.

use super::{OTHER_KEY, ids};
use crate::app::{Reply, TestApp, chat_rows, send};
use backend::{db::Conn, schema, sweep};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

fn pairs(rows: usize) -> String {
    let row = |i: usize| {
        let say = |text: String| json!([{"role": "assistant", "content": text}]);
        let input = json!({"messages": [{"role": "user", "content": format!("What is word {i}?")}]});
        let (good, bad) = (say(format!("Word {i} is a word.")), say("No.".into()));
        format!("{}\n", json!({"input": input, "preferred_output": good, "non_preferred_output": bad}))
    };
    (0..rows).map(row).collect()
}

impl TestApp {
    async fn fine_tune(&self, body: &Value) -> Reply {
        self.post("/v1/fine_tuning/jobs", body).await
    }

    /// Puts a job into a state, whatever it is in.
    async fn put_in(&self, job: &str, state: &'static str) {
        use schema::training_jobs as jobs;
        let id: Uuid = job.strip_prefix("ftjob-").unwrap().parse().unwrap();
        let change = async move |conn: &mut Conn| {
            let now = Some(chrono::Utc::now());
            let set = (jobs::state.eq(state), jobs::finished_at.eq(now));
            diesel::update(jobs::table.find(id)).set(set).execute(conn).await?;
            Ok(())
        };
        self.db.system(change).await.unwrap();
    }
}

#[tokio::test]
async fn a_supervised_job_is_an_ordinary_job_with_resolved_hyperparameters() {
    let app = TestApp::with_model().await;
    let (train, valid) = (app.a_file(chat_rows(64)).await, app.a_file(chat_rows(3)).await);
    let given = json!({"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5});
    let body = json!({
        "model": "tiny", "training_file": train, "validation_file": valid, "suffix": "mine", "seed": 7,
        "metadata": {"team": "a"}, "integrations": null,
        "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
    });
    let job = app.fine_tune(&body).await.expect(200);
    let id = job["id"].as_str().unwrap();
    let uuid: Uuid = id.strip_prefix("ftjob-").unwrap().parse().unwrap();
    let resolved = json!({"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5});
    assert_eq!((&job["object"], &job["status"]), (&json!("fine_tuning.job"), &json!("queued")));
    assert_eq!(job["hyperparameters"], resolved);
    assert_eq!(job["method"], json!({"type": "supervised", "supervised": {"hyperparameters": resolved}}));
    assert_eq!((&job["training_file"], &job["validation_file"]), (&json!(train), &json!(valid)));
    assert_eq!((&job["seed"], &job["metadata"], &job["error"]), (&json!(7), &json!({"team": "a"}), &json!(null)));
    for absent in ["fine_tuned_model", "finished_at", "estimated_finish", "trained_tokens"] {
        assert_eq!(job[absent], json!(null), "{absent}");
    }
    assert_eq!((&job["result_files"], &job["integrations"]), (&json!([]), &json!([])));

    let native = app.get(&format!("/training/jobs/{uuid}")).await.expect(200);
    assert_eq!((&native["name"], &native["dataset"]), (&json!("mine"), &json!(train)));
    let config = &native["config"];
    assert_eq!((&config["method"], &config["validation_dataset"]), (&json!("sft"), &json!(valid)));
    let t = &config["training"];
    assert_eq!((&t["num_train_epochs"], &t["learning_rate"], &t["seed"]), (&json!(2.0), &json!(1e-4), &json!(7)));
    assert_eq!((&t["per_device_train_batch_size"], &t["max_seq_length"]), (&json!(4), &json!(64)));
    assert_eq!((&t["save_steps"], &t["eval_steps"], &t["val_set_size"]), (&json!(16), &json!(16), &json!(0.0)));
    let read = async move |conn: &mut Conn| {
        Ok(schema::training_jobs::table.find(uuid).select(schema::training_jobs::spec).first::<Value>(conn).await?)
    };
    let spec = app.db.system(read).await.unwrap();
    let held_out = app.get(&format!("/datasets/{valid}")).await.expect(200);
    assert_eq!(spec["dataset"]["validation"]["key"], held_out["files"][0]["key"]);
    // The held-out rows are needed until the job is over, too.
    app.delete(&format!("/datasets/{valid}")).await.expect(409);

    let events = app.get(&format!("/v1/fine_tuning/jobs/{id}/events")).await.expect(200);
    let first = events["data"].as_array().unwrap().last().unwrap().clone();
    let wanted = format!("Created fine-tuning job: {id}. Files validated, moving job to queued state");
    assert_eq!((&first["message"], &first["type"]), (&json!(wanted), &json!("message")));
}

#[tokio::test]
async fn a_dpo_job_trains_on_pairs_with_beta() {
    let app = TestApp::with_model().await;
    let train = app.a_file(pairs(20)).await;
    let method = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}});
    let job = app.fine_tune(&json!({"model": "tiny", "training_file": train, "method": method})).await.expect(200);
    let resolved = json!({"n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": 1.0, "beta": 0.3});
    assert_eq!(job["method"], json!({"type": "dpo", "dpo": {"hyperparameters": resolved}}));
    assert!(job["seed"].is_u64(), "a seed is chosen");
    let uuid: Uuid = job["id"].as_str().unwrap().strip_prefix("ftjob-").unwrap().parse().unwrap();
    let config = app.get(&format!("/training/jobs/{uuid}")).await.expect(200)["config"].clone();
    assert_eq!((&config["method"], &config["dpo"]["beta"]), (&json!("dpo"), &json!(0.3)));
    assert_eq!(config["training"]["learning_rate"], json!(2e-5));
    // The older place of the hyperparameters, as the only one.
    let chat = app.a_file(chat_rows(8)).await;
    let older = json!({"model": "tiny", "training_file": chat, "hyperparameters": {"n_epochs": 1}});
    assert_eq!(app.fine_tune(&older).await.expect(200)["hyperparameters"]["n_epochs"], 1);
}

#[tokio::test]
async fn every_refusal_names_the_field_at_fault() {
    let app = TestApp::with_model().await;
    let chat = app.a_file(chat_rows(4)).await;
    let bad = app.upload_file("{").await.expect(200)["id"].as_str().unwrap().to_owned();
    let refused = async |changes: Value| {
        let mut body = json!({"model": "tiny", "training_file": chat});
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        app.fine_tune(&body).await.error().replace(&chat, "CHAT").replace(&bad, "BAD")
    };
    assert_snapshot!(app.fine_tune(&json!({"training_file": chat})).await.error(), @"400 missing_required_parameter (model): Missing required parameter: 'model'.");
    assert_snapshot!(refused(json!({"model": "tinny"})).await, @"400 model_not_available (model): Model tinny is not available for fine-tuning or does not exist: no model named `tinny`; did you mean tiny?");
    assert_snapshot!(refused(json!({"model": "ft:tiny:local::abc"})).await, @"400 model_not_available (model): 'ft:tiny:local::abc' is fine-tuned already; continuing from it is not served here, use its base model");
    assert_snapshot!(refused(json!({"training_file": "file-abc"})).await, @"400 file_not_found (training_file): The file 'file-abc' does not exist.");
    assert_snapshot!(refused(json!({"training_file": bad})).await, @r"
    400 invalid_training_file (training_file): The file 'BAD' cannot be used: the train file has an error in line 1: broken JSON: EOF while parsing an object; each row must be complete on one line; its rows were not kept
    line 1, column 1: broken JSON: EOF while parsing an object; each row must be complete on one line
    ");
    assert_snapshot!(refused(json!({"validation_file": bad})).await, @r"
    400 invalid_validation_file (validation_file): The file 'BAD' cannot be used: the train file has an error in line 1: broken JSON: EOF while parsing an object; each row must be complete on one line; its rows were not kept
    line 1, column 1: broken JSON: EOF while parsing an object; each row must be complete on one line
    ");
    assert_snapshot!(refused(json!({"method": {"type": "dpo"}})).await, @"400 invalid_value (method): training configuration: method: `dpo` needs preference pairs, and this dataset has none; use a dataset with `prompt`, `chosen` and `rejected`");
    assert_snapshot!(refused(json!({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}})).await, @"400 unsupported_value (method.type): reinforcement fine-tuning is not served here; use 'supervised' or 'dpo'");
    let epochs = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}});
    assert_snapshot!(refused(json!({"method": epochs})).await, @"400 invalid_value (method.supervised.hyperparameters.n_epochs): n_epochs must be between 1 and 10000, not 0");
    assert_snapshot!(refused(json!({"hyperparameters": {"n_epochs": "many"}})).await, @"400 invalid_type (hyperparameters.n_epochs): Invalid value for 'hyperparameters.n_epochs': must be 'auto' or a number");
    assert_snapshot!(refused(json!({"suffix": "a b"})).await, @"400 invalid_value (suffix): suffix must have 1 to 64 letters, digits, '-', '_' or '.'");
    assert_snapshot!(refused(json!({"suffix": "x".repeat(65)})).await, @"400 invalid_value (suffix): suffix must have 1 to 64 letters, digits, '-', '_' or '.'");
    assert_snapshot!(refused(json!({"seed": -1})).await, @"400 invalid_value (seed): seed must be between 0 and 2147483647, not -1");
    assert_snapshot!(refused(json!({"metadata": {"k": "v".repeat(513)}})).await, @"400 invalid_value (metadata): keys of metadata have at most 64 characters, values 512");
    assert_snapshot!(refused(json!({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]})).await, @"400 unsupported_value (integrations): integrations are not served here: this server sends nothing to Weights & Biases; leave integrations out, and read metrics from the job's events, checkpoints and result file");
    assert_snapshot!(refused(json!({"colour": "red"})).await, @"400 unknown_parameter (colour): Unrecognized request argument supplied: colour");
    assert_snapshot!(send(app.request(Method::POST, "/v1/fine_tuning/jobs").body("{")).await.error(), @"400 invalid_json (body): We could not parse the JSON body of your request: EOF while parsing an object at line 1 column 1");
    assert!(ids(&app.get("/v1/fine_tuning/jobs").await.expect(200)).is_empty());
    assert_snapshot!(app.get("/v1/fine_tuning/jobs/ftjob-1").await.error(), @"404 fine_tune_not_found (fine_tune_id): Could not find fine tune: ftjob-1");
}

#[tokio::test]
async fn jobs_are_listed_in_pages_by_metadata_and_for_their_user_only() {
    let app = TestApp::with_model().await;
    let train = app.a_file(chat_rows(4)).await;
    let mut made = Vec::new();
    for team in ["a", "b", "a"] {
        let body = json!({"model": "tiny", "training_file": train, "metadata": {"team": team, "x": "1"}});
        made.insert(0, app.fine_tune(&body).await.expect(200)["id"].as_str().unwrap().to_owned());
    }
    let first = app.get("/v1/fine_tuning/jobs?limit=2").await.expect(200);
    assert_eq!((ids(&first), &first["has_more"]), (vec![made[0].as_str(), &made[1]], &json!(true)));
    let second = app.get(&format!("/v1/fine_tuning/jobs?limit=2&after={}", made[1])).await.expect(200);
    assert_eq!((ids(&second), &second["has_more"]), (vec![made[2].as_str()], &json!(false)));
    let of_b = app.get("/v1/fine_tuning/jobs?metadata%5Bteam%5D=b&metadata%5Bx%5D=1").await.expect(200);
    assert_eq!(ids(&of_b), [made[1].as_str()]);
    assert!(ids(&app.get("/v1/fine_tuning/jobs?metadata=null").await.expect(200)).is_empty());
    assert_eq!(app.get("/training/jobs").await.expect(200)["items"].as_array().unwrap().len(), 3);

    app.add_user("other", OTHER_KEY).await;
    let other = async |method, path: &str| send(app.anonymous(method, path).bearer_auth(OTHER_KEY)).await;
    assert!(ids(&other(Method::GET, "/v1/fine_tuning/jobs").await.expect(200)).is_empty());
    let path = format!("/v1/fine_tuning/jobs/{}", made[0]);
    for rest in ["", "/events", "/checkpoints"] {
        other(Method::GET, &format!("{path}{rest}")).await.expect(404);
    }
    for rest in ["/cancel", "/pause", "/resume"] {
        other(Method::POST, &format!("{path}{rest}")).await.expect(404);
    }
}

#[tokio::test]
async fn a_clients_own_retry_and_an_idempotency_key_make_one_job() {
    let app = TestApp::with_model().await;
    let train = app.a_file(chat_rows(4)).await;
    let body = json!({"model": "tiny", "training_file": train});
    let send_with = async |name: &'static str, value: &str, body: &Value| {
        let request = app.request(Method::POST, "/v1/fine_tuning/jobs").header(name, value.to_owned());
        send(request.json(body)).await
    };
    let retry = async |count: &str, body: &Value| send_with("x-stainless-retry-count", count, body).await.expect(200);
    let first = retry("0", &body).await;
    assert_eq!(retry("1", &body).await, first);
    assert_eq!(retry("2", &body).await["id"], first["id"]);
    let second = retry("0", &body).await;
    assert_ne!(second["id"], first["id"], "the same request on purpose is another job");
    assert_eq!(retry("1", &body).await["id"], second["id"], "a retry belongs to the latest one");
    let other = json!({"model": "tiny", "training_file": train, "suffix": "x"});
    let unseen = retry("1", &other).await;
    assert_ne!(unseen["id"], first["id"], "the first try never arrived");
    let age = async |conn: &mut Conn| {
        use schema::idempotency_keys as keys;
        let long_ago = chrono::Utc::now() - chrono::TimeDelta::seconds(61);
        diesel::update(keys::table).set(keys::created_at.eq(long_ago)).execute(conn).await?;
        Ok(())
    };
    app.db.system(age).await.unwrap();
    assert_ne!(retry("1", &other).await["id"], unseen["id"], "after a minute it is another request");

    let keyed = send_with("idempotency-key", "k", &body).await.expect(200);
    assert_eq!(send_with("idempotency-key", "k", &body).await.expect(200), keyed);
    let conflict = send_with("idempotency-key", "k", &other).await;
    assert_snapshot!(conflict.error(), @"409 conflict (-): this Idempotency-Key was used for a request with another body; use a new key");

    // At the same time: whoever comes second waits for the first.
    let body = json!({"model": "tiny", "training_file": train, "suffix": "together"});
    let together = futures::future::join_all((0..20).map(|_| retry("1", &body))).await;
    let mut same: Vec<String> = together.iter().map(|job| job["id"].to_string()).collect();
    same.dedup();
    assert_eq!(same.len(), 1);
}

#[tokio::test]
async fn a_job_that_is_over_takes_no_wishes_and_the_quota_holds() {
    let app = TestApp::with_model().await;
    let sibling = app.sibling(&[("MAX_UNFINISHED_JOBS", "1")]).await;
    let train = app.a_file(chat_rows(4)).await;
    let body = json!({"model": "tiny", "training_file": train});
    let job = app.fine_tune(&body).await.expect(200)["id"].as_str().unwrap().to_owned();
    app.put_in(&job, "paused").await;
    let full = sibling.fine_tune(&body).await;
    assert_snapshot!(full.error(), @"429 rate_limit_exceeded (-): you have 1 unfinished jobs, which is the limit; wait for one to end, or cancel one");
    let native = json!({"config": {"model": "tiny", "dataset": train}});
    assert_snapshot!(sibling.post("/training/jobs", &native).await.problem(), @"429 OVERLOADED: you have 1 unfinished jobs, which is the limit; wait for one to end, or cancel one");

    let cancelled = app.post(&format!("/v1/fine_tuning/jobs/{job}/cancel"), &Value::Null).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    let path = format!("/v1/fine_tuning/jobs/{job}/pause");
    let reply = app.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(reply.headers()["x-should-retry"], "false", "or the clients would try again");
    let refused = app.post(&path, &Value::Null).await.error().replace(&job, "JOB");
    assert_snapshot!(refused, @"409 conflict (-): job JOB is cancelled and cannot be paused");
    sibling.fine_tune(&body).await.expect(200);
}

#[tokio::test]
async fn a_deleted_file_stays_in_storage_until_its_jobs_are_over() {
    let app = TestApp::with_model().await;
    let (train, valid) = (app.a_file(chat_rows(4)).await, app.a_file(chat_rows(2)).await);
    let body = json!({"model": "tiny", "training_file": train, "validation_file": valid});
    let job = app.fine_tune(&body).await.expect(200)["id"].as_str().unwrap().to_owned();
    app.put_in(&job, "paused").await;
    let state = crate::sweep::state(&app).await;
    let objects = async || app.objects(&format!("datasets/{}/", app.user)).await.len();
    let long_ago = async || {
        let at = chrono::Utc::now() - chrono::TimeDelta::hours(1);
        let age = async move |conn: &mut Conn| {
            use schema::datasets as d;
            diesel::update(d::table.filter(d::deleted_at.is_not_null()))
                .set(d::deleted_at.eq(at))
                .execute(conn)
                .await?;
            Ok(())
        };
        app.db.system(age).await.unwrap();
    };
    for id in [&train, &valid] {
        app.delete(&format!("/v1/files/{id}")).await.expect(200);
        app.get(&format!("/v1/files/{id}")).await.expect(404);
    }
    long_ago().await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(objects().await, 2, "the paused job needs both");
    assert_eq!(app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.expect(200)["training_file"], train);
    app.put_in(&job, "succeeded").await;
    sweep::sweep(&state).await.unwrap();
    assert_eq!(objects().await, 0);
}

#[tokio::test]
async fn a_finished_job_has_a_model_a_result_file_and_checkpoints() {
    let app = TestApp::with_model().await;
    let train = app.a_file(chat_rows(4)).await;
    let body = json!({"model": "tiny", "training_file": train, "suffix": "mine"});
    let job = app.fine_tune(&body).await.expect(200)["id"].as_str().unwrap().to_owned();
    app.put_in(&job, "paused").await;
    let id: Uuid = job.strip_prefix("ftjob-").unwrap().parse().unwrap();
    let metrics = [
        (1, 0, "eval_loss", 3.0),
        (1, 1, "train_loss", 2.5),
        (1, 1, "tokens_seen", 10.0),
        (1, 2, "train_loss", 2.0),
        (1, 2, "eval_loss", 2.25),
        (1, 2, "tokens_seen", 20.0),
    ];
    crate::jobs::store_metrics(&app, wire::JobId(id), &metrics).await;
    let user = app.user.0;
    let store = async move |conn: &mut Conn| {
        use schema::job_events as e;
        for (seq, step) in [(1, 1), (2, 2), (3, 2)] {
            let event = json!({"seq": seq, "at": "2026-01-01T00:00:00Z", "type": "checkpoint", "step": step,
                "prefix": "x/", "size": 1});
            let body = json!({"stream": "event", "event": event});
            let row =
                (e::job_id.eq(id), e::user_id.eq(user), e::attempt.eq(9), e::seq.eq(i64::from(seq)), e::body.eq(body));
            diesel::insert_into(e::table).values(row).execute(conn).await?;
        }
        Ok(())
    };
    app.db.system(store).await.unwrap();
    assert_eq!(app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.expect(200)["result_files"], json!([]));
    app.put_in(&job, "succeeded").await;

    let done = app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.expect(200);
    let name = done["fine_tuned_model"].as_str().unwrap();
    assert!(name.starts_with("ft:tiny:local:mine:"), "{name}");
    assert_eq!((&done["trained_tokens"], &done["status"]), (&json!(20), &json!("succeeded")));
    let result = done["result_files"][0].as_str().unwrap();
    let file = app.get(&format!("/v1/files/{result}")).await.expect(200);
    assert_eq!((&file["purpose"], &file["filename"]), (&json!("fine-tune-results"), &json!("step_metrics.csv")));
    let content = app.get(&format!("/v1/files/{result}/content")).await.expect(200);
    assert_eq!(file["bytes"], content.as_str().unwrap().len());
    assert_snapshot!(content.as_str().unwrap(), @r"
    step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy
    0,,,3,
    1,2.5,,,
    2,2,,2.25,
    ");
    assert_eq!(ids(&app.get("/v1/files?purpose=fine-tune-results").await.expect(200)), [result]);

    let checkpoints = app.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints")).await.expect(200);
    let told = |c: &Value| {
        format!("{} {}", c["fine_tuned_model_checkpoint"].as_str().unwrap().replace(name, "FT"), c["metrics"])
    };
    let told: Vec<String> = checkpoints["data"].as_array().unwrap().iter().map(told).collect();
    assert_snapshot!(told.join("\n"), @r#"
    FT:ckpt-step-2 {"full_valid_loss":2.25,"step":2,"train_loss":2.0}
    FT:ckpt-step-1 {"step":1,"train_loss":2.5}
    "#);
    let next = format!("/v1/fine_tuning/jobs/{job}/checkpoints?limit=1&after={}", ids(&checkpoints)[0]);
    assert_eq!(ids(&app.get(&next).await.expect(200)), [ids(&checkpoints)[1]]);

    assert_eq!(ids(&app.get("/v1/models").await.expect(200)), [name, "tiny"]);
    assert_eq!(app.get(&format!("/v1/models/{name}")).await.expect(200)["owned_by"], "local");
    app.get(&format!("/v1/models/{name}:ckpt-step-2")).await.expect(200);
    app.get(&format!("/v1/models/{name}:ckpt-step-9")).await.expect(404);
    app.delete(&format!("/v1/models/{name}:ckpt-step-2")).await.expect(403);
    app.delete(&format!("/v1/models/{name}")).await.expect(200);
    app.get(&format!("/v1/models/{name}")).await.expect(404);
    assert_eq!(app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.expect(200)["fine_tuned_model"], json!(null));
    // The result file goes when it is deleted, and does not come back.
    app.delete(&format!("/v1/files/{result}")).await.expect(200);
    assert_eq!(app.get(&format!("/v1/fine_tuning/jobs/{job}")).await.expect(200)["result_files"], json!([]));
}
