//! The objects of the stub: versions, conflicts, finalizers, owners, and the events that watches show.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};

/// Plural names, as in paths.
pub const KINDS: [(&str, &str, &str); 4] = [
    ("jobs", "batch/v1", "Job"),
    ("pods", "v1", "Pod"),
    ("secrets", "v1", "Secret"),
    ("configmaps", "v1", "ConfigMap"),
];
pub const FOREGROUND: &str = "foregroundDeletion";
/// Events that are remembered for watches.
const MEMORY: usize = 10_000;

/// An answer that is not 2xx.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub fn status(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "code": self.code})
    }
}

#[derive(Debug, Clone)]
pub struct Event {
    pub version: u64,
    pub kind: &'static str,
    pub what: &'static str,
    pub object: Value,
}

#[derive(Debug, Default)]
pub struct Objects {
    pub version: u64,
    /// Watches from before this version get 410.
    pub compacted: u64,
    all: BTreeMap<(&'static str, String), Value>,
    events: VecDeque<Event>,
    uids: u64,
}

pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

pub fn has_finalizer(object: &Value, name: &str) -> bool {
    list(object, "/metadata/finalizers").iter().any(|f| f == name)
}

/// `a=b,c=d` against the labels of an object.
pub fn selects(selector: &str, object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    selector.split(',').filter(|part| !part.is_empty()).all(|part| {
        part.split_once('=').is_some_and(|(name, value)| labels.and_then(|l| l.get(name)).is_some_and(|l| l == value))
    })
}

pub fn now() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Civil date of a day number (proleptic Gregorian, years of 1 March).
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(name)),
            _ => merge(&mut into[name], value),
        }
    }
}

impl Objects {
    pub fn get(&self, kind: &'static str, name: &str) -> Result<Value, Refusal> {
        let found = self.all.get(&(kind, name.to_owned())).cloned();
        found.ok_or_else(|| Refusal::new(404, "NotFound", format!("{kind} \"{name}\" not found")))
    }

    pub fn find(&self, kind: &'static str, selector: &str) -> Vec<Value> {
        self.all.iter().filter(|((k, _), o)| *k == kind && selects(selector, o)).map(|(_, o)| o.clone()).collect()
    }

    pub fn owned_by(&self, uid: &str) -> Vec<(&'static str, Value)> {
        let owned = |o: &Value| list(o, "/metadata/ownerReferences").iter().any(|r| text(r, "/uid") == uid);
        self.all.iter().filter(|(_, o)| owned(o)).map(|((k, _), o)| (*k, o.clone())).collect()
    }

    pub fn orphans(&self) -> Vec<(&'static str, Value)> {
        let lives = |uid: &str| self.all.values().any(|o| text(o, "/metadata/uid") == uid);
        let lost = |o: &Value| {
            let owners = list(o, "/metadata/ownerReferences");
            !owners.is_empty() && owners.iter().all(|r| !lives(text(r, "/uid")))
        };
        self.all.iter().filter(|(_, o)| lost(o)).map(|((k, _), o)| (*k, o.clone())).collect()
    }

    fn write(&mut self, kind: &'static str, what: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let key = (kind, text(&object, "/metadata/name").to_owned());
        match what {
            "DELETED" => drop(self.all.remove(&key)),
            _ => drop(self.all.insert(key, object.clone())),
        }
        self.events.push_back(Event { version: self.version, kind, what, object: object.clone() });
        if self.events.len() > MEMORY {
            self.compacted = self.events.pop_front().map_or(self.compacted, |e| e.version);
        }
        object
    }

    pub fn create(&mut self, kind: &'static str, mut object: Value) -> Result<Value, Refusal> {
        let name = text(&object, "/metadata/name").to_owned();
        if self.all.contains_key(&(kind, name.clone())) {
            return Err(Refusal::new(409, "AlreadyExists", format!("{kind} \"{name}\" already exists")));
        }
        self.uids += 1;
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.uids));
        metadata["creationTimestamp"] = json!(now());
        Ok(self.write(kind, "ADDED", object))
    }

    /// Takes a changed object over, whoever changed it; one that waits for nothing any more goes.
    pub fn update(&mut self, kind: &'static str, object: Value) -> Value {
        let name = text(&object, "/metadata/name").to_owned();
        let Ok(before) = self.get(kind, &name) else { return object };
        if before == object {
            return object;
        }
        let waits = !list(&object, "/metadata/finalizers").is_empty();
        // A pod goes when its container is gone.
        let runs = kind == "pods" && !matches!(text(&object, "/status/phase"), "Succeeded" | "Failed");
        match is_deleting(&object) && !waits && !runs {
            true => self.write(kind, "DELETED", object),
            false => self.write(kind, "MODIFIED", object),
        }
    }

    pub fn patch(&mut self, kind: &'static str, name: &str, patch: &Value) -> Result<Value, Refusal> {
        let before = self.get(kind, name)?;
        let version = text(patch, "/metadata/resourceVersion");
        if !version.is_empty() && version != text(&before, "/metadata/resourceVersion") {
            let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": the object has been modified");
            return Err(Refusal::new(409, "Conflict", message));
        }
        let mut after = before.clone();
        merge(&mut after, patch);
        let added = |f: &&Value| !list(&before, "/metadata/finalizers").contains(f);
        if is_deleting(&before) && list(&after, "/metadata/finalizers").iter().any(|f| added(&f)) {
            let message =
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted";
            return Err(Refusal::new(422, "Invalid", message));
        }
        if kind == "jobs" && before["spec"]["template"] != after["spec"]["template"] {
            return Err(Refusal::new(422, "Invalid", "spec.template: Invalid value: field is immutable"));
        }
        Ok(self.update(kind, after))
    }

    /// As DELETE does, by its options.
    pub fn delete(&mut self, kind: &'static str, name: &str, options: &Value) -> Result<Value, Refusal> {
        let mut object = self.get(kind, name)?;
        let uid = text(options, "/preconditions/uid");
        if !uid.is_empty() && uid != text(&object, "/metadata/uid") {
            return Err(Refusal::new(409, "Conflict", "the UID in the precondition does not match"));
        }
        // A second deletion changes nothing, not even how the first one goes on.
        if is_deleting(&object) {
            return Ok(object);
        }
        object["metadata"]["deletionTimestamp"] = json!(now());
        object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        if text(options, "/propagationPolicy") == "Foreground" {
            let mut finalizers = list(&object, "/metadata/finalizers").to_vec();
            finalizers.push(json!(FOREGROUND));
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        Ok(self.update(kind, object))
    }

    pub fn drop_finalizer(&mut self, kind: &'static str, mut object: Value, name: &str) {
        let left: Vec<Value> = list(&object, "/metadata/finalizers").iter().filter(|f| *f != name).cloned().collect();
        object["metadata"]["finalizers"] = json!(left);
        self.update(kind, object);
    }

    /// Events of a kind after `version`. None: they are not remembered any more.
    pub fn after(&self, kind: &'static str, version: u64) -> Option<Vec<Event>> {
        if version < self.compacted {
            return None;
        }
        Some(self.events.iter().filter(|e| e.kind == kind && e.version > version).cloned().collect())
    }

    /// Forgets every event, as a compaction does.
    pub fn compact(&mut self) {
        self.events.clear();
        self.compacted = self.version;
    }
}
