//! Two texts next to each other.

use crate::ui::{Style, paint};

/// Wider lines are hard to read.
const WIDEST: usize = 60;
const NARROWEST: usize = 24;
const GAP: &str = "   ";

/// Two columns with headings, as wide as the terminal allows.
#[must_use]
pub fn side_by_side(left_title: &str, left: &str, right_title: &str, right: &str) -> String {
    let terminal = console::Term::stdout().size_checked().map_or(100, |(_, columns)| usize::from(columns));
    columns(left_title, left, right_title, right, terminal)
}

fn columns(left_title: &str, left: &str, right_title: &str, right: &str, terminal: usize) -> String {
    let width = (terminal.saturating_sub(GAP.len()) / 2).clamp(NARROWEST, WIDEST);
    let (left, right) = (wrap(left, width), wrap(right, width));
    let pad = |text: &str| " ".repeat(width.saturating_sub(console::measure_text_width(text)));
    let rule = "─".repeat(width);
    let mut lines = vec![
        format!("{}{}{GAP}{}", paint(left_title, Style::Bold), pad(left_title), paint(right_title, Style::Bold)),
        format!("{}{GAP}{}", paint(&rule, Style::Dim), paint(&rule, Style::Dim)),
    ];
    for row in 0..left.len().max(right.len()) {
        let cell = |column: &[String]| column.get(row).cloned().unwrap_or_default();
        let (l, r) = (cell(&left), cell(&right));
        lines.push(format!("{l}{}{GAP}{r}", pad(&l)).trim_end().to_owned());
    }
    lines.join("\n")
}

/// Breaks at spaces, and inside words that are longer than a line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.trim().lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut rest: Vec<char> = word.chars().collect();
            while !rest.is_empty() {
                let used = line.chars().count();
                let gap = usize::from(used > 0);
                if used.saturating_add(gap).saturating_add(rest.len()) <= width {
                    if gap > 0 {
                        line.push(' ');
                    }
                    line.extend(rest.drain(..));
                } else if used > 0 {
                    lines.push(std::mem::take(&mut line));
                } else {
                    line.extend(rest.drain(..width.min(rest.len())));
                }
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_next_to_each_other() {
        let text = columns("base", "one two three four five six seven", "tuned", "short\nlines", 51);
        assert_eq!(
            text,
            "base                       tuned\n\
             ────────────────────────   ────────────────────────\n\
             one two three four five    short\n\
             six seven                  lines"
        );
    }

    #[test]
    fn long_words_are_broken_and_nothing_is_lost() {
        assert_eq!(wrap("ab abcdefgh c", 4), ["ab", "abcd", "efgh", "c"]);
        assert!(wrap("", 10).is_empty());
    }
}
