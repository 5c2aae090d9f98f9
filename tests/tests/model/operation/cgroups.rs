//! Cgroups come and go, and their processes keep sockets.

use std::collections::BTreeSet;

use proptest::{
    prelude::{BoxedStrategy, Strategy, any as anything, prop_oneof},
    sample::select,
};

use steer_tests::linux_is_at_least;

use super::{Act, Done, Operation, node, space};
use crate::model::{
    reference::{Accepted, Binding, REMOVED, Reference, SCOPE, SPACES, Space},
    world::World,
};

/// A cgroup is made, with those around it, and processes start in it in both network namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Make(pub(crate) &'static str);

/// A cgroup is removed with all below it. Its processes end, or those that kept sockets go elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Remove {
    pub(crate) place: &'static str,
    pub(crate) sockets_stay: bool,
}

/// The processes of a cgroup make sockets that they keep.
#[derive(Clone, Debug)]
pub(crate) struct Keep(pub(crate) &'static str);

/// The processes of a cgroup in a namespace accept connections that come by a link.
#[derive(Clone, Debug)]
pub(crate) struct Accept {
    pub(crate) place: &'static str,
    pub(crate) space: Space,
    pub(crate) via: u8,
}

pub(super) fn any() -> BoxedStrategy<Operation> {
    prop_oneof![
        6 => node().prop_map(|place| Make(place).into()),
        2 => (node(), anything::<bool>()).prop_map(|(place, sockets_stay)| Remove { place, sockets_stay }.into()),
        3 => node().prop_map(|place| Keep(place).into()),
        3 => (node(), space(), select(&[0, 1][..])).prop_map(|(place, space, via)| Accept { place, space, via }.into()),
    ]
    .boxed()
}

impl Make {
    /// The cgroups that are not there yet, the outermost first.
    fn missing(&self, now: &Reference) -> Vec<String> {
        let mut missing = Vec::new();
        let mut at = self.0;
        while !at.is_empty() && !now.places.contains_key(at) {
            missing.push(at.to_owned());
            at = at.rsplit_once('/').map_or("", |(outer, _)| outer);
        }
        missing.reverse();
        missing
    }
}

impl Act for Make {
    fn makes_sense(&self, now: &Reference) -> bool {
        !now.places.contains_key(self.0)
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        self.missing(now).iter().try_for_each(|place| world.make(place))?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        for place in self.missing(reference) {
            reference.add_place(&place, &SPACES);
        }
        reference.settle();
        Ok(())
    }
}

impl Remove {
    /// What a cgroup is known by afterwards.
    fn number(&self, now: &Reference, place: &str) -> usize {
        let position = now.within(self.place).iter().position(|known| known == place).unwrap_or_default();
        now.removals * 10 + position
    }

    /// Whether sockets of a cgroup stay open.
    fn keeps(&self, now: &Reference, place: &str) -> bool {
        let keeps = SPACES.into_iter().any(|space| {
            let key = (place.to_owned(), space);
            now.kept.contains_key(&key) || now.accepted.contains_key(&key)
        });
        self.sockets_stay && keeps && !place.ends_with(SCOPE)
    }
}

impl Act for Remove {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.places.contains_key(self.place)
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        for place in now.within(self.place) {
            world.remove(&place, self.keeps(now, &place).then(|| self.number(now, &place)))?;
        }
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let before = reference.clone();
        for place in before.within(self.place) {
            if !self.keeps(&before, &place) {
                for space in SPACES {
                    reference.kept.remove(&(place.clone(), space));
                    reference.accepted.remove(&(place.clone(), space));
                }
            }
            reference.remove_place(&place, &format!("{REMOVED}{}", self.number(&before, &place)));
        }
        reference.removals += 1;
        reference.settle();
        Ok(())
    }
}

impl Act for Keep {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.places.contains_key(self.0)
            && SPACES.iter().all(|space| !now.kept.contains_key(&(self.0.to_owned(), *space)))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.keep_sockets(self.0)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        for space in SPACES {
            if let Ok(bindings) = reference.bindings(self.0, space) {
                reference.kept.insert((self.0.to_owned(), space), bindings);
            }
        }
        reference.settle();
        Ok(())
    }
}

impl Act for Accept {
    /// The link is there, and what listens is bound to it or to none. Before Linux 6.15 an older connection of another
    /// namespace is stopped.
    fn makes_sense(&self, now: &Reference) -> bool {
        let line = now.lines.get(&(self.space, self.via)).map(|(line, _)| *line);
        let none = BTreeSet::from([Binding::None]);
        let is_reached = now
            .bindings(self.place, self.space)
            .is_ok_and(|bindings| bindings == none || now.line_to_server(self.place, self.space) == line);
        let is_in_group = now.holder(self.place).is_some_and(|held| held.lines.group.is_some());
        let is_new = !now.accepted.contains_key(&(self.place.to_owned(), self.space));
        let is_left = self.space == Space::Here || linux_is_at_least(6, 15);
        let can_call = line.is_some() && now.is_whole(self.space) && !is_in_group;
        can_call && is_new && is_left && now.places.contains_key(self.place) && is_reached
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.call(self.place, self.space, self.via)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        if let Ok(bindings) = reference.bindings(self.place, self.space) {
            let by = reference.line_to_server(self.place, self.space);
            let accepted = Accepted { bindings, by };
            reference.accepted.insert((self.place.to_owned(), self.space), accepted);
        }
        reference.settle();
        Ok(())
    }
}
