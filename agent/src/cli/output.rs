//! What commands print. A full disk is an error, not a panic.

use std::{
    fmt::Arguments,
    io::{self, IsTerminal as _, Write as _},
};

use comfy_table::{Table, presets};
use thiserror::Error;

use crate::model::lines::wrapped;

/// The narrowest terminal that text is fitted to.
const NARROWEST: usize = 40;

/// The spaces before and after a cell of a table.
pub(super) const PADDING: (u16, u16) = (0, 2);

/// Standard output takes no more.
#[derive(Debug, Error)]
#[error("write to standard output: {0}")]
pub(super) struct Unwritten(#[from] io::Error);

/// Prints to standard output as `println!` does, but returns the error.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints a line; see [`say`].
pub(super) fn line(text: Arguments<'_>) -> Result<(), Unwritten> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Prints bytes.
pub(super) fn write(text: &[u8]) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(text).and_then(|()| out.flush())?)
}

/// Prints a line to standard error. There is nowhere to report that it takes no more.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "steer: {text}");
}

/// The columns of the terminal; `None`: standard output is none.
pub(super) fn columns() -> Option<usize> {
    let size = io::stdout().is_terminal().then(|| crossterm::terminal::size().ok()).flatten();
    size.map(|(columns, _)| usize::from(columns)).filter(|columns| *columns > 0).map(|columns| columns.max(NARROWEST))
}

/// Prints text. On a terminal, lines end between words, and begin with `indent` spaces after the first.
pub(super) fn paragraph(text: &str, indent: usize) -> Result<(), Unwritten> {
    say!("{}", wrapped(text, columns(), indent))
}

/// A table. If it does not fit the terminal, each row is a block of lines instead.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    fitted(header, rows, columns())
}

fn fitted(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    for column in table.column_iter_mut() {
        column.set_padding(PADDING);
    }
    let text = table.trim_fmt();
    let Some(width) = width.filter(|width| text.lines().any(|line| line.chars().count() > *width)) else { return text };
    let mut blocks = Vec::new();
    for row in rows {
        let mut lines = Vec::new();
        for (name, cell) in header.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
            let indent = if lines.is_empty() { "" } else { "  " };
            lines.push(wrapped(&format!("{indent}{name} {}", cell.replace('\n', ", ")), Some(width), 4));
        }
        blocks.push(lines.join("\n"));
    }
    blocks.join("\n")
}

#[cfg(test)]
mod tests {
    use super::fitted;

    #[test]
    fn a_table_that_is_too_wide() {
        let rows = [vec!["vpn".to_owned(), String::new(), "/a\n/b".to_owned()]];
        let header = ["POLICY", "DNS", "APPLIES TO"];
        assert_eq!(fitted(&header, &rows, None), "POLICY  DNS  APPLIES TO\nvpn          /a\n             /b");
        assert_eq!(fitted(&header, &rows, Some(80)), fitted(&header, &rows, None));
        assert_eq!(fitted(&header, &rows, Some(20)), "POLICY vpn\n  APPLIES TO /a, /b");
    }
}
