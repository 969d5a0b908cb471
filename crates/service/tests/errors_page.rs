//! `docs/errors.md` lists every stable code and every retry policy, and no other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use service::retry::{DEPENDENCIES, RetryPolicy};
use std::{fmt::Write, path::Path};
use wire::{
    advice::{Advice, EXITS},
    job::FailureCode,
    problem::Code,
};

/// What the page must hold between its markers.
fn tables() -> String {
    let mut text =
        String::from("## Codes of the API\n\n| code | status | meaning | cause | remedy |\n|---|---|---|---|---|\n");
    for code in Code::ALL {
        let Advice { cause, remedy } = code.advice();
        let name = code.name();
        writeln!(
            text,
            "| <a id=\"{name}\"></a>`{name}` | {} | {} | {cause} | {remedy} |",
            code.status(),
            code.meaning()
        )
        .unwrap();
    }
    text.push_str("\n## Why jobs fail\n\n| code | tried again | meaning | cause | remedy |\n|---|---|---|---|---|\n");
    for code in FailureCode::ALL {
        let Advice { cause, remedy } = code.advice();
        let again = if code.is_retryable() { "yes" } else { "no" };
        let name = code.name();
        writeln!(text, "| <a id=\"failure-{name}\"></a>`{name}` | {again} | {} | {cause} | {remedy} |", code.meaning())
            .unwrap();
    }
    text.push_str("\n## Exit codes of `hone-trainer run`\n\n| code | meaning | what follows |\n|---|---|---|\n");
    for (code, meaning, follows) in EXITS {
        writeln!(text, "| {code} | {meaning} | {follows} |").unwrap();
    }
    text.push_str("\n## Retries\n\n| caller | called | first wait | longest wait | retries | breaker | afterwards |\n|---|---|---|---|---|---|---|\n");
    for d in DEPENDENCIES {
        let RetryPolicy { first_wait, max_wait, retries } = d.policy;
        let waits = if retries == 0 { "– | –".to_owned() } else { format!("{first_wait:?} | {max_wait:?}") };
        let retries = if retries == usize::MAX { "no end".to_owned() } else { retries.to_string() };
        let breaker = if d.breaker { "yes" } else { "no" };
        writeln!(text, "| {} | {} | {waits} | {retries} | {breaker} | {} |", d.caller, d.called, d.afterwards).unwrap();
    }
    text
}

#[test]
fn the_page_lists_every_code_and_every_policy_and_no_other() {
    const BEGIN: &str = "<!-- From the code: UPDATE_DOCS=1 cargo nextest run --workspace --test errors_page -->\n\n";
    const END: &str = "\n<!-- end -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (listed, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return std::fs::write(&path, format!("{head}{BEGIN}{}{END}{tail}", tables())).unwrap();
    }
    assert_eq!(listed, tables(), "docs/errors.md is stale; its first marker says how to renew it");
}

#[test]
fn the_lists_of_codes_are_complete() {
    // A code that a list lacks would still be read from the wire: the enums say how many there are.
    let count = |schema: serde_json::Value| schema["enum"].as_array().unwrap().len();
    let code = <Code as utoipa::PartialSchema>::schema();
    let failure = <FailureCode as utoipa::PartialSchema>::schema();
    assert_eq!(count(serde_json::to_value(code).unwrap()), Code::ALL.len());
    assert_eq!(count(serde_json::to_value(failure).unwrap()), FailureCode::ALL.len());
}
