//! From bytes to events. An event that cannot be understood does not take the others of its batch with it:
//! its place in the sequence is filled by a warning, and its content goes to the dead letters.

use crate::jobs::transition::storable;
use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use wire::{
    Event, EventKind, InstanceId, JobId,
    event::{Level, MAX_BATCH, StreamBody},
    layout,
};

/// Most values one metrics event may carry, and the longest name of one in bytes.
const MAX_METRICS: usize = 64;
const MAX_NAME: usize = 64;
/// Longest text of an event in bytes.
const MAX_TEXT: usize = 64 << 10;

/// A batch whose identity is known.
#[derive(Debug, Clone)]
pub struct Batch {
    pub job: JobId,
    pub attempt: u32,
    pub instance: InstanceId,
    /// Ascending by seq, each once.
    pub events: Vec<Received>,
    pub rejected: Vec<Rejected>,
}

/// An event to store.
#[derive(Debug, Clone)]
pub struct Received {
    pub seq: i64,
    /// SHA-256 of what was sent, independent of white space and key order.
    pub hash: Vec<u8>,
    pub event: Event,
    /// The event as [`StreamBody`].
    pub body: Value,
}

impl Received {
    /// An event that the backend itself words for a trainer.
    pub fn new(event: Event) -> serde_json::Result<Self> {
        let hash = Sha256::digest(serde_json::to_value(&event)?.to_string().as_bytes()).to_vec();
        let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
        let body = serde_json::to_value(StreamBody::Event { event: event.clone() })?;
        Ok(Self { seq, hash, event, body })
    }
}

/// An event that cannot be applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    pub seq: Option<i64>,
    pub reason: String,
    pub body: Value,
}

#[derive(Deserialize)]
struct Envelope {
    job_id: JobId,
    attempt: u32,
    instance_id: InstanceId,
    events: Vec<Value>,
}

/// Parses a callback body; `prefix` is the attempt's place in storage. The error says why nothing in it can
/// be used.
pub fn batch(body: &[u8], prefix: &str) -> Result<Batch, String> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|e| format!("not a callback batch: {e}"))?;
    if envelope.events.len() > MAX_BATCH {
        return Err(format!("{} events in one batch; at most {MAX_BATCH} are allowed", envelope.events.len()));
    }
    let mut batch = Batch {
        job: envelope.job_id,
        attempt: envelope.attempt,
        instance: envelope.instance_id,
        events: Vec::with_capacity(envelope.events.len()),
        rejected: Vec::new(),
    };
    for value in envelope.events {
        add(&mut batch, value, prefix);
    }
    batch.events.sort_by_key(|e| e.seq);
    Ok(batch)
}

fn add(batch: &mut Batch, mut value: Value, prefix: &str) {
    storable(&mut value);
    let hash = Sha256::digest(value.to_string().as_bytes()).to_vec();
    let seq = value.get("seq").and_then(Value::as_i64).filter(|seq| *seq > 0);
    let Some(seq) = seq else {
        let reason = "seq is not a positive number".to_owned();
        batch.rejected.push(Rejected { seq: None, reason, body: value });
        return;
    };
    let reject = |reason: String, body: Value| Rejected { seq: Some(seq), reason, body };
    if let Some(same) = batch.events.iter().find(|e| e.seq == seq) {
        if same.hash != hash {
            batch.rejected.push(reject("another event of this batch has the same seq".into(), value));
        }
        return;
    }
    let event = match Event::deserialize(&value).map_err(|e| e.to_string()).and_then(|e| check(e, prefix)) {
        Ok(event) => event,
        Err(reason) => {
            let message = format!("event {seq} could not be understood and is kept as a dead letter: {reason}");
            batch.rejected.push(reject(reason, value));
            let seq = u64::try_from(seq).unwrap_or_default();
            Event { seq, at: Utc::now(), kind: EventKind::Log { level: Level::Warn, message } }
        }
    };
    match serde_json::to_value(StreamBody::Event { event: event.clone() }) {
        Ok(body) => batch.events.push(Received { seq, hash, event, body }),
        Err(e) => batch.rejected.push(reject(e.to_string(), Value::Null)),
    }
}

/// What the types cannot say.
fn check(event: Event, prefix: &str) -> Result<Event, String> {
    let signed = |step: u64| i64::try_from(step).map(drop).map_err(|_| format!("step {step} is out of range"));
    let inside = |key: &str| match key.starts_with(prefix) {
        true => Ok(()),
        false => Err(format!("`{key}` is not below this attempt's prefix {prefix}")),
    };
    match &event.kind {
        EventKind::Metrics { step, values, .. } => {
            signed(*step)?;
            if values.len() > MAX_METRICS || values.keys().any(|k| k.is_empty() || k.len() > MAX_NAME) {
                return Err(format!("at most {MAX_METRICS} values with names of 1 to {MAX_NAME} bytes are allowed"));
            }
        }
        EventKind::Checkpoint { step, prefix: place, .. } => {
            signed(*step)?;
            inside(place)?;
        }
        EventKind::Stopped { step, checkpoint, .. } => {
            signed(*step)?;
            checkpoint.as_deref().map_or(Ok(()), |key| checkpoint_of_job(key, prefix))?;
        }
        EventKind::Finished { manifest, .. } => {
            let artifacts = format!("{prefix}{}", layout::ARTIFACTS);
            if let Some(file) = manifest.iter().find(|f| !f.key.starts_with(&artifacts)) {
                return Err(format!("`{}` is not below {artifacts}", file.key));
            }
        }
        EventKind::Log { message, .. } | EventKind::Phase { message, .. } if message.len() > MAX_TEXT => {
            return Err(format!("a text of {} bytes; at most {MAX_TEXT} are allowed", message.len()));
        }
        _ => {}
    }
    Ok(event)
}

/// A trainer that stops before its first checkpoint names the one it resumed from, of an earlier attempt.
fn checkpoint_of_job(key: &str, prefix: &str) -> Result<(), String> {
    let job = prefix.rsplit_once("attempt-").map_or(prefix, |(job, _)| job);
    if key.starts_with(job) { Ok(()) } else { Err(format!("`{key}` is not below this job's prefix {job}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PREFIX: &str = "jobs/u/j/attempt-1/";

    fn parse(events: Value) -> Batch {
        let body =
            json!({"job_id": JobId::random(), "attempt": 1, "instance_id": InstanceId::random(), "events": events});
        batch(body.to_string().as_bytes(), PREFIX).unwrap()
    }

    fn log(seq: u64, message: &str) -> Value {
        json!({"seq": seq, "at": "2026-01-01T00:00:00Z", "type": "log", "level": "info", "message": message})
    }

    #[test]
    fn an_event_that_cannot_be_understood_leaves_its_place_to_a_warning() {
        let batch = parse(json!([log(2, "b"), {"seq": 3, "type": "surprise"}, log(1, "a"), {"seq": -1}]));
        assert_eq!(batch.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(batch.rejected.iter().map(|r| r.seq).collect::<Vec<_>>(), [Some(3), None]);
        assert!(matches!(&batch.events[2].event.kind, EventKind::Log { level: Level::Warn, .. }));
    }

    #[test]
    fn nul_characters_do_not_reach_the_database() {
        let batch = parse(json!([log(1, "a\u{0}b")]));
        assert!(batch.events[0].body.to_string().contains("a\u{fffd}b"));
    }

    #[test]
    fn a_trainer_cannot_name_objects_of_others() {
        let checkpoint = json!({"seq": 1, "at": "2026-01-01T00:00:00Z", "type": "checkpoint", "step": 1, "prefix": "jobs/other/", "size": 1});
        let batch = parse(json!([checkpoint]));
        assert!(batch.rejected[0].reason.contains("not below this attempt's prefix"), "{:?}", batch.rejected);
    }

    #[test]
    fn the_hash_ignores_white_space_and_order() {
        let compact = parse(json!([log(1, "x")]));
        let spaced = r#"{"job_id": "00000000-0000-0000-0000-000000000000", "attempt": 1, "instance_id": "00000000-0000-0000-0000-000000000000",
            "events": [ {"message": "x", "level": "info",  "type": "log", "at": "2026-01-01T00:00:00Z", "seq": 1} ]}"#;
        assert_eq!(compact.events[0].hash, batch(spaced.as_bytes(), PREFIX).unwrap().events[0].hash);
    }

    #[test]
    fn a_body_that_is_no_batch_says_where_it_breaks() {
        let error = batch(b"{\"job_id\": 1", PREFIX).unwrap_err();
        assert!(error.contains("line 1"), "{error}");
    }
}
