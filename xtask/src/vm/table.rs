//! The table of kernels and results.
//!
//! **Invariant**: one row for each requested kernel, even if it could not be obtained.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use super::matrix;

/// A kernel and its result.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Row {
    /// The name of the processor.
    pub(super) arch: String,
    /// The day of the run.
    pub(super) date: String,
    /// The kernel as requested.
    pub(super) kernel: String,
    /// Its release.
    pub(super) release: String,
    pub(super) result: String,
    pub(super) passed: bool,
    /// Time from start to power-off of the machine; none if it was not started.
    pub(super) took: Option<Duration>,
    /// The results of its tests.
    pub(super) tests: Vec<(String, matrix::Result)>,
}

impl Row {
    /// A row of a kernel that was not started.
    pub(super) fn new(arch: &str, kernel: String, date: String) -> Self {
        Self {
            arch: arch.to_owned(),
            date,
            kernel,
            release: "-".to_owned(),
            result: "not started".to_owned(),
            passed: false,
            took: None,
            tests: Vec::new(),
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    fn time(&self) -> String {
        self.took.map_or_else(|| "-".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} ({}): {}, {}", self.kernel, self.arch, self.release, self.result, self.time())
    }
}

/// All rows, in columns.
pub(super) fn render(rows: &[Row]) -> String {
    let head = ["kernel", "release", "result", "time"].map(str::to_owned);
    let lines = rows
        .iter()
        .map(|row| [format!("{} {}", row.kernel, row.arch), row.release.clone(), row.result.clone(), row.time()]);
    let lines: Vec<[String; 4]> = std::iter::once(head).chain(lines).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [kernel, release, result, time] in &lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{kernel:first$}  {release:second$}  {result:third$}  {time}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let passed = Row {
            release: "5.10.0-1-amd64".to_owned(),
            result: "ok".to_owned(),
            passed: true,
            took: Some(Duration::from_millis(4210)),
            ..Row::new("amd64", "5.10".to_owned(), String::new())
        };
        let text = render(&[passed, Row::new("arm64", "6.1".to_owned(), String::new())]);
        assert_eq!(
            text,
            "kernel      release         result       time\n\
             5.10 amd64  5.10.0-1-amd64  ok           4.2 s\n\
             6.1 arm64   -               not started  -\n"
        );
    }
}
