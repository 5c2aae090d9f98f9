//! What is known to be wrong: kept away from random cases, and shown by a case of its own.
//!
//! **Invariant:** [`KNOWN`] is the only place that knows of faults. Who repairs one deletes its entry, and the random cases reach what
//! it kept away; an entry whose fault is gone fails the test, so none outlives its fault.

use steer_lab::prober::Way;

use super::{
    operation::{
        Accept, Asks, Attach, By, Container, Detach, Empty, Exec, Keep, Make, Operation, Remove, Start, Store, Write,
    },
    reference::{
        Asked, Holder, InForce, Reference, Space,
        policy::{Level, Policy, Spec, naming},
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
        row: "A1",
        what: "a socket that is kept open beyond its cgroup is held by no policy any more",
        avoids: |now, operation| {
            let Operation::Remove(Remove { place, sockets_stay: true }) = operation else { return false };
            now.within(place).iter().any(|place| now.loses_hold(place))
        },
        opens: nothing,
        waives: nobody,
        shows: || {
            let remove = Remove { place: "/a", sockets_stay: true };
            let first = attach("/a", Spec::by("a0"), Space::Here);
            let mut operations =
                vec![Make("/a").into(), first, Keep("/a").into(), attach("/a", A1, Space::Here), remove.into()];
            // The kernel lets go in its own time.
            operations.extend(["/e", "/e/f", "/e/f/g", "/a", "/a/b"].map(|place| Make(place).into()));
            operations
        },
    },
    Known {
        row: "A9",
        what: "a container that asks for nothing is let out of a policy that is not that of `parent`",
        avoids: |now, operation| matches!(operation, Operation::Container(it) if it.asks == Asks::Nothing && it.is_inside_parent(now) && !it.is_held_by_parent(now)),
        opens: nothing,
        waives: nobody,
        shows: || {
            let write = Write { parent: Some("/e"), ..write(vec![Policy::new("p0", A1, &["/e/f"])]) };
            vec![Make("/e/f").into(), write.into(), container("/e/f", Asks::Nothing, None)]
        },
    },
    Known {
        row: "A9",
        what: "an annotation replaces what the configuration says of the container's cgroup",
        avoids: |now, operation| matches!(operation, Operation::Container(it) if it.asks != Asks::Nothing && now.configured.contains_key(it.place)),
        opens: nothing,
        waives: nobody,
        shows: || {
            let write = write(vec![Policy::new("p0", A1, &["/a"])]);
            vec![Make("/a").into(), write.into(), container("/a", Asks::Interface("a0"), None)]
        },
    },
    Known {
        row: "A10",
        what: "what is attached by a policy's name does not get the programs that a changed policy asks for",
        avoids: |now, operation| {
            let next = match operation {
                Operation::Start(Start) => Some(now.files.clone()),
                _ => operation.act().files(now),
            };
            let policies = next.and_then(|files| files.policies()).unwrap_or_default();
            let programs = |spec: &Spec| (spec.exempts(), spec.level, spec.dns, spec.ingress);
            now.manual.values().any(|holder| match holder {
                Holder::Named { name, last } => {
                    policies.iter().any(|it| it.name == *name && programs(&it.spec) != programs(last))
                }
                Holder::Own { .. } => false,
            })
        },
        opens: nothing,
        waives: nobody,
        shows: || {
            let policy = |level| write(vec![Policy::new("p0", A1.at(level), &[])]).into();
            let attach = Attach { place: "/a", by: By::Policy("p0"), space: Space::Here };
            vec![Make("/a").into(), policy(Level::Steer), attach.into(), policy(Level::Strict)]
        },
    },
    Known {
        row: "A11",
        what: "`steer exec --policy` in another network namespace than the policy's runs unsteered",
        avoids: |_, operation| {
            matches!(operation, Operation::Exec(Exec { by: By::Policy(_), space: Space::There, .. }))
        },
        opens: nothing,
        waives: nobody,
        shows: || {
            let exec = Exec { place: "/a", by: By::Policy("last"), space: Space::There };
            vec![Make("/a").into(), exec.into()]
        },
    },
    Known {
        row: "new: exec",
        what: "`steer exec --policy` without a daemon begins with the link that had the uplink's name when the daemon died",
        avoids: nothing,
        opens: |now, operation| {
            let Operation::Exec(Exec { by: By::Policy(name), .. }) = operation else { return false };
            let has_moved = |it: &InForce| it.line != now.line_called(Space::Here, it.policy.spec.uplink);
            !now.daemon_runs && now.policy(name).is_some_and(has_moved)
        },
        waives: nobody,
        // The keeper follows a moment later.
        shows: Vec::new,
    },
    Known {
        row: "new: detach",
        what: "`steer detach` of a cgroup that the configuration names, too, leaves it unsteered until the daemon attaches it",
        avoids: nothing,
        opens: |now, operation| {
            let Operation::Detach(Detach(place)) = operation else { return false };
            let policies: Vec<_> = now.in_force.iter().map(|it| it.policy.clone()).collect();
            now.daemon_runs && naming(&policies, place).is_some()
        },
        waives: nobody,
        // A moment that a round may miss.
        shows: Vec::new,
    },
    Known {
        row: "A13",
        what: "an annotation lowers a strict policy where `enforce` of [containers] is steer",
        avoids: |now, operation| matches!(operation, Operation::Container(it) if it.level == Some(Level::Steer) && matches!(it.asks, Asks::Policy(_)) && now.files.least == Level::Steer),
        opens: nothing,
        waives: nobody,
        shows: || {
            let write = Write { least: Level::Steer, ..write(vec![Policy::new("p0", A1, &[])]) };
            vec![Make("/a").into(), write.into(), container("/a", Asks::Policy("p0"), Some(Level::Steer))]
        },
    },
    Known {
        row: "A14",
        what: "an emptied file releases all that it held if `policies.d` has a file",
        avoids: |now, operation| matches!(operation, Operation::Empty(_)) && !now.files.stored.is_empty(),
        opens: nothing,
        waives: nobody,
        shows: || {
            let store = Store { policy: Policy::new("q0", Spec::by("a0"), &["/a/b"]), watched: false };
            let write = write(vec![Policy::new("p0", A1, &["/a"])]);
            vec![Make("/a").into(), write.into(), store.into(), Empty.into()]
        },
    },
    Known {
        row: "A23",
        what: "after `off`, containers and what commands attached stay unsteered, also under a new daemon",
        avoids: |now, operation| matches!(operation, Operation::Off(_)) && !now.manual.is_empty(),
        opens: nothing,
        waives: nobody,
        shows: Vec::new,
    },
    Known {
        row: "B1",
        what: "connections from before, of an inner policy or of another namespace, are stopped by the strict policy around",
        avoids: nothing,
        opens: nothing,
        waives: |now, asked| asked.way == Way::Accepted && now.is_below_strict(&asked.place, asked.space),
        shows: || {
            let accept = Accept { place: "/a", space: Space::There, via: 0 };
            vec![Make("/a").into(), accept.into(), attach("/a", A1, Space::Here)]
        },
    },
    Known {
        row: "B2",
        what: "MPTCP and sockets from before, of an inner policy or of another namespace, are stopped by the strict policy around",
        avoids: nothing,
        opens: nothing,
        waives: |now, asked| {
            matches!(asked.way, Way::Mptcp | Way::Kept) && now.is_below_strict(&asked.place, asked.space)
        },
        shows: || vec![Make("/a").into(), Keep("/a").into(), attach("/a", A1, Space::Here)],
    },
];

fn attach(place: &'static str, spec: Spec, space: Space) -> Operation {
    Attach { place, by: By::Interface(spec), space }.into()
}

fn write(policies: Vec<Policy>) -> Write {
    Write { policies, parent: None, least: Level::Strict, watched: false }
}

fn container(place: &'static str, asks: Asks, level: Option<Level>) -> Operation {
    Container { place, space: Space::Here, asks, level }.into()
}

impl Reference {
    /// The entries that count: not the one that is being shown.
    fn known(&self) -> impl Iterator<Item = &'static Known> {
        KNOWN.iter().enumerate().filter(|(index, _)| self.shown != Some(*index)).map(|(_, known)| known)
    }

    /// Whether a strict policy holds a cgroup's kept sockets back from what they are bound to.
    fn loses_hold(&self, place: &str) -> bool {
        let strict = |space| {
            let held = self.holder(place).filter(|held| held.space == space && !held.spec.exempts());
            held.filter(|held| held.spec.level == Level::Strict)
        };
        let keeps_other = |space: Space| {
            let key = (place.to_owned(), space);
            let accepted = self.accepted.get(&key).map(|it| &it.bindings);
            let mut bindings = self.kept.get(&key).into_iter().chain(accepted).flatten();
            strict(space).is_some_and(|held| bindings.any(|line| *line != held.line))
        };
        keeps_other(Space::Here) || keeps_other(Space::There)
    }

    /// Whether a strict policy around the one that decides, or one of another namespace, looks at these packets, too.
    fn is_below_strict(&self, place: &str, space: Space) -> bool {
        let Some(held) = self.holder(place) else { return false };
        let leaves = !held.spec.exempts() && held.space != space;
        let mut around = if leaves { Some(held) } else { self.around(&held) };
        while let Some(held) = around {
            if held.spec.level == Level::Strict && !held.spec.exempts() {
                return true;
            }
            around = self.around(&held);
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
