//! The model: the product, compared with a reference that knows nothing of how steer does it, over random lists of everything that can
//! happen: files, the API, commands, containers, links, a second network namespace, and a daemon that dies. What leaves by which link
//! is told by captures.
//!
//! **Invariant:** a case depends on its seed alone, and a failure prints the shortest list of operations and the seed.

mod known;
mod operation;
mod reference;
mod repaired;
mod world;

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use steer_tests::{Outcome, stride};

use crate::Test;
use known::KNOWN;
use operation::Operation;
use reference::{Files, Reference};
use repaired::REPAIRED;
use world::{Settles, World};

pub(crate) const TESTS: &[Test] = &[
    ("everything_is_as_the_reference_says", everything_is_as_the_reference_says),
    ("what_is_known_to_be_wrong", what_is_known_to_be_wrong),
    ("what_was_repaired", what_was_repaired),
];

/// Names the seed of one case to run again.
const SEED: &str = "STEER_MODEL_SEED";
/// The first seed of the usual cases, and their number.
const USUAL_SEED: u64 = 1 << 16;
const USUAL_CASES: u64 = 9;
/// How many seconds random cases may take, instead of the usual.
const SECONDS: &str = "STEER_MODEL_SECONDS";
/// How long a change may take to be in force. More than it ever does; a failing case waits for it with every shorter list.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a list may be shortened for.
const SHORTENING: Duration = Duration::from_mins(4);
const PATIENCE_TO_FAIL: Duration = Duration::from_millis(1500);

/// How often each operation was carried out, and refused.
type Tally = BTreeMap<(&'static str, bool), usize>;

/// Carries a list of operations out beside the reference, in a world of its own. Returns those that made sense.
fn run(operations: &[Operation], shown: Option<usize>, patience: Duration) -> anyhow::Result<Tally> {
    let mut reference = Reference::new(Files::new(Vec::new()));
    reference.shown = shown;
    let mut world = World::new(&reference, patience)?;
    let mut done = Vec::new();
    let mut tally = Tally::new();
    for operation in operations {
        let act = operation.act();
        if !act.makes_sense(&reference) || known::avoids(&reference, operation) {
            continue;
        }
        done.push(operation);
        let before = reference.clone();
        let outcome = act
            .carry_out(&before, &mut world)
            .and_then(|done| {
                *tally.entry((operation.name(), done.is_ok())).or_default() += 1;
                act.expect(&mut reference, &done).map_err(anyhow::Error::msg)
            })
            .and_then(|()| {
                let settles = if known::opens(&before, operation) { Settles::Anyhow } else { Settles::of(act) };
                world.compare(&before, &reference, &settles)
            });
        outcome.with_context(|| {
            let log = if env::var_os(SEED).is_some() { world.daemon_log() } else { String::new() };
            format!("after {} operations:\n{}\n{log}  ", done.len(), list(&done))
        })?;
    }
    let count = done.len();
    world.finish(&reference).with_context(|| format!("at the end, after {count} operations:\n{}\n  ", list(&done)))?;
    Ok(tally)
}

fn list(operations: &[&Operation]) -> String {
    let lines: Vec<_> = operations.iter().map(|operation| format!("    {operation:?}")).collect();
    lines.join("\n")
}

/// One case, made from its seed; shortened if it fails. Adds the operations that it had.
fn run_case(seed: u64, tally: &mut Tally) -> Outcome {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = operation::list().new_tree(&mut runner).map_err(|reason| anyhow::anyhow!("{reason}"))?;
    let operations = tree.current();
    match run(&operations, None, PATIENCE) {
        Ok(done) => {
            for (what, count) in done {
                *tally.entry(what).or_default() += count;
            }
            Ok(())
        }
        Err(error) => {
            // A fault that is a race may not show again in a shorter list.
            eprintln!("model: seed {seed}: {error:#}");
            let error = shorten(operations, error);
            bail!("{error:#}\nagain: {SEED}={seed} cargo xtask test model::everything")
        }
    }
}

/// The failure of a shorter list: parts are left out, ever smaller ones, as long as the rest fails, too.
fn shorten(mut operations: Vec<Operation>, mut error: anyhow::Error) -> anyhow::Error {
    let begun = Instant::now();
    let mut part = operations.len() / 2;
    while part > 0 && begun.elapsed() < SHORTENING {
        let mut at = 0;
        let before = operations.len();
        while at < operations.len() && begun.elapsed() < SHORTENING {
            let end = (at + part).min(operations.len());
            let rest = [&operations[..at], &operations[end..]].concat();
            match run(&rest, None, PATIENCE_TO_FAIL) {
                Ok(_) => at = end,
                Err(again) => (operations, error) = (rest, again),
            }
        }
        if part > 1 || operations.len() == before {
            part /= 2;
        }
    }
    error
}

fn everything_is_as_the_reference_says() -> Outcome {
    let mut tally = Tally::new();
    if let Ok(seed) = env::var(SEED) {
        return run_case(seed.parse().with_context(|| format!("{SEED}={seed}"))?, &mut tally);
    }
    let seconds = env::var(SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    let seconds: Option<u64> = seconds.or((stride(0) == 1).then_some(1800));
    let begun = Instant::now();
    // Usually the same cases, so that a change is compared with what was there before it. For a given time, other cases each time.
    let (first, limit) = match seconds {
        Some(seconds) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            (now.as_secs() << 16, Some(Duration::from_secs(seconds)))
        }
        None => (USUAL_SEED, None),
    };
    let mut cases = 0;
    while limit.map_or(cases < USUAL_CASES, |limit| begun.elapsed() < limit) {
        run_case(first + cases, &mut tally)?;
        cases += 1;
    }
    let operations: usize = tally.values().sum();
    eprintln!("model: {cases} cases of {operations} operations in all, from seed {first}");
    let counts = |succeeded| {
        let of = tally.iter().filter(|((_, done), _)| *done == succeeded);
        of.map(|((name, _), count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    eprintln!("model: done: {}; refused: {}", counts(true), counts(false));
    ensure!(operations >= 30, "only {operations} operations in {cases} cases");
    Ok(())
}

/// Each known fault is still there, or its entry is to be deleted.
fn what_is_known_to_be_wrong() -> Outcome {
    let mut gone = Vec::new();
    for (index, known) in KNOWN.iter().enumerate() {
        let operations = (known.shows)();
        let said = format!("model: known: {}: {}", known.row, known.what);
        if operations.is_empty() {
            eprintln!("{said} (not shown)");
            continue;
        }
        match run(&operations, Some(index), PATIENCE_TO_FAIL) {
            Ok(done) => {
                eprintln!("{said}: GONE: {done:?}");
                gone.push(known.row);
            }
            Err(error) => {
                let error = format!("{error:#}");
                // What is wrong comes after the operations.
                let wrong = error.rsplit("\n  : ").next().and_then(|wrong| wrong.lines().next());
                eprintln!("{said}\n    {}", wrong.unwrap_or_default());
            }
        }
    }
    ensure!(
        gone.is_empty(),
        "these are repaired; delete their entries from KNOWN in tests/tests/model/known.rs: {gone:?}"
    );
    Ok(())
}

fn what_was_repaired() -> Outcome {
    for repaired in REPAIRED {
        run(&(repaired.operations)(), None, PATIENCE).with_context(|| repaired.what)?;
    }
    Ok(())
}
