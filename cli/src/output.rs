//! What a command prints: text for people, JSON for programs; and how an error is shown.

use clap::ValueEnum;
use serde::Serialize;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned text for a person.
    Text,
    /// One JSON object on standard output.
    Json,
}

/// What a command came to, as the exit code tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done; exit code 0.
    Done,
    /// A "no": a check failed, nothing was promoted; exit code 1.
    No,
}

/// Any error on its way to the one place that prints it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Prints `value` as JSON, or what `text` makes of it. A closed pipe (`| head`) is no error.
pub fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let mut shown = match format {
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Text => text(value),
    };
    if !shown.ends_with('\n') {
        shown.push('\n');
    }
    write(&shown)
}

/// Prints a line for people, at once.
pub fn say(line: &str) -> Result<(), Failure> {
    write(&format!("{line}\n"))
}

fn write(shown: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The chain of an error, the outermost first, one cause a line; a cause that repeats its parent's words is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !last.contains(&words) {
            let _ = write!(text, "\n  caused by: {words}");
        }
        last = words;
        next = cause.source();
    }
    text
}

/// A table with a header, columns as wide as their widest cell; numbers are aligned to the right by their look.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
    for row in [&head, &rule].into_iter().chain(rows) {
        let mut line = String::new();
        for (column, width) in widths.iter().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            // A header stands over its numbers: aligned as the first row's cell is.
            let model = rows.first().and_then(|r| r.get(column)).map_or("", String::as_str);
            let right = looks_like_number(if std::ptr::eq(row, &head) { model } else { cell });
            let _ = if right { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn looks_like_number(cell: &str) -> bool {
    let mut chars = cell.chars();
    let first = chars.next();
    first.is_some_and(|c| {
        c.is_ascii_digit() || ((c == '-' || c == '+') && chars.next().is_some_and(|d| d.is_ascii_digit()))
    }) && !cell.contains('T')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn chain_is_printed_once() {
        let error = Layer("could not load version 3", Some(Box::new(Layer("weights differ", None))));
        assert_eq!(chain(&error), "error: could not load version 3\n  caused by: weights differ");
    }

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".into(), "1.5".into()], vec!["long name".into(), "12.25".into()]];
        let want = "name         wql\n---------  -----\na            1.5\nlong name  12.25\n";
        assert_eq!(table(&["name", "wql"], &rows), want);
    }
}
