//! Dead letters: shown, tried again, gone when they can be applied.

use crate::{
    callbacks::{Played, event, metric},
    world::World,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

async fn letters(world: &World, played: &Played<'_>) -> Vec<Value> {
    let page = world.get(&format!("/training/jobs/{}/dead-letters", played.job)).await;
    page["items"].as_array().unwrap().clone()
}

async fn replay(world: &World, played: &Played<'_>, body: Value) -> Value {
    let path = format!("/training/jobs/{}/dead-letters/replay", played.job);
    let reply = world.request(reqwest::Method::POST, &path).json(&body).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    reply.json().await.unwrap()
}

/// Makes the letter at `seq` one about `event`, as if this backend had been one that does not understand it.
async fn as_if_not_understood(world: &World, played: &Played<'_>, seq: i64, event: &Value) {
    let hash = Sha256::digest(event.to_string().as_bytes()).to_vec();
    let job = played.job.to_string();
    let letter = "UPDATE dead_letters SET body = $3::text::jsonb WHERE job_id = $1::text::uuid AND seq = $2";
    assert_eq!(world.db.execute(letter, &[&job, &seq, &event.to_string()]).await.unwrap(), 1);
    let place = "UPDATE job_events SET body_hash = $3 WHERE job_id = $1::text::uuid AND seq = $2";
    assert_eq!(world.db.execute(place, &[&job, &seq, &hash]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_cannot_be_applied_stays_with_its_reason() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([metric(1, 1)])).await;
    trainer.send(json!([metric(1, 7)])).await;
    trainer.send(json!([{"seq": 2, "type": "surprise"}])).await;
    world.callback(trainer.job, &trainer.token, b"nonsense".to_vec()).await;
    let before = letters(&world, &trainer).await;
    assert_eq!(before.len(), 3);
    assert_eq!(before[2]["reason"], "an event with this seq and other content was stored before");
    let replayed = replay(&world, &trainer, json!({})).await;
    assert_eq!((&replayed["applied"], replayed["kept"].as_array().unwrap().len()), (&json!([]), 3), "{replayed}");
    assert_eq!(letters(&world, &trainer).await.len(), 3);
    assert_eq!(world.steps(trainer.job).await, [(1, 1)]);
    // Only the one that is named is tried.
    let replayed = replay(&world, &trainer, json!({"ids": [before[0]["id"]]})).await;
    assert_eq!(replayed["kept"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_understood_now_takes_its_place_and_the_letter_is_gone() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    let (status, _) = trainer.send(json!([metric(1, 1), {"seq": 2, "type": "surprise"}, metric(3, 3)])).await;
    assert_eq!(status, 422);
    as_if_not_understood(&world, &trainer, 2, &metric(2, 2)).await;
    let replayed = replay(&world, &trainer, json!({})).await;
    assert_eq!((replayed["applied"].as_array().unwrap().len(), &replayed["kept"]), (1, &json!([])), "{replayed}");
    assert_eq!(world.steps(trainer.job).await, [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(letters(&world, &trainer).await, Vec::<Value>::new());
    let log = world.get(&format!("/training/jobs/{}/events", trainer.job)).await;
    let newest = log["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&newest["event"]["seq"], &newest["event"]["type"]), (&json!(2), &json!("metrics")), "{newest}");
    // Nothing is applied twice.
    assert_eq!(trainer.send(json!([metric(2, 2)])).await.0, 200);
    assert_eq!(world.steps(trainer.job).await, [(1, 1), (2, 1), (3, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_job_whose_place_is_passed_is_not_made_late() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([metric(1, 1), {"seq": 2, "type": "surprise"}])).await;
    let failed = event(2, json!({"type": "failed", "failure": {"code": "TRAINER_DIED", "message": "late"}}));
    as_if_not_understood(&world, &trainer, 2, &failed).await;
    let replayed = replay(&world, &trainer, json!({})).await;
    let reason = replayed["kept"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("the job is past that"), "{replayed}");
    assert_eq!(letters(&world, &trainer).await[0]["reason"], reason);
    assert_eq!(world.get(&format!("/training/jobs/{}", trainer.job)).await["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_come_in_pages_newest_first() {
    let world = World::new().await;
    let trainer = Played::new(&world).await;
    trainer.send(json!([])).await;
    for n in 0..7 {
        world.callback(trainer.job, &trainer.token, format!("nonsense {n}").into_bytes()).await;
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world.get(&format!("/training/jobs/{}/dead-letters?limit=3{cursor}", trainer.job)).await;
        ids.extend(page["items"].as_array().unwrap().iter().map(|l| l["id"].as_i64().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(ids.len(), 7);
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
}
