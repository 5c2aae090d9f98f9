//! Faults that were found and repaired: the shortest list of operations that showed each. All must be as the reference says.

use super::{
    operation::{
        Accept, Asks, Attach, By, Close, Container, Detach, Empty, Exec, Flush, Further, Keep, Kill, Make, Off,
        Operation, Remove, Store, Write,
    },
    reference::{
        Space,
        policy::{Level, Policy, Spec},
        reach::{By as Except, Reach},
    },
};

/// A fault that was repaired.
pub(crate) struct Repaired {
    /// What went wrong.
    pub(crate) what: &'static str,
    /// The operations that showed it.
    pub(crate) operations: fn() -> Vec<Operation>,
}

const A1: Spec = Spec::by("a1");

/// All of them.
pub(crate) const REPAIRED: &[Repaired] = &[
    Repaired {
        what: "a container that asks for nothing is let out of a policy that is not that of `parent`",
        operations: || {
            let write = Write { parent: Some("/e"), ..write(vec![Policy::new("p0", A1, &["/e/f"])]) };
            vec![Make("/e/f").into(), write.into(), container("/e/f", Asks::Nothing, None)]
        },
    },
    Repaired {
        what: "an annotation replaces what the configuration says of the container's cgroup",
        operations: || {
            let write = write(vec![Policy::new("p0", A1, &["/a"])]);
            vec![Make("/a").into(), write.into(), container("/a", Asks::Interface("a0"), None)]
        },
    },
    Repaired {
        what: "what is attached by a policy's name does not get the programs that a changed policy asks for",
        operations: || {
            let policy = |level| write(vec![Policy::new("p0", A1.at(level), &[])]).into();
            let attach = Attach { place: "/a", by: By::Policy("p0"), space: Space::Here };
            vec![Make("/a").into(), policy(Level::Steer), attach.into(), policy(Level::Strict)]
        },
    },
    Repaired {
        what: "a hook does not close a container whose cgroup the configuration names",
        operations: || {
            let close = Close { place: "/a", space: Space::Here };
            vec![Make("/a").into(), write(vec![Policy::new("p0", A1, &["/a"])]).into(), close.into()]
        },
    },
    Repaired {
        what: "`steer exec --policy` in another network namespace than the policy's runs unsteered",
        operations: || {
            let exec = Exec { place: "/a", by: By::Policy("last"), space: Space::There };
            vec![Make("/a").into(), exec.into()]
        },
    },
    Repaired {
        what: "an annotation lowers a strict policy where `enforce` of [containers] is steer",
        operations: || {
            let write = Write { least: Level::Steer, ..write(vec![Policy::new("p0", A1, &[])]) };
            vec![Make("/a").into(), write.into(), container("/a", Asks::Policy("p0"), Some(Level::Steer))]
        },
    },
    Repaired {
        what: "an emptied file releases all that it held if `policies.d` has a file",
        operations: || {
            let store = Store { policy: Policy::new("q0", Spec::by("a0"), &["/a/b"]), watched: false };
            let write = write(vec![Policy::new("p0", A1, &["/a"])]);
            vec![Make("/a").into(), write.into(), store.into(), Empty.into()]
        },
    },
    Repaired {
        what: "MPTCP and sockets from before, of an inner policy or of another namespace, are stopped by the strict policy around",
        operations: || vec![Make("/a").into(), Keep("/a").into(), attach("/a", A1, Space::Here)],
    },
    Repaired {
        what: "what is attached by the name of a policy that exempts is not closed when that policy is removed",
        operations: || {
            let exempt = Policy::new("p1", Spec::by("none"), &[]);
            let other = Policy::new("p0", A1, &[]);
            let attach = Attach { place: "/e", by: By::Policy("p1"), space: Space::Here };
            vec![Make("/e").into(), write(vec![exempt, other.clone()]).into(), attach.into(), write(vec![other]).into()]
        },
    },
    Repaired {
        what: "connections that were accepted in another namespace before a strict policy are stopped by it, also if it leaves that namespace alone",
        operations: || {
            let accept = Accept { place: "/a", space: Space::There, via: 0 };
            vec![Make("/a").into(), accept.into(), attach("/a", A1, Space::Here)]
        },
    },
    Repaired {
        what: "a socket that is kept open beyond its cgroup is held by no policy any more",
        operations: || {
            let remove = Remove { place: "/a", sockets_stay: true };
            let first = attach("/a", Spec::by("a0"), Space::Here);
            let mut operations =
                vec![Make("/a").into(), first, Keep("/a").into(), attach("/a", A1, Space::Here), remove.into()];
            operations.extend(["/e", "/e/f", "/e/f/g", "/a", "/a/b"].map(|place| Make(place).into()));
            operations
        },
    },
    Repaired {
        what: "what is attached to a cgroup holds those in it that a glob of the configuration names, until the daemon attaches them",
        operations: || {
            let places = ["/e", "/e/f", "/e/f/g"].map(|place| Make(place).into());
            let policy = write(vec![Policy::new("p0", A1, &["/e", "/e/*/*"])]).into();
            let attach = attach("/e/f", Spec::by("a0"), Space::Here);
            places.into_iter().chain([policy, attach]).collect()
        },
    },
    Repaired {
        what: "rules and routes in another network namespace outlive their policy",
        operations: || vec![Make("/a").into(), attach("/a", A1.reaching(Reach::HOST), Space::There)],
    },
    Repaired {
        what: "without a daemon, rules and routes in another network namespace outlive their policy",
        operations: || {
            let attach = attach("/a", A1.reaching(Reach::HOST), Space::There);
            vec![Make("/a").into(), Kill.into(), attach, Detach("/a").into()]
        },
    },
    Repaired {
        what: "`off` in one network namespace leaves rules and routes in another one",
        operations: || vec![Make("/a").into(), attach("/a", A1.reaching(Reach::HOST), Space::There), Off.into()],
    },
    Repaired {
        what: "the daemon does not put back what others remove in another network namespace",
        operations: || {
            let attach = attach("/a", A1.reaching(Reach::HOST), Space::There);
            vec![Make("/a").into(), attach, Flush(Space::There, None).into()]
        },
    },
    Repaired {
        what: "the daemon does not follow the networks of another network namespace",
        operations: || {
            let attach = attach("/a", A1.reaching(Reach::LAN), Space::There);
            vec![Make("/a").into(), attach, Further(Space::There, 0).into()]
        },
    },
    Repaired {
        what: "closing a container without a daemon closes the exceptions of all policies",
        operations: || {
            let except = Reach { server: Some(Except::Link("a0")), ..Reach::NONE };
            let attach = attach("/a", A1.reaching(except), Space::Here);
            let close = Close { place: "/e", space: Space::Here };
            vec![Make("/a").into(), Make("/e").into(), attach, Kill.into(), close.into()]
        },
    },
];

fn attach(place: &'static str, spec: Spec, space: Space) -> Operation {
    Attach { place, by: By::Interface(spec), space }.into()
}

fn write(policies: Vec<Policy>) -> Write {
    Write { policies, parent: None, held: None, least: Level::Strict, grants: Reach::NONE, watched: false }
}

fn container(place: &'static str, asks: Asks, level: Option<Level>) -> Operation {
    Container { place, space: Space::Here, asks, level, reach: Reach::NONE }.into()
}
