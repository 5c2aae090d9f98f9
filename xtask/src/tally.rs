//! Counts tests by the `test result:` lines that libtest, rustdoc and libtest-mimic print.
//!
//! **Invariant**: missing output is never success: a run that printed no result, or failed without naming a failure, counts as
//! one failed test.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write},
    ops::AddAssign,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::cargo;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Runs a test command, passes its output on to `out`, and counts.
    pub(crate) fn observe(command: &mut Command, out: &mut impl Write) -> Result<Self> {
        let what = cargo::display(command);
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {what}"))?;
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut sum = None;
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).context("read a test's output")? > 0 {
            out.write_all(&line).context("pass a test's output on")?;
            if let Some(result) = Self::parse(&String::from_utf8_lossy(&line)) {
                *sum.get_or_insert_default() += result;
            }
            line.clear();
        }
        let status = child.wait().with_context(|| format!("wait for {what}"))?;
        let (tally, complaint) = Self::judge(sum, status.success());
        if let Some(complaint) = complaint {
            eprintln!("error: `{what}` {complaint} ({status}); this counts as one failed test");
        }
        Ok(tally)
    }

    /// Compares the printed results with the exit status.
    fn judge(sum: Option<Self>, success: bool) -> (Self, Option<&'static str>) {
        let tally = sum.unwrap_or_default();
        let one_more = Self { failed: tally.failed + 1, ..tally };
        match sum {
            None => (one_more, Some("printed no test result")),
            Some(_) if !success && tally.failed == 0 => (one_more, Some("failed without naming a failed test")),
            Some(_) => (tally, None),
        }
    }

    /// Parses `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            counts.split("; ").find_map(|item| item.trim().strip_suffix(word)?.trim_end().parse::<u64>().ok())
        };
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const OK: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s\n";

    fn observe(script: &str) -> Tally {
        Tally::observe(Command::new("sh").args(["-c", script]), &mut io::sink()).expect("sh starts")
    }

    #[test]
    fn result_lines_are_read() {
        assert_eq!(Tally::parse(OK), Some(Tally { passed: 3, failed: 0, skipped: 1 }));
        let failed = "test result: FAILED. 12 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Tally::parse(failed), Some(Tally { passed: 12, failed: 4, skipped: 0 }));
        assert_eq!(Tally::parse("test policy::result: ok. ... ok"), None);
    }

    #[test]
    fn several_results_of_one_command_add_up() {
        let tally = observe(&format!("printf '{OK}some text\\n{OK}'"));
        assert_eq!(tally.to_string(), "6 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn missing_output_and_a_bare_failure_count_as_failed() {
        assert_eq!(observe("exit 0"), Tally { failed: 1, ..Tally::default() });
        assert_eq!(observe("kill -9 $$"), Tally { failed: 1, ..Tally::default() });
        assert_eq!(observe(&format!("printf '{OK}'; exit 101")), Tally { passed: 3, failed: 1, skipped: 1 });
    }
}
