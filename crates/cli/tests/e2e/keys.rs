//! Keys by command, with the stack of `hone up`.

use crate::harness::Hone;

#[test]
fn a_key_is_made_used_and_revoked() {
    let hone = Hone::started();
    let key = hone.ok(&["keys", "create", "ci", "--scope", "jobs:read", "--expires", "12h"]);
    let key = key.trim();
    assert!(key.starts_with("hone_sk_") && key.len() == 72, "only the key is on standard output");
    let with = |args: &[&str]| hone.command(args).env("HONE_API_KEY", key).output().unwrap();
    assert!(with(&["jobs", "ls"]).status.success());
    let refused = with(&["datasets", "ls"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("needs the scope `datasets:read`"), "{told}");

    let text = hone.ok(&["keys", "ls"]);
    assert!(
        text.contains("ci") && text.contains("jobs:read") && text.contains("until ") && !text.contains(key),
        "{text}"
    );
    assert!(hone.ok(&["keys", "revoke", "ci"]).contains("revoked ci"));
    assert!(!with(&["jobs", "ls"]).status.success());
    assert_eq!(hone.json(&["keys", "ls"])[0]["name"], "ci");
    let (code, message) = hone.fails(&["keys", "revoke", "nobody"]);
    assert_eq!((code, message.contains("`hone keys ls` lists yours")), (3, true), "{message}");
    let (code, message) = hone.fails(&["keys", "create", "x", "--scope", "jobs"]);
    assert_eq!((code, message.contains("`jobs` is no scope")), (2, true), "{message}");
    // Whoever runs `hone up` is the administrator.
    let me = hone.with_api(async |api| api.client.get::<wire::account::Me>("/api/me").await.unwrap());
    assert_eq!((me.name.as_str(), me.role), ("local", wire::account::Role::Admin));
}
