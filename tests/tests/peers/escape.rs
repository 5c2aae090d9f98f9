//! Packets that leave by another link: the rows of the escape suite.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{ThreadId, current},
    time::Duration,
};

use anyhow::ensure;
use steer_tests::{Confined, Level, MEANS, Means, Outcome, Scene, Try, User};

use super::{Cells, not_here};
pub(super) use crate::escape::ROWS;
use crate::escape::Row;

static CELLS: Cells = Cells::new();

/// The timeout for an answer that may never come, on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A bed, with a machine that takes long to boot, on which nothing has leaked so far. The machine ends with the thread
/// that booted it, so only that thread uses it.
type Clean = (ThreadId, Means, Confined);

static CLEAN: Mutex<Vec<Clean>> = Mutex::new(Vec::new());

fn clean() -> MutexGuard<'static, Vec<Clean>> {
    CLEAN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A clean bed, or a new one.
fn confined(means: Means) -> anyhow::Result<Confined> {
    let is_ours = |(thread, of, _): &Clean| *thread == current().id() && *of == means;
    let mut clean = clean();
    if let Some(at) = clean.iter().position(is_ours) {
        return Ok(clean.swap_remove(at).2);
    }
    drop(clean);
    let confined = Confined::new(means, "peer-escape")?;
    confined.bed.furnish_for_escapes()?;
    Ok(confined)
}

/// The results of all attempts of one row with one means.
#[derive(Default)]
struct Sum {
    tried: bool,
    /// As root, and as nobody.
    leaked: [bool; 2],
    failed: bool,
    /// Whether steer refuses such sockets on this machine.
    refused: bool,
}

impl Sum {
    fn text(&self, row: &Row) -> &'static str {
        match self {
            Self { tried: false, .. } => "n/a",
            Self { leaked: [_, true], .. } => "**leaks**",
            Self { leaked: [true, _], .. } => "**leaks as root**",
            _ if !row.is_plain_use() => "closed",
            Self { failed: true, .. } => "fails",
            _ => "works",
        }
    }
}

pub(super) fn check(row: &'static Row) -> Outcome {
    for means in MEANS {
        if matches!(row.scene, Scene::SteeredAfter(_)) && !means.can_be_late() {
            CELLS.record(row.name, means, "n/a");
            continue;
        }
        let Some(sum) = not_here(attempts(row, means))? else {
            CELLS.record(row.name, means, "not here");
            continue;
        };
        CELLS.record(row.name, means, sum.text(row));
        if means == Means::Steer(Level::Strict) {
            for user in [User::Nobody, User::Root] {
                let leaked = sum.leaked[usize::from(user == User::Nobody)];
                let expected = !sum.refused && row.expects(Level::Strict, user);
                ensure!(!sum.tried || leaked == expected, "strict, {user:?}: leaked {leaked}, expected {expected}");
            }
        }
    }
    Ok(())
}

/// User nobody is first, and the attempts stop after a leak: root can do everything that nobody can. Beds do not share
/// state.
fn attempts(row: &Row, means: Means) -> anyhow::Result<Sum> {
    let mut sum = Sum::default();
    for user in [User::Nobody, User::Root] {
        for &family in row.families {
            let confined = confined(means)?;
            let this = Try { vector: row.vector, user, family, scene: row.scene, timeout: TIMEOUT };
            let seen = confined.attempt(this)?;
            sum.tried |= seen.attempt.is_applicable();
            sum.failed |= seen.attempt.is_applicable() && !seen.attempt.is_ok();
            sum.refused =
                row.is_past_ip() && means == Means::Steer(Level::Strict) && confined.bed.not_covered()?.is_none();
            if !seen.leaked.is_empty() {
                sum.leaked = [true, user == User::Nobody];
                return Ok(sum);
            }
            if confined.has_machine() {
                clean().push((current().id(), means, confined));
            }
        }
    }
    Ok(sum)
}

pub(super) fn print() {
    // Statics are never dropped.
    clean().clear();
    let legend = "- works: by the uplink alone; fails: plain use that does not work, and nothing by another link\n\
                  - closed: no packet of a process by any link but the uplink\n\
                  - leaks: any user gets packets out by another link; \"as root\": only root does\n\
                  - n/a: it cannot be tried, or does not concern it: what is running already cannot be put under it";
    CELLS.print("What leaves by another link than the uplink", ROWS.iter().map(|row| row.name), legend);
}
