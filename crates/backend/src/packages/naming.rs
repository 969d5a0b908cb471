//! Names of versions: `PACKAGE-vN-draft-YYYYMMDD`, and `PACKAGE-vN` once published.

use chrono::NaiveDate;

/// Name of a new draft that would become version `next`.
pub fn draft_name(package: &str, next: i32, today: NaiveDate) -> String {
    format!("{package}-v{next}-draft-{}", today.format("%Y%m%d"))
}

/// What a draft is called once it is version `number`: its name without the draft suffix. The number in a generated
/// name was a guess, so it is set right; a name of the user's own has none and stays.
pub fn published_name(draft: &str, number: i32) -> String {
    let Some(base) = without_suffix(draft) else { return draft.to_owned() };
    match base.rsplit_once("-v") {
        Some((package, guess)) if is_digits(guess) => format!("{package}-v{number}"),
        _ => base.to_owned(),
    }
}

/// `name` without `-draft` or `-draft-YYYYMMDD`, if there is something before it.
fn without_suffix(name: &str) -> Option<&str> {
    let undated = match name.rsplit_once('-') {
        Some((rest, date)) if date.len() == 8 && is_digits(date) => rest,
        _ => name,
    };
    undated.strip_suffix("-draft").filter(|base| !base.is_empty())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_source_documents() {
        let day = NaiveDate::from_ymd_opt(2025, 1, 31).unwrap();
        assert_eq!(draft_name("my-package", 1, day), "my-package-v1-draft-20250131");
        assert_eq!(published_name("my-package-v1-draft-20250131", 1), "my-package-v1");
    }

    #[test]
    fn publishing_sets_the_number_right_and_keeps_names_of_ones_own() {
        assert_eq!(published_name("p-v1-draft-20250131", 12), "p-v12");
        assert_eq!(published_name("p-v1-draft", 12), "p-v12");
        assert_eq!(published_name("the good one-draft", 3), "the good one");
        assert_eq!(published_name("the good one", 3), "the good one");
        assert_eq!(published_name("p-v2", 3), "p-v2");
        assert_eq!(published_name("-draft", 3), "-draft");
        assert_eq!(published_name("draft-20250131", 3), "draft-20250131");
    }
}
