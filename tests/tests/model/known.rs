//! What is known to be wrong: kept away from random cases, and shown by a case of its own.
//!
//! **Invariant:** [`KNOWN`] is the only place that knows of faults. Who repairs one deletes its entry, and the random cases reach what
//! it kept away; an entry whose fault is gone fails the test, so none outlives its fault.

use steer_lab::prober::Way;

use super::{
    operation::{Accept, Attach, By, Container, Make, Operation},
    reference::{
        Asked, Reference, Space,
        policy::{Level, Spec},
    },
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

fn nothing(_: &Reference, _: &Operation) -> bool {
    false
}

fn nobody(_: &Reference, _: &Asked) -> bool {
    false
}

const A1: Spec = Spec::by("a1");

/// All of them.
pub(crate) const KNOWN: &[Known] = &[
    Known {
        row: "A23",
        what: "after `off`, containers and what commands attached stay unsteered, also under a new daemon",
        avoids: |now, operation| {
            matches!(operation, Operation::Off(_)) && now.manual.keys().any(|place| now.places.contains_key(place))
        },
        opens: nothing,
        waives: nobody,
        shows: Vec::new,
    },
    Known {
        row: "attach inside a glob",
        what: "what is attached to a cgroup holds those in it that a glob of the configuration names, until the daemon attaches them",
        avoids: nothing,
        opens: |now, operation| {
            let place = match operation {
                Operation::Attach(Attach { place, .. }) => place,
                Operation::Container(Container { place, .. }) => place,
                _ => return false,
            };
            let below = format!("{place}/");
            now.daemon_runs && now.configured.keys().any(|named| named.starts_with(&below))
        },
        waives: nobody,
        // For a moment only.
        shows: Vec::new,
    },
    Known {
        row: "B1",
        what: "connections that were accepted in another namespace before a strict policy are stopped by it, also if it leaves that namespace alone",
        avoids: nothing,
        opens: nothing,
        waives: |now, asked| asked.way == Way::Accepted && now.is_left_by_strict(&asked.place, asked.space),
        shows: || {
            let accept = Accept { place: "/a", space: Space::There, via: 0 };
            vec![Make("/a").into(), accept.into(), attach("/a", A1, Space::Here)]
        },
    },
];

fn attach(place: &'static str, spec: Spec, space: Space) -> Operation {
    Attach { place, by: By::Interface(spec), space }.into()
}

impl Reference {
    /// The entries that count: not the one that is being shown.
    fn known(&self) -> impl Iterator<Item = &'static Known> {
        KNOWN.iter().enumerate().filter(|(index, _)| self.shown != Some(*index)).map(|(_, known)| known)
    }

    /// Whether a strict policy of another namespace decides about this cgroup, and leaves this namespace alone.
    fn is_left_by_strict(&self, place: &str, space: Space) -> bool {
        let mut holder = self.holder(place);
        while let Some(held) = holder {
            if held.spec.level == Level::Strict && !held.spec.exempts() && held.space != space {
                return true;
            }
            holder = self.around(&held);
        }
        false
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
