//! What can happen. A new feature adds a module here, a variant, and its line in [`Operation::act`] and in [`any`].
//!
//! **Invariant:** whether an operation makes sense, and what is right afterwards, depends on the reference only; so a shorter list of
//! operations is a case of its own.

mod api;
mod cgroups;
mod containers;
mod daemon;
mod exec;
mod files;
mod health;
mod links;
mod manual;
mod tools;

use std::fmt;

use proptest::{
    option::weighted,
    prelude::{BoxedStrategy, Just, Strategy, any as anything, prop_oneof},
    sample::{select, subsequence},
};

pub(crate) use api::{Set, Unset};
pub(crate) use cgroups::{Accept, Keep, Make, Remove};
pub(crate) use containers::{Asks, Close, Container};
pub(crate) use daemon::{Kill, Off, Start, Stop};
pub(crate) use exec::{EndExec, Exec};
pub(crate) use files::{Empty, Store, Unstore, Vanish, Write};
pub(crate) use health::{ByHand, Hole, Lose, Regroup};
pub(crate) use links::{Come, Go, Rename, Swap};
pub(crate) use manual::{Attach, Detach};
pub(crate) use tools::{Flush, Further, Reroute, Unrule};

use super::{
    reference::{
        Files, Reference, Space,
        policy::{Dns, Level, Policy, Spec},
        reach::{By as Except, Reach},
    },
    world::World,
};

/// The cgroups there can be, each after the one it is in.
pub(crate) const NODES: [&str; 6] = ["/a", "/a/b", "/a/b/c", "/e", "/e/f", "/e/f/g"];
/// What policies can name.
const PATTERNS: [&str; 9] = ["/a", "/a/b", "/a/b/c", "/e/f", "/a/*", "/*/f", "/e/**", "/**/g", "/*"];
/// Policies of the file.
const WRITTEN: [&str; 3] = ["p0", "p1", "p2"];
/// Groups of uplinks of the file. The last one finds its members itself.
pub(crate) const GROUPS: [&str; 3] = ["g0", "g1", AUTO];
pub(crate) const AUTO: &str = "auto-g2";
/// Policies with files of their own.
pub(crate) const STORED: [&str; 2] = ["q0", "q1"];

/// By what a command or a container asks to be steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Interface(Spec),
    Policy(&'static str),
}

/// What came of it; the error is what steer says that refuses.
pub(crate) type Done = Result<(), String>;

/// One thing that happens.
pub(crate) trait Act {
    /// Whether it can happen now.
    fn makes_sense(&self, now: &Reference) -> bool;

    /// Lets it happen.
    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done>;

    /// What is right afterwards. The error says why what came of it is wrong.
    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String>;

    /// The files as they are to be, where they are changed.
    fn files(&self, _: &Reference) -> Option<Files> {
        None
    }

    /// The cgroup for which all is right at once, without anything left to settle; the empty path is all of them.
    fn at_once(&self) -> Option<String> {
        None
    }

    /// The network namespace in which rules or routes of steer are removed for a moment, or for longer.
    fn removes_routes(&self) -> Option<Space> {
        None
    }
}

/// Refused or not, as it should be.
fn right(done: &Done, should: bool) -> Result<(), String> {
    match done {
        Ok(()) if !should => Err("it should have been refused".to_owned()),
        Err(said) if should => Err(format!("it was refused: {said}")),
        _ => Ok(()),
    }
}

macro_rules! operations {
    ($($name:ident),* $(,)?) => {
        /// One of them.
        #[derive(Clone)]
        pub(crate) enum Operation {
            $($name($name)),*
        }

        impl Operation {
            pub(crate) fn act(&self) -> &dyn Act {
                match self {
                    $(Self::$name(act) => act),*
                }
            }

            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name)),*
                }
            }
        }

        impl fmt::Debug for Operation {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name(act) => write!(formatter, "{act:?}")),*
                }
            }
        }

        $(impl From<$name> for Operation {
            fn from(act: $name) -> Self {
                Self::$name(act)
            }
        })*
    };
}

operations![
    Make, Remove, Keep, Accept, Write, Empty, Vanish, Store, Unstore, Set, Unset, Attach, Detach, Exec, EndExec,
    Container, Close, Go, Come, Rename, Swap, Kill, Stop, Start, Off, Unrule, Flush, Reroute, Further, Lose, Hole,
    ByHand, Regroup,
];

/// A list of them, which begins with some cgroups.
pub(crate) fn list() -> impl Strategy<Value = Vec<Operation>> {
    let begin = subsequence(&NODES[..], 1..=3)
        .prop_map(|places| places.into_iter().map(|place| Make(place).into()).collect::<Vec<_>>());
    (begin, proptest::collection::vec(any(), 30..50)).prop_map(|(mut begin, then)| {
        begin.extend(then);
        begin
    })
}

/// How often each is tried.
fn any() -> BoxedStrategy<Operation> {
    prop_oneof![
        10 => cgroups::any(),
        7 => files::any(),
        4 => api::any(),
        14 => manual::any(),
        7 => exec::any(),
        8 => containers::any(),
        6 => links::any(),
        5 => daemon::any(),
        6 => tools::any(),
        12 => health::any(),
    ]
    .boxed()
}

fn node() -> impl Strategy<Value = &'static str> {
    select(&NODES[..])
}

fn space() -> impl Strategy<Value = Space> {
    prop_oneof![2 => Just(Space::Here), 1 => Just(Space::There)]
}

fn level() -> impl Strategy<Value = Level> {
    select(&[Level::Steer, Level::Observe, Level::Strict][..])
}

fn spec() -> impl Strategy<Value = Spec> {
    let uplink = prop_oneof![
        6 => Just("a1"),
        3 => Just("a0"),
        2 => Just("none"),
        1 => Just("nowhere"),
        6 => select(&GROUPS[..]),
        3 => select(&["a1+a2", "a2+a0", "a1+a2+a0"][..]),
    ];
    let seldom = || prop_oneof![4 => Just(false), 1 => Just(true)];
    let reach = prop_oneof![Just(Reach::NONE), reach()];
    (uplink, level(), anything::<bool>(), dns(), seldom(), seldom(), reach).prop_map(
        |(uplink, level, refuses, dns, ingress, rebinds, reach)| {
            let accounts = refuses == (level == Level::Strict);
            Spec { uplink, level, refuses, dns, ingress, rebinds, accounts, reach }.valid()
        },
    )
}

/// Mostly none; else resolvers of one family or both.
fn dns() -> impl Strategy<Value = Dns> {
    prop_oneof![
        8 => Just(Dns::NONE),
        1 => Just(Dns { v4: true, v6: true }),
        1 => Just(Dns { v4: true, v6: false }),
        1 => Just(Dns { v4: false, v6: true }),
    ]
}

/// `local` and `except`.
fn reach() -> impl Strategy<Value = Reach> {
    let except = || {
        let links = ["a0", "a1", "nowhere"].map(Except::Link);
        weighted(0.3, select([&links[..], &[Except::Main, Except::Refuse]].concat()))
    };
    let six = prop_oneof![5 => Just(None), 1 => except()];
    (anything::<bool>(), anything::<bool>(), weighted(0.2, Just(())), except(), except(), six).prop_map(
        |(host, lan, discovery, server, around, six)| Reach {
            host,
            lan,
            discovery: discovery.is_some(),
            server,
            around,
            six,
        },
    )
}

fn policy(name: &'static str) -> impl Strategy<Value = Policy> {
    (spec(), subsequence(&PATTERNS[..], 0..=2)).prop_map(move |(spec, patterns)| Policy { name, spec, patterns })
}

/// Policies of these names, of which no two name the same cgroups in the same way.
fn policies() -> impl Strategy<Value = Vec<Policy>> {
    (subsequence(&PATTERNS[..], 0..=5).prop_shuffle(), proptest::collection::vec(spec(), 0..=WRITTEN.len())).prop_map(
        |(patterns, specs)| {
            let count = specs.len();
            let policies = specs.into_iter().enumerate().map(|(index, spec)| Policy {
                name: WRITTEN[index],
                spec,
                patterns: patterns.iter().copied().skip(index).step_by(count).collect(),
            });
            policies.collect()
        },
    )
}
