//! The features of each kernel, from the results of its guest's tests, and the document with their table.
//!
//! **Invariant**: a cell reports that a feature works only if the test of that name passed on that kernel. A test that did not
//! report has failed.

use std::{collections::BTreeMap, fmt::Write as _};

use super::table::Row;
use crate::dist::arch::Arch;

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
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

`cargo xtask vm` boots each kernel in a virtual machine, with an emulated processor, and runs a test for each column there. \"without BPF \
LSM\" is a boot with Ubuntu's list of security modules, in which `bpf` is not.

- 32 bit calls: such a call gets past `enforce = \"steer\"`, so that the next column tells something. On arm64 a 32 bit program makes it.
- 32 bit guard: a strict policy refuses it.
- exec guard, without LSM guard: what steer does where the kernel runs no security programs: the filter of `steer exec`, the lines of \
`steer unit`, and what `status` and `doctor` say.
";

/// The document with these sections, by the names of processors. Those of other processors stay as they are in the document before.
pub(super) fn document(before: &str, sections: &[(&str, String)]) -> String {
    let kept = |arch: &str| {
        let section = before.split("\n## ").find_map(|section| section.strip_prefix(&format!("{arch}\n\n")))?;
        Some(section.trim_end().to_owned() + "\n")
    };
    let all = Arch::ALL.into_iter().map(Arch::name).filter_map(|arch| {
        let new = sections.iter().find(|(name, _)| *name == arch).map(|(_, section)| section.clone());
        Some(format!("\n## {arch}\n\n{}", new.or_else(|| kept(arch))?))
    });
    [INTRODUCTION.to_owned()].into_iter().chain(all).collect()
}

/// The section of a processor: a row for each kernel, a column for each test, and the reasons why tests could not run.
pub(super) fn section<'a>(rows: impl Iterator<Item = &'a Row> + Clone, date: &str, command: &str) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.clone().flat_map(|row| &row.tests) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut text = format!(
        "Made on {date} by `{command}`.\n\n| kernel | {} |\n|---|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len()),
    );
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    // Writing to a string cannot fail.
    for row in rows {
        let _ = write!(text, "| {} |", row.release);
        for column in &columns {
            let result = row.tests.iter().find(|(name, _)| name == column).map(|(_, result)| result);
            let cell = match result {
                Some(Result::Works) => "yes",
                Some(Result::Lacking(why)) => {
                    reasons.entry(why).or_default().push(format!("{column} on {}", row.release));
                    "no"
                }
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
            ..Row::new(String::new())
        };
        let rows = [row("6.1", CONSOLE), row("7.3", "test kernel::bind ... ok\n"), row("-", "")];
        let text = section(rows.iter(), "2026-01-01", "cargo xtask vm");
        let table = "| kernel | bind | LSM guard | made again |\n\
                     |---|---|---|---|\n\
                     | 6.1 | yes | no | **FAILED** |\n\
                     | 7.3 | yes | **FAILED** | **FAILED** |\n\
                     | - | **FAILED** | **FAILED** | **FAILED** |\n\n\
                     - LSM guard on 6.1: no hook (see x)\n";
        assert!(text.ends_with(table), "{text}");

        let arm = document("", &[("arm64", "a\n".to_owned())]);
        let both = document(&arm, &[("amd64", text.clone())]);
        assert_eq!(both, format!("{INTRODUCTION}\n## amd64\n\n{text}\n## arm64\n\na\n"));
        assert_eq!(document(&both, &[("arm64", "a\n".to_owned())]), both, "the section of another processor changed");
    }
}
