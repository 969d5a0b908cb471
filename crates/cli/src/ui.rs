//! What the commands print. Results go to standard output (`--json`: nothing but JSON), everything about
//! the way there to standard error.

use crate::error::CliError;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    pub json: bool,
    pub quiet: bool,
}

impl Ui {
    /// A line of the result.
    pub fn line(self, text: impl Display) {
        write_out(&format!("{text}\n"));
    }

    /// Part of a line of the result.
    pub fn part(self, text: &str) {
        write_out(text);
    }

    /// The whole result of a `--json` command.
    pub fn value<T: Serialize + ?Sized>(self, value: &T) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(e) => self.error(&CliError::failed(format!("cannot print the result as JSON: {e}"))),
        }
    }

    /// One object of a stream of JSON lines.
    pub fn json_line<T: Serialize + ?Sized>(self, value: &T) {
        if let Ok(text) = serde_json::to_string(value) {
            self.line(text);
        }
    }

    /// `value` with `--json`, else what `human` prints.
    pub fn show<T: Serialize + ?Sized>(self, value: &T, human: impl FnOnce(Self)) {
        if self.json {
            self.value(value);
        } else {
            human(self);
        }
    }

    /// Something worth knowing on the way.
    pub fn note(self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    pub fn warn(self, text: impl Display) {
        let _ = writeln!(io::stderr(), "{} {text}", paint_err("warning:", Style::Yellow));
    }

    pub fn error(self, error: &CliError) {
        if error.message.is_empty() {
            return;
        }
        if self.json {
            let _ = writeln!(io::stderr(), "{}", error.to_json());
            return;
        }
        let mut text = format!("{} {}\n", paint_err("error:", Style::Red), error.message);
        let width = error.errors.iter().map(|e| e.path.chars().count()).max().unwrap_or(0).min(40);
        for e in &error.errors {
            let tail = e.suggestion.as_ref().map(|s| format!(" ({s})")).unwrap_or_default();
            text.push_str(&format!("  {:width$}  {}{tail}\n", e.path, e.message));
        }
        if let Some(hint) = &error.hint {
            text.push_str(&format!("{} {hint}\n", paint_err("hint:", Style::Cyan)));
        }
        if let (Some(trace), Some(wire::Code::Internal)) = (&error.trace_id, error.code) {
            text.push_str(&format!("trace id: {trace}\n"));
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// A bar that counts bytes; invisible unless standard error is a terminal.
    #[must_use]
    pub fn byte_bar(self, total: u64, what: &str) -> ProgressBar {
        let bar =
            self.bar(total, "{msg:<12!} {bar:28.cyan/dim} {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}  {eta}");
        bar.set_message(what.to_owned());
        bar
    }

    #[must_use]
    pub fn bar(self, total: u64, template: &str) -> ProgressBar {
        if self.quiet || self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        bar.set_style(style.progress_chars("━━─"));
        bar
    }
}

/// Somebody closed the pipe (`| head`): there is nobody left to write to.
fn write_out(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(141);
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

/// For standard output.
#[must_use]
pub fn paint(text: &str, style: Style) -> String {
    if use_colour(io::stdout().is_terminal()) { wrap(text, style) } else { text.to_owned() }
}

/// For standard error.
#[must_use]
pub fn paint_err(text: &str, style: Style) -> String {
    if use_colour(io::stderr().is_terminal()) { wrap(text, style) } else { text.to_owned() }
}

/// <https://no-color.org>
fn use_colour(terminal: bool) -> bool {
    terminal
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM") != Some("dumb".into())
}

fn wrap(text: &str, style: Style) -> String {
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Red => "1;31",
        Style::Green => "32",
        Style::Yellow => "33",
        Style::Cyan => "36",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A table without borders. Columns whose index is in `right` are aligned to the right.
#[must_use]
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let header = header.iter().map(|h| paint(&h.to_uppercase(), Style::Dim)).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |r| r.get(column));
    let widths: Vec<usize> =
        (0..columns).map(|c| cells(c).map(|t| console::measure_text_width(t)).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, widest))| {
            let space = " ".repeat(widest.saturating_sub(console::measure_text_width(cell)));
            if right.contains(&column) { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Aligned `label  value` lines.
#[must_use]
pub fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let line = |(label, value): &(&str, String)| {
        let space = " ".repeat(width.saturating_sub(label.chars().count()));
        // Continuation lines of a value stand under its first one.
        let value = value.replace('\n', &format!("\n{}", " ".repeat(width.saturating_add(2))));
        format!("{}{space}  {value}", paint(label, Style::Dim))
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `1.5 MB`, powers of 1000.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"], " ")
}

/// `1.2M`, `820`.
#[must_use]
pub fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T"], "")
}

fn scaled(n: u64, units: &[&str], gap: &str) -> String {
    #[expect(clippy::as_conversions, reason = "for display")]
    let mut value = n as f64;
    let mut unit = units.first().copied().unwrap_or("");
    for next in units.iter().skip(1) {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let plain = units.first() == Some(&unit);
    let digits = usize::from(!plain && value < 99.95);
    format!("{value:.digits$}{gap}{unit}")
}

/// `3.2 s`, `4m 05s`, `2h 03m`.
#[must_use]
pub fn duration(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", d.as_secs_f64()),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How long ago, coarsely: `just now`, `5 min ago`, `2 days ago`.
#[must_use]
pub fn ago(at: chrono::DateTime<chrono::Utc>) -> String {
    let seconds = (chrono::Utc::now() - at).num_seconds().max(0);
    let plural = |n: i64, unit: &str| format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" });
    match seconds {
        0..=9 => "just now".into(),
        10..=59 => format!("{seconds} s ago"),
        60..=3599 => format!("{} min ago", seconds / 60),
        3600..=86_399 => plural(seconds / 3600, "hour"),
        _ => plural(seconds / 86_400, "day"),
    }
}

/// `0.0951 USD`: amounts of training are small.
#[must_use]
pub fn money(amount: f64, currency: &str) -> String {
    let digits = if amount.abs() < 100.0 { 4 } else { 2 };
    format!("{amount:.digits$} {currency}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        assert_eq!([0, 999, 1000, 1_500_000, 123_000_000].map(bytes), ["0 B", "999 B", "1.0 kB", "1.5 MB", "123 MB"]);
        assert_eq!([950, 1234, 1_100_000_000].map(count), ["950", "1.2k", "1.1G"]);
        let times = [1.25, 42.0, 65.0, 7500.0].map(|s| duration(Duration::from_secs_f64(s)));
        assert_eq!(times, ["1.2 s", "42 s", "1m 05s", "2h 05m"]);
    }

    #[test]
    fn tables_align_without_borders() {
        let text = table(&["name", "size"], &[1], [vec!["a".into(), "10 B".into()], vec!["long".into(), "1 B".into()]]);
        assert_eq!(text, "NAME  SIZE\na     10 B\nlong   1 B");
        let coloured = table(&["a"], &[], [vec![wrap("xy", Style::Red), "z".into()], vec!["abc".into(), "z".into()]]);
        assert!(coloured.contains("xy\x1b[0m   z"), "{coloured:?}");
    }
}
