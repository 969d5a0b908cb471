//! `docs/DATABASE.md` says what the catalogue says: a table, column, index, policy, trigger or function that is in
//! one and not in the other fails here.

use crate::{database::fresh, schema::lines};
use std::collections::BTreeSet;

/// One line per thing, in the words of [`documented`].
const CATALOGUE: &str = r"
WITH relations AS (
    SELECT oid, relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
    AND relname <> '__diesel_schema_migrations'
)
SELECT relname || ' column ' || attname || ' '
        || replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz')
        || CASE WHEN attnotnull THEN '' ELSE ' null' END AS line
    FROM relations JOIN pg_attribute ON attrelid = oid WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT relations.relname || ' index ' || i.relname || CASE amname WHEN 'btree' THEN '' ELSE ' (' || amname || ')' END
    FROM relations JOIN pg_index ON indrelid = relations.oid JOIN pg_class i ON i.oid = indexrelid
    JOIN pg_am am ON am.oid = i.relam
UNION ALL
SELECT relname || ' policy ' || policyname || CASE cmd WHEN 'ALL' THEN '' ELSE ' (' || lower(cmd) || ')' END
    FROM relations JOIN pg_policies ON tablename = relname
UNION ALL
SELECT relname || ' trigger ' || tgname || ' ' || proname
    FROM relations JOIN pg_trigger ON tgrelid = relations.oid AND NOT tgisinternal
    JOIN pg_proc p ON p.oid = tgfoid
UNION ALL
SELECT 'function ' || proname || '(' || pg_get_function_identity_arguments(oid) || ')'
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace";

/// What is between backticks, in order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The page's lines: `### `table`` opens a table; its columns are rows, the rest are lists.
fn documented(page: &str) -> Vec<String> {
    let (mut table, mut found) = ("", Vec::new());
    for line in page.lines() {
        let mut names = quoted(line);
        if let Some(name) = line.strip_prefix("### ") {
            table = name.trim_matches('`');
        } else if line.starts_with("## ") {
            table = "";
        } else if line.starts_with("| `") {
            let first = names.next().unwrap();
            let kind = line.split('|').nth(2).unwrap().trim();
            found.push(match table {
                "" => format!("function {first}"),
                table => format!("{table} column {first} {kind}"),
            });
        } else if let Some(list) = line.strip_prefix("Indexes: ") {
            found.extend(list.split(", ").map(|i| format!("{table} index {}", i.replace('`', ""))));
        } else if let Some(list) = line.strip_prefix("Policies: ") {
            found.extend(list.split(", ").map(|p| format!("{table} policy {}", p.replace('`', ""))));
        } else if let Some(list) = line.strip_prefix("Triggers: ") {
            found.extend(list.split(", ").map(|t| format!("{table} trigger {}", t.replace('`', "").replace("→ ", ""))));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_the_database_is_the_catalogue() {
    let (_, db) = fresh().await;
    let page = documented(include_str!("../../../../docs/DATABASE.md"));
    let documented: BTreeSet<&str> = page.iter().map(String::as_str).collect();
    assert_eq!(documented.len(), page.len(), "docs/DATABASE.md says something twice");
    let catalogue = lines(&db, CATALOGUE).await;
    let real: BTreeSet<&str> = catalogue.iter().map(String::as_str).collect();
    let missing: Vec<_> = real.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&real).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "docs/DATABASE.md lacks {missing:#?}\nand invents {invented:#?}"
    );
}

/// Counts of the source documents: columns at least, and for versions everything else too.
#[tokio::test(flavor = "multi_thread")]
async fn every_table_has_as_much_as_the_source_documents_count() {
    let (_, db) = fresh().await;
    let catalogue = lines(&db, CATALOGUE).await;
    let count = |start: &str| catalogue.iter().filter(|l| l.starts_with(start)).count();
    for (table, columns) in [
        ("training_package_versions", 27),
        ("datasets", 21),
        ("training_jobs", 25),
        ("metrics_points", 10),
        ("model_artifacts", 14),
        ("cost_records", 8),
        ("notifications", 10),
    ] {
        assert!(count(&format!("{table} column ")) >= columns, "{table}");
    }
    assert!(count("training_package_versions index idx_package_versions_") >= 9);
    assert_eq!(catalogue.iter().filter(|l| l.ends_with("_snapshot (gin)")).count(), 3);
    assert_eq!(count("training_package_versions policy tenant_"), 4);
    for name in ["set_updated_at", "update_config_version_count"] {
        assert_eq!(count(&format!("training_package_versions trigger {name} ")), 1);
    }
    for name in ["current_version_id uuid null", "version_count integer", "latest_published_version integer"] {
        assert_eq!(count(&format!("training_configs column {name}")), 1);
    }
}
