//! The features of each kernel, from the results of its guest's tests, and the document with their table.
//!
//! **Invariant**: a cell reports that a feature works only if the test of that name passed on that kernel. A test that did not
//! report has failed.

use std::{collections::BTreeMap, fmt::Write as _};

use super::table::Row;
use crate::dist::arch::Arch;

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Result {
    Works,
    /// The test could not run there, and why.
    Lacking(String),
    Failed,
}

/// Parses the console: the tests of a guest, in the order in which they ran.
pub(super) fn read(console: &str) -> Vec<(String, Result)> {
    let test = |line: &str| {
        let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let result = match result.trim() {
            "ok" => Result::Works,
            result => match result.strip_prefix("ignored") {
                Some(why) => {
                    Result::Lacking(why.trim().trim_start_matches('(').strip_suffix(')').unwrap_or(why).to_owned())
                }
                None => Result::Failed,
            },
        };
        let name = name.trim().rsplit("::").next()?;
        Some((name.to_owned(), result))
    };
    console.lines().filter_map(test).collect()
}

/// The beginning of the document.
const INTRODUCTION: &str = "\
# What works on which kernel

`cargo xtask vm` boots each kernel in a virtual machine, with an emulated processor, and runs a test for each column there. `--report` \
writes what it found, and what its last runs with other kernels found. \"without BPF LSM\" is a boot with Ubuntu's list of security \
modules, in which `bpf` is not.

- 32 bit calls: such a call gets past `enforce = \"steer\"`, so that the next column tells something. On arm64 a 32 bit program makes it.
- 32 bit guard: a strict policy refuses it.
- exec guard, without LSM guard: what steer does where the kernel runs no security programs: the filter of `steer exec`, the lines of \
`steer unit`, and what `status` and `doctor` say.
";

/// The document: a section for each processor.
pub(super) fn document(rows: &[Row]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for arch in Arch::ALL {
        let rows: Vec<_> = rows.iter().filter(|row| row.arch == arch.name()).collect();
        if !rows.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n## {}\n\n{}", arch.name(), section(&rows));
        }
    }
    text
}

/// The section of a processor: a row for each kernel, a column for each test, and the reasons why tests could not run.
fn section(rows: &[&Row]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    // The order of the newest tests.
    let most = rows.iter().max_by_key(|row| row.tests.len());
    for (name, _) in most.into_iter().chain(rows).flat_map(|row| &row.tests) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut text =
        format!("| kernel | run on | {} |\n|---|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    // Writing to a string cannot fail.
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.release, row.date);
        for column in &columns {
            let result = row.tests.iter().find(|(name, _)| name == column).map(|(_, result)| result);
            let cell = match result {
                Some(Result::Works) => "yes",
                Some(Result::Lacking(why)) => {
                    reasons.entry(why).or_default().push(format!("{column} on {}", row.release));
                    "no"
                }
                // The guest said that all was well, so the test is newer than this run.
                None if row.passed() => "not run",
                Some(Result::Failed) | None => "**FAILED**",
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    if !reasons.is_empty() {
        text.push('\n');
    }
    for (why, cells) in reasons {
        let _ = writeln!(text, "- {}: {why}", cells.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "running 3 tests\n\
                           test kernel::bind          ... ok\n\
                           test kernel::LSM guard     ... ignored (no hook (see x))\n\
                           [ 3.0] noise\n\
                           test kernel::made again    ... FAILED\n";

    #[test]
    fn tests_are_read_from_a_console() {
        let expected = [
            ("bind", Result::Works),
            ("LSM guard", Result::Lacking("no hook (see x)".to_owned())),
            ("made again", Result::Failed),
        ];
        assert_eq!(read(CONSOLE), expected.map(|(name, result)| (name.to_owned(), result)));
    }

    #[test]
    fn a_test_without_a_report_has_failed() {
        let row = |release: &str, console: &str| Row {
            release: release.to_owned(),
            tests: read(console),
            ..Row::new("arm64", String::new(), "2026-01-01".to_owned())
        };
        let rows = [row("6.1", CONSOLE), row("7.3", "test kernel::bind ... ok\n"), row("-", "")];
        let text = document(&rows);
        let table = "\n## arm64\n\n\
                     | kernel | run on | bind | LSM guard | made again |\n\
                     |---|---|---|---|---|\n\
                     | 6.1 | 2026-01-01 | yes | no | **FAILED** |\n\
                     | 7.3 | 2026-01-01 | yes | **FAILED** | **FAILED** |\n\
                     | - | 2026-01-01 | **FAILED** | **FAILED** | **FAILED** |\n\n\
                     - LSM guard on 6.1: no hook (see x)\n";
        assert!(text.ends_with(table), "{text}");
    }
}
