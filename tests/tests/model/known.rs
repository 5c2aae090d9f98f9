//! What is known to be wrong: kept away from random cases, and shown by a case of its own.
//!
//! **Invariant:** [`KNOWN`] is the only place that knows of faults. Who repairs one deletes its entry, and the random cases reach what
//! it kept away; an entry whose fault is gone fails the test, so none outlives its fault.

use super::{
    operation::Operation,
    reference::{Asked, Reference},
};

/// A fault.
pub(crate) struct Known {
    /// The row of the issue.
    pub(crate) row: &'static str,
    pub(crate) what: &'static str,
    /// Whether an operation meets it. It is left out.
    avoids: fn(&Reference, &Operation) -> bool,
    /// Whether an operation meets it for a moment only: what leaves by a wrong link before all has settled is not counted.
    opens: fn(&Reference, &Operation) -> bool,
    /// Whether somebody meets it: nothing has to arrive then, and still nothing may leak.
    waives: fn(&Reference, &Asked) -> bool,
    /// The shortest list of operations that shows it; empty where what is right is not decided.
    pub(crate) shows: fn() -> Vec<Operation>,
}

/// All of them.
pub(crate) const KNOWN: &[Known] = &[];

impl Reference {
    /// The entries that count: not the one that is being shown.
    fn known(&self) -> impl Iterator<Item = &'static Known> {
        KNOWN.iter().enumerate().filter(|(index, _)| self.shown != Some(*index)).map(|(_, known)| known)
    }
}

/// The entry by which an operation is left out.
pub(crate) fn avoids(now: &Reference, operation: &Operation) -> bool {
    now.known().any(|known| (known.avoids)(now, operation))
}

/// Whether what leaves by a wrong link before all has settled is not counted.
pub(crate) fn opens(now: &Reference, operation: &Operation) -> bool {
    now.known().any(|known| (known.opens)(now, operation))
}

/// Whether nothing has to arrive.
pub(crate) fn waives(now: &Reference, asked: &Asked) -> bool {
    now.known().any(|known| (known.waives)(now, asked))
}
