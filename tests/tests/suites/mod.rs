//! Network test suites that others wrote: each test has the same result inside a policy with `local = ["host"]` as
//! outside, in the same network namespace. And real programs, in `programs`. `cargo xtask suites` runs this.
//!
//! **Invariant**: a suite that does not run to its end is a failure, not a result.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use libtest_mimic::Trial;
use steer_tests::{Bed, Debian, Outcome, Spy, USERS, User};

use crate::report;

mod programs;

/// A suite.
#[derive(Debug)]
struct Suite {
    name: &'static str,
    /// A shell command in the root, where `/shared` has the files of this module.
    script: &'static str,
    /// The results in one line of its output.
    parse: fn(&str) -> Option<(String, String)>,
    /// Fewer passed tests outside mean that the suite did not run.
    least: usize,
}

/// Tests that ask name servers of the Internet and wait for them are left out.
const SUITES: [Suite; 3] = [
    Suite {
        name: "go-net",
        script: "cd /usr/share/go-1.24/src/net && exec /steer/net.test -test.v -test.skip \
                 'Google|^TestLookup|^TestResolverLookupIP|^TestConcurrentPreferGoResolversDial|^TestNoSuchHost'",
        parse: of_go,
        least: 400,
    },
    Suite {
        name: "go-net-http",
        script: "cd /usr/share/go-1.24/src/net/http && exec /steer/http.test -test.v",
        parse: of_go,
        least: 1200,
    },
    Suite {
        name: "python",
        script: "a=test.test_asyncio; exec python3 /shared/python.py test.test_socket test.test_ssl test.test_httplib \
                 $a.test_events $a.test_sock_lowlevel $a.test_streams $a.test_sendfile $a.test_server $a.test_ssl \
                 $a.test_unix_events",
        parse: of_python,
        least: 1400,
    },
];

/// Tests with another result inside, and that result. A strict policy makes no MPTCP sockets.
const LIMITS: [(&str, &str); 1] = [("TestMultiPathTCP", "SKIP")];

/// Each test and its result.
type Results = BTreeMap<String, String>;

/// Parses `    --- PASS: TestX/y (0.01s)`.
fn of_go(line: &str) -> Option<(String, String)> {
    let (result, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    Some((rest.split(" (").next()?.to_owned(), result.to_owned()))
}

/// Parses a line of `python.py`.
fn of_python(line: &str) -> Option<(String, String)> {
    let (result, name) = line.split_once('\t')?;
    ["PASS", "SKIP", "FAIL"].contains(&result).then(|| (name.to_owned(), result.to_owned()))
}

/// A line of the table.
static ROWS: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(crate) fn trials(root: bool) -> Vec<Trial> {
    let pairs = SUITES.iter().flat_map(|suite| USERS.map(|user| (suite, user)));
    pairs
        .map(|(suite, user)| {
            let name = format!("suites::{}::{user:?}", suite.name).to_lowercase();
            Trial::ignorable_test(name, move || report(check(suite, user))).with_ignored_flag(!root)
        })
        .chain(programs::trials(root))
        .collect()
}

pub(crate) fn print_table() {
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    rows.sort();
    println!("| suite | user | passed outside | passed inside | failed outside | differing tests |");
    println!("|---|---|---|---|---|---|");
    for row in &rows {
        println!("{row}");
    }
    programs::print_table();
}

fn check(suite: &Suite, user: User) -> Outcome {
    let bed = Bed::new(suite.name)?;
    let debian = Debian::of(&bed)?;
    fs::write(debian.shared.join("python.py"), include_str!("python.py"))?;
    let command = ["sh", "-c", suite.script];
    let outside = results(suite, debian.outside(&bed, user, &command)).context("outside")?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let options = ["--interface", "a1", "--local", "host"];
    let inside = results(suite, debian.inside(&bed, &options, user, &command)).context("inside")?;
    spy.saw_nothing()?;

    let names: std::collections::BTreeSet<_> = outside.keys().chain(inside.keys()).collect();
    let result = |results: &Results, name: &str| results.get(name).map_or("none", String::as_str).to_owned();
    let differing = names.into_iter().filter(|name| outside.get(*name) != inside.get(*name));
    let differing: Vec<_> = differing
        .map(|name| format!("{name}: {} outside, {} inside", result(&outside, name), result(&inside, name)))
        .collect();
    let count = |results: &Results, wanted: &str| results.values().filter(|result| *result == wanted).count();
    let row = format!(
        "| {} | {user:?} | {} | {} | {} | {} |",
        suite.name,
        count(&outside, "PASS"),
        count(&inside, "PASS"),
        count(&outside, "FAIL"),
        if differing.is_empty() { "none".to_owned() } else { differing.join("; ") }
    );
    ROWS.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    ensure!(count(&outside, "PASS") >= suite.least, "only {} tests passed outside", count(&outside, "PASS"));
    let is_limit =
        |line: &&String| LIMITS.iter().any(|(name, inside)| **line == format!("{name}: PASS outside, {inside} inside"));
    let differing: Vec<_> = differing.iter().filter(|line| !is_limit(line)).collect();
    ensure!(differing.is_empty(), "{differing:#?}");
    Ok(())
}

fn results(suite: &Suite, mut command: Command) -> anyhow::Result<Results> {
    let ran = command.stdin(Stdio::null()).output().context("start")?;
    // A failed test is a result; a signal, and an error of steer or of the root, are not.
    let (printed, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(matches!(ran.status.code(), Some(0..=2)), "{}: {printed}\n{errors}", ran.status);
    ensure!(!printed.contains("\npanic: "), "{printed}");
    Ok(printed.lines().filter_map(suite.parse).collect())
}
