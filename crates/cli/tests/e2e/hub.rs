//! Models of the Hugging Face Hub by command, with the stack of `hone up` and a stand-in for the Hub.

use crate::harness::Hone;
use testkit::hub::{COMMIT, Hub, TOKEN};

#[test]
fn a_model_is_found_and_pulled() {
    let hub = Hub::start();
    let mut hone = Hone::new();
    hone.settings.extend(hub.environment().map(|(name, value)| (name, value.to_owned())));
    hone.up();

    let text = hone.ok(&["models", "search", "tiny", "--author", "o", "--task", "text-generation", "--limit", "3"]);
    let line = text.lines().nth(1).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["o/m", "text-generation", "7", "3", "gated"], "{text}");
    let asked = hub.requests("/api/models?").pop().unwrap().0;
    for part in ["search=tiny", "author=o", "pipeline_tag=text-generation", "limit=3"] {
        assert!(asked.contains(part), "{asked}");
    }
    assert_eq!(hone.json(&["models", "search", "tiny"])[0]["id"], "o/m");

    let text = hone.ok(&["models", "pull", "o/m", "--name", "mine"]);
    assert!(text.contains(&format!("pulled o/m as mine@{COMMIT} (5 files, ")), "{text}");
    assert!(text.contains("use it with `model: mine`") && !text.contains(TOKEN), "{text}");
    let shown = hone.json(&["models", "show", "mine"]);
    assert_eq!((&shown["name"], &shown["revision"]), (&"mine".into(), &COMMIT.into()));
    // What is there already is not fetched again.
    let fetched = hub.requests("/large/").len();
    let again = hone.json(&["models", "pull", "o/m", "--name", "mine"]);
    assert_eq!((&again["status"], &again["commit"]), (&"succeeded".into(), &COMMIT.into()));
    assert_eq!(hub.requests("/large/").len(), fetched);

    let (code, message) = hone.fails(&["models", "pull", "o/m", "--revision", "locked", "--name", "other"]);
    assert_eq!((code, message.contains("cannot pull o/m") && message.contains("HF_TOKEN")), (1, true), "{message}");
    let (code, message) = hone.fails(&["models", "pull", "a/b/c"]);
    assert_eq!(code, 4, "{message}");
    hub.break_down();
    let (code, message) = hone.fails(&["models", "search", "another"]);
    assert_eq!((code, message.contains("the Hugging Face Hub")), (5, true), "{message}");
}
