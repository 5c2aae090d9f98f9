//! Which policy holds: the kernel, compared with a reference that knows nothing of how steer does it, over random trees of
//! cgroups, configurations and changes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context as _, ensure};
use proptest::{
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{select, subsequence},
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use steer_lab::wait_until;
use steer_tests::{Bed, Bound, Cgroup, Outcome, PATIENCE, stride};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("the_kernel_decides_as_the_reference", the_kernel_decides_as_the_reference)];

/// The cgroups there can be, each after the one it is in.
const NODES: [&str; 8] = ["/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/e/f/g", "/e/f/g/h"];
/// What policies can name.
const PATTERNS: [&str; 10] = ["/a", "/a/b", "/a/b/c", "/e/f", "/a/*", "/*/f", "/e/**", "/**/g", "/*", "/a/**/c"];

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uplink {
    First,
    /// It comes and goes.
    Second,
    Missing,
    Exempt,
}

const UPLINKS: [Uplink; 4] = [Uplink::First, Uplink::Second, Uplink::Missing, Uplink::Exempt];

impl Uplink {
    fn name(self) -> &'static str {
        match self {
            Self::First => "a0",
            Self::Second => "a1",
            Self::Missing => "nowhere",
            Self::Exempt => "none",
        }
    }
}

#[derive(Clone, Debug)]
struct Policy {
    uplink: Uplink,
    patterns: Vec<&'static str>,
    refuses: bool,
    enforce: &'static str,
}

#[derive(Clone, Debug)]
enum Change {
    Make(&'static str),
    Remove(&'static str),
    Configure(Vec<Policy>),
    Attach(&'static str, Uplink),
    Detach(&'static str),
    /// The second uplink comes or goes.
    Toggle,
}

fn policies() -> impl Strategy<Value = Vec<Policy>> {
    let policy = (select(&UPLINKS[..]), any::<bool>(), select(&["steer", "strict"][..]));
    (subsequence(&PATTERNS[..], 0..=6).prop_shuffle(), proptest::collection::vec(policy, 1..=4)).prop_map(
        |(patterns, policies)| {
            let count = policies.len();
            let policies = policies.into_iter().enumerate().map(|(index, (uplink, refuses, enforce))| Policy {
                uplink,
                patterns: patterns.iter().copied().skip(index).step_by(count).collect(),
                refuses,
                enforce,
            });
            policies.collect()
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let node = || select(&NODES[..]);
    prop_oneof![
        4 => node().prop_map(Change::Make),
        1 => node().prop_map(Change::Remove),
        3 => policies().prop_map(Change::Configure),
        2 => (node(), select(&UPLINKS[..])).prop_map(|(node, uplink)| Change::Attach(node, uplink)),
        1 => node().prop_map(Change::Detach),
        1 => Just(Change::Toggle),
    ]
}

/// The reference: what there is, and what it means.
#[derive(Default)]
struct Model {
    nodes: BTreeSet<&'static str>,
    policies: Vec<Policy>,
    manual: BTreeMap<&'static str, Uplink>,
    second_is_gone: bool,
}

/// Whether a pattern matches a path, part by part.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**", rest @ ..], _) => matches(rest, path) || !path.is_empty() && matches(pattern, &path[1..]),
        ([part, rest @ ..], [name, below @ ..]) => (*part == "*" || part == name) && matches(rest, below),
        _ => false,
    }
}

impl Model {
    /// The configured policy that names a cgroup: by its path, or else by the first glob.
    fn named(&self, node: &str) -> Option<&Policy> {
        let literal = self.policies.iter().find(|policy| policy.patterns.contains(&node));
        let parts = |text: &'static str| text.split('/').skip(1).collect::<Vec<_>>();
        let path: Vec<&str> = node.split('/').skip(1).collect();
        literal.or_else(|| {
            self.policies.iter().find(|policy| {
                policy.patterns.iter().any(|pattern| pattern.contains('*') && matches(&parts(pattern), &path))
            })
        })
    }

    /// What a new socket of a cgroup is bound to: the innermost cgroup around it that is attached by hand or named decides.
    fn bound(&self, node: &str, indexes: [i32; 2], is_elsewhere: bool) -> Bound {
        let mut at = node;
        while !at.is_empty() {
            let (uplink, refuses) = match (self.manual.get(at), self.named(at)) {
                (Some(uplink), _) => (*uplink, false),
                (None, Some(policy)) => (policy.uplink, policy.refuses),
                (None, None) => {
                    at = at.rsplit_once('/').map_or("", |(outer, _)| outer);
                    continue;
                }
            };
            return match uplink {
                Uplink::Exempt => Bound::To(0),
                _ if is_elsewhere && refuses => Bound::Refused(libc::EPERM),
                _ if is_elsewhere => Bound::To(0),
                Uplink::First => Bound::To(indexes[0]),
                Uplink::Second if !self.second_is_gone => Bound::To(indexes[1]),
                Uplink::Second | Uplink::Missing => Bound::To(-1),
            };
        }
        Bound::To(0)
    }
}

/// The real thing, beside the reference.
struct Run<'a> {
    bed: &'a Bed,
    indexes: [i32; 2],
    model: Model,
    cgroups: BTreeMap<&'static str, Cgroup>,
}

impl Run<'_> {
    fn make(&mut self, node: &'static str) -> Outcome {
        if let Some((outer, _)) = node.rsplit_once('/').filter(|(outer, _)| !outer.is_empty()) {
            let outer = NODES.into_iter().find(|known| *known == outer).context("a node")?;
            self.make(outer)?;
        }
        if self.model.nodes.insert(node) {
            self.cgroups.insert(node, self.bed.cgroup.child(&node[1..])?);
        }
        Ok(())
    }

    fn configure(&mut self, policies: Vec<Policy>) -> Outcome {
        let mut text = "[[policy]]\nname = \"last\"\ninterface = \"a0\"\ncgroups = []\n".to_owned();
        for (index, policy) in policies.iter().enumerate() {
            let cgroups: Vec<_> = policy.patterns.iter().map(|pattern| format!("\"@{pattern}\"")).collect();
            let other = if policy.refuses { "refuse" } else { "leave" };
            write!(
                text,
                "[[policy]]\nname = \"p{index}\"\ninterface = \"{}\"\nenforce = \"{}\"\nother_netns = \"{other}\"\n\
                 cgroups = [{}]\n",
                policy.uplink.name(),
                policy.enforce,
                cgroups.join(", ")
            )?;
        }
        self.model.policies = policies;
        self.bed.write_config(&text)?;
        self.bed.succeed(&["reload"]).map(drop)
    }

    fn carry_out(&mut self, change: Change) -> Outcome {
        let bed = self.bed;
        match change {
            Change::Make(node) => self.make(node)?,
            Change::Remove(node) => {
                let inside = |name: &&str| *name == node || name.starts_with(&format!("{node}/"));
                for name in NODES.into_iter().rev().filter(inside) {
                    self.model.nodes.remove(name);
                    self.model.manual.remove(name);
                    if let Some(cgroup) = self.cgroups.remove(name) {
                        cgroup.remove()?;
                    }
                }
            }
            Change::Configure(policies) => self.configure(policies)?,
            Change::Attach(node, uplink) => {
                let Some(cgroup) = self.cgroups.get(node) else { return Ok(()) };
                let said = bed.run(&["attach", cgroup.path(), "-i", uplink.name()])?;
                let may_fail = self.model.named(node).is_some() && !self.model.manual.contains_key(node)
                    || uplink == Uplink::Missing
                    || uplink == Uplink::Second && self.model.second_is_gone;
                match said.code {
                    0 => drop(self.model.manual.insert(node, uplink)),
                    _ => ensure!(may_fail, "{said:?}"),
                }
            }
            Change::Detach(node) => {
                if self.model.manual.remove(node).is_some() {
                    bed.succeed(&["detach", self.cgroups[node].path()])?;
                }
            }
            Change::Toggle => {
                let (from, to) = if self.model.second_is_gone { ("gone1", "a1") } else { ("a1", "gone1") };
                bed.net.client.rename_link(from, to)?;
                self.model.second_is_gone = !self.model.second_is_gone;
            }
        }
        Ok(())
    }

    /// Both agree about every cgroup, in both network namespaces, as soon as the daemon has seen what happened.
    fn compare(&self) -> Outcome {
        for (node, cgroup) in &self.cgroups {
            for (netns, is_elsewhere) in [(&self.bed.net.client, false), (&self.bed.net.server, true)] {
                let want = self.model.bound(node, self.indexes, is_elsewhere);
                let mut got = Bound::To(0);
                let agreed = wait_until("both to agree", PATIENCE, || {
                    got = cgroup.new_socket(netns).unwrap_or(Bound::Refused(0));
                    got == want
                });
                agreed.with_context(|| format!("{node}, elsewhere: {is_elsewhere}: {got:?}, not {want:?}"))?;
            }
        }
        Ok(())
    }

    /// As at the beginning.
    fn end(mut self) -> Outcome {
        for node in self.model.manual.keys() {
            self.bed.succeed(&["detach", self.cgroups[node].path()])?;
        }
        if self.model.second_is_gone {
            self.bed.net.client.rename_link("gone1", "a1")?;
        }
        for node in NODES.into_iter().rev() {
            if let Some(cgroup) = self.cgroups.remove(node) {
                cgroup.remove()?;
            }
        }
        Ok(())
    }
}

fn the_kernel_decides_as_the_reference() -> Outcome {
    let bed = Bed::new("model")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"last\"\ninterface = \"a0\"\ncgroups = []\n")?;
    let index = |number| anyhow::Ok(i32::try_from(bed.net.ifindex(number)?)?);
    let indexes = [index(0)?, index(1)?];
    let changes = RefCell::new(0_u32);
    let config = Config {
        cases: if stride(0) == 1 { 400 } else { 12 },
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let done = TestRunner::new(config).run(&proptest::collection::vec(change(), 8..16), |script| {
        let mut run = Run { bed: &bed, indexes, model: Model::default(), cgroups: BTreeMap::new() };
        let mut outcome = run.configure(Vec::new());
        for change in script {
            *changes.borrow_mut() += 1;
            let said = format!("{change:?}");
            outcome = outcome.and_then(|()| run.carry_out(change)).and_then(|()| run.compare()).context(said);
        }
        let ended = run.end();
        outcome.and(ended).map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match done {
        Ok(()) => {
            ensure!(*changes.borrow() >= 80, "only {} changes", changes.borrow());
            Ok(())
        }
        Err(TestError::Fail(reason, script)) => anyhow::bail!("{reason}, after {script:#?}"),
        Err(TestError::Abort(reason)) => anyhow::bail!("{reason}"),
    }
}
