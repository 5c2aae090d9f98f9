//! Containers: the hook is called as a runtime calls it, for a process of a cgroup in one of the network namespaces.

use anyhow::Context as _;
use proptest::{
    option::weighted,
    prelude::{BoxedStrategy, Just, Strategy, prop_oneof},
    sample::select,
};
use serde_json::json;

use super::{Act, Done, Operation, STORED, WRITTEN, level, node, reach, right, space};
use crate::model::{
    reference::{
        Holder, Reference, Space,
        groups::Lines,
        outer,
        policy::{Level, Policy, Spec, naming},
        reach::Reach,
    },
    world::World,
};

/// What a container asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    Policy(&'static str),
    Interface(&'static str),
    Nothing,
}

/// A container starts.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) place: &'static str,
    pub(crate) space: Space,
    pub(crate) asks: Asks,
    pub(crate) level: Option<Level>,
    /// `steer.local` and `steer.except`.
    pub(crate) reach: Reach,
}

/// A container that runs already asks for what nobody grants, and a plugin catches up with it.
#[derive(Clone, Debug)]
pub(crate) struct Close {
    pub(crate) place: &'static str,
    pub(crate) space: Space,
}

pub(super) fn any() -> BoxedStrategy<Operation> {
    let close = (node(), space()).prop_map(|(place, space)| Close { place, space }.into());
    prop_oneof![7 => container(), 1 => close].boxed()
}

fn container() -> BoxedStrategy<Operation> {
    let names: Vec<_> = WRITTEN.into_iter().chain(STORED).collect();
    let asks = prop_oneof![
        4 => select(names).prop_map(Asks::Policy),
        3 => select(&["a0", "a1", "none", "g0", "a1+a2"][..]).prop_map(Asks::Interface),
        2 => Just(Asks::Nothing),
    ];
    (node(), space(), asks, weighted(0.3, level()), weighted(0.4, reach()))
        .prop_map(|(place, space, asks, level, reach)| {
            let level = level.filter(|_| asks != Asks::Nothing);
            let reach = reach.filter(|_| asks != Asks::Nothing).unwrap_or(Reach::NONE);
            Container { place, space, asks, level, reach }.into()
        })
        .boxed()
}

impl Container {
    pub(crate) fn is_inside_parent(&self, now: &Reference) -> bool {
        let inside = |parent: &str| self.place.starts_with(&format!("{parent}/"));
        now.files.parent.is_some_and(inside)
    }

    /// Whether nothing but `parent` holds it, or what a hook has let out already.
    pub(crate) fn is_held_by_parent(&self, now: &Reference) -> bool {
        let holder = now.holder(self.place);
        let policies = now.files.policies().unwrap_or_default();
        let mut inside = self.place;
        let mut is_named = false;
        while !inside.is_empty() && Some(inside) != now.files.parent {
            is_named |= naming(&policies, inside).is_some();
            inside = outer(inside);
        }
        self.is_inside_parent(now)
            && holder.map_or(!is_named, |held| {
                Some(held.place.as_str()) == now.files.parent && held.spec == Spec::CLOSED
                    || held.place == self.place && held.spec.exempts() && now.manual.contains_key(self.place)
            })
    }

    /// Whether it asks for the policy that the configuration has in force for it.
    fn is_as_configured(&self, now: &Reference) -> bool {
        let Asks::Policy(name) = self.asks else { return false };
        let in_force = now.policy(name).map(|in_force| in_force.policy.spec);
        let written = now
            .files
            .policies()
            .unwrap_or_default()
            .into_iter()
            .find(|policy| policy.name == name && !policy.spec.exempts());
        let asked = written.and_then(|policy| self.asked(&policy, now.files.grants));
        let is_named = now.configured.get(self.place) == Some(&name);
        // Without its uplink, a container does not start.
        let has_uplink = asked.is_some_and(|asked| {
            now.lines_of(Space::Here, &asked, Reference::group_of(&asked, &now.files.groups)).is_any()
        });
        is_named && self.space == Space::Here && has_uplink && asked == in_force
    }

    /// What it gets by a policy that it asks for, as far as its reach is granted.
    fn asked(&self, policy: &Policy, grants: Reach) -> Option<Spec> {
        let spec = policy.spec;
        let reach = spec.reach.granted(&self.reach, &grants)?;
        Some(spec.at(self.level.unwrap_or(spec.level)).reaching(reach))
    }

    /// Which policy the files name it for.
    fn named(&self, now: &Reference) -> Option<Policy> {
        naming(&now.files.policies().unwrap_or_default(), self.place).cloned()
    }

    /// Whether the configuration says how it is steered, and not what it asks for.
    fn is_named(&self, now: &Reference) -> bool {
        let asks = |policy: Policy| {
            self.asks == Asks::Policy(policy.name)
                && self.asked(&policy, now.files.grants) == Some(policy.spec)
                && self.space == Space::Here
        };
        let by_files = self.named(now).is_some_and(|policy| !asks(policy)) && !now.manual.contains_key(self.place);
        by_files || now.configured.contains_key(self.place) && !self.is_unclear(now)
    }

    /// A policy in force that the files no longer have may hold it from outside, which does not matter to a hook, or at its cgroup.
    fn is_unclear(&self, now: &Reference) -> bool {
        now.configured.contains_key(self.place) && self.named(now).is_none()
    }

    /// How it is to be steered, as the files say now. The error is that it does not start, nothing that it is left as it is.
    pub(crate) fn granted(&self, now: &Reference) -> Result<Option<(Option<&'static str>, Spec)>, ()> {
        let least = now.files.least;
        let policies = now.files.policies().unwrap_or_default();
        match self.asks {
            // It is let out of what holds it for being unknown, and of nothing else.
            Asks::Nothing => Ok(self.is_held_by_parent(now).then(|| (None, Spec::by("none")))),
            // What the configuration says is changed there.
            _ if self.is_named(now) => {
                if self.is_as_configured(now) {
                    Ok(None)
                } else {
                    Err(())
                }
            }
            Asks::Interface("none") => Err(()),
            Asks::Interface(interface) => {
                let level = self.level.unwrap_or(Level::Strict);
                let reach = Reach::NONE.granted(&self.reach, &now.files.grants).filter(|_| level >= least).ok_or(())?;
                Ok(Some((None, Spec::by(interface).at(level).reaching(reach))))
            }
            Asks::Policy(name) => {
                let policy = policies.iter().find(|policy| policy.name == name && !policy.spec.exempts()).ok_or(())?;
                let spec = self.asked(policy, now.files.grants).ok_or(())?;
                // Never less than the policy says.
                let lower = spec.level < policy.spec.level;
                if lower || spec.ingress && spec.level == Level::Steer {
                    Err(())
                } else {
                    Ok(Some((Some(policy.name), spec)))
                }
            }
        }
    }
}

impl Act for Container {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.places.contains_key(self.place)
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let pid = world.pid(self.place, self.space);
        let mut annotations = serde_json::Map::new();
        match self.asks {
            Asks::Policy(name) => drop(annotations.insert("steer.policy".to_owned(), json!(name))),
            Asks::Interface(name) => {
                let key = if Spec::by(name).is_group() { "steer.uplink" } else { "steer.interface" };
                annotations.insert(key.to_owned(), json!(name));
            }
            Asks::Nothing => {}
        }
        if let Some(level) = self.level {
            annotations.insert("steer.enforce".to_owned(), json!(level.name()));
        }
        let (words, except) = (self.reach.words().join(","), self.reach.except());
        for (key, value) in [("steer.local", words), ("steer.except", except)] {
            if !value.is_empty() {
                annotations.insert(key.to_owned(), json!(value));
            }
        }
        world.hook(&json!({
            "ociVersion": "1.0.2", "id": "model", "status": "created", "pid": pid, "bundle": "/", "annotations": annotations,
        }))
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        if self.is_unclear(reference) && done.is_err() {
            return Ok(());
        }
        let granted = self.granted(reference);
        let lines =
            |spec: &Spec| reference.lines_of(self.space, spec, Reference::group_of(spec, &reference.files.groups));
        let holder = match granted {
            Ok(None) => {
                if self.is_as_configured(reference) {
                    reference.follow(self.space);
                    reference.settle();
                }
                return right(done, true);
            }
            Ok(Some((_, spec))) if spec.exempts() => {
                Some(Holder::Own { spec, space: self.space, lines: Lines::default() })
            }
            Ok(Some((name, spec))) => Some(lines(&spec)).filter(Lines::is_any).map(|lines| {
                // On the daemon's network it follows what the daemon has in force.
                let same = name.filter(|name| {
                    let same = |it: &crate::model::reference::InForce| it.policy.spec == spec;
                    self.space == Space::Here && reference.policy(name).is_some_and(same)
                });
                let own = Holder::Own { spec, space: self.space, lines };
                same.map_or(own, |name| Holder::Named { name, last: spec })
            }),
            Err(()) => None,
        };
        right(done, holder.is_some())?;
        if let Some(holder) = holder {
            reference.follow(self.space);
            reference.steer_manually(self.place, holder);
        }
        Ok(())
    }

    fn at_once(&self) -> Option<String> {
        Some(self.place.to_owned())
    }
}

impl Act for Close {
    fn makes_sense(&self, now: &Reference) -> bool {
        let is_there = now.places.get(self.place).is_some_and(|spaces| spaces.contains(&self.space));
        is_there && now.files.policies().is_some()
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.catch_up(self.place, world.pid(self.place, self.space).context("no process")?)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let holder = Holder::Own { spec: Spec::CLOSED, space: self.space, lines: Lines::default() };
        reference.steer_manually(self.place, holder);
        Ok(())
    }

    fn at_once(&self) -> Option<String> {
        Some(self.place.to_owned())
    }
}
