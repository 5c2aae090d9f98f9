//! `steer exec`: a command that lives in a cgroup of its own, and makes sockets.

use proptest::prelude::{BoxedStrategy, Strategy, prop_oneof};

use super::{Act, By, Done, Operation, manual::by, node, right, space};
use crate::model::{
    reference::{Holder, REMOVED, Reference, SCOPE, Space},
    world::World,
};

/// `steer exec` in a cgroup and a network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    pub(crate) place: &'static str,
    pub(crate) by: By,
    pub(crate) space: Space,
}

/// Its command ends.
#[derive(Clone, Debug)]
pub(crate) struct EndExec(pub(crate) &'static str);

pub(super) fn any() -> BoxedStrategy<Operation> {
    prop_oneof![
        3 => (node(), by(), space()).prop_map(|(place, by, space)| Exec { place, by, space }.into()),
        3 => node().prop_map(|place| EndExec(place).into()),
    ]
    .boxed()
}

fn scope(place: &str) -> String {
    format!("{place}/{SCOPE}")
}

impl Act for Exec {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.places.contains_key(self.place) && !now.places.contains_key(&scope(self.place))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.execute(self.place, self.space, &self.by.options())
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let mut holder = self.by.holder(reference, self.space);
        // In another namespace the uplink of a policy means nothing. A policy that exempts has none.
        let has_uplink = matches!(&holder, Some(Holder::Named { last, .. }) if !last.exempts());
        if self.space == Space::There && has_uplink {
            holder = None;
        }
        right(done, holder.is_some())?;
        if let Some(holder) = holder {
            reference.follow(self.space);
            reference.add_place(&scope(self.place), &[self.space]);
            reference.manual.insert(scope(self.place), holder);
            reference.settle();
        }
        Ok(())
    }

    fn at_once(&self) -> Option<String> {
        Some(scope(self.place))
    }
}

impl Act for EndExec {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.places.contains_key(&scope(self.0))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.remove(&scope(self.0), None)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.remove_place(&scope(self.0), &format!("{REMOVED}{}", reference.removals * 10));
        reference.removals += 1;
        reference.settle();
        Ok(())
    }
}
