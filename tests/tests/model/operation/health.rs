//! Lines fail and work again: carrier, addresses, default routes, black holes behind them; administrators take them out of use; and groups
//! of uplinks change.

use proptest::{
    prelude::{BoxedStrategy, Just, Strategy, any as anything, prop_oneof},
    sample::{select, subsequence},
};
use steer_lab::Family;

use super::{AUTO, Act, Done, GROUPS, Operation, dns, files::change, files::changed, right, space};
use crate::model::{
    reference::{
        Files, Reference, Space,
        groups::{FAMILIES, Group, Hand, LINKS, Lack, Member},
    },
    world::World,
};

/// A link lacks something that packets need, or gets it back.
#[derive(Clone, Debug)]
pub(crate) struct Lose(pub(crate) Space, pub(crate) u8, pub(crate) Lack);

/// What the server answers to the addresses of a link is lost, or arrives again.
#[derive(Clone, Debug)]
pub(crate) struct Hole(pub(crate) Space, pub(crate) u8, pub(crate) Family);

/// `steer uplink`.
#[derive(Clone, Debug)]
pub(crate) struct ByHand(pub(crate) &'static str, pub(crate) &'static str, pub(crate) Hand);

/// A group of uplinks is another one in the file.
#[derive(Clone, Debug)]
pub(crate) struct Regroup {
    pub(crate) group: Group,
    pub(crate) watched: bool,
}

pub(super) fn any() -> BoxedStrategy<Operation> {
    let family = || select(&FAMILIES[..]);
    let number = || select(&[0, 1, 1, 2, 2][..]);
    let lack = prop_oneof![
        1 => Just(Lack::Carrier),
        1 => family().prop_map(Lack::Address),
        1 => family().prop_map(Lack::Route),
    ];
    let hand = select(&[Hand::Auto, Hand::Up, Hand::Down, Hand::Down][..]);
    prop_oneof![
        5 => (space(), number(), lack).prop_map(|(space, number, lack)| Lose(space, number, lack).into()),
        4 => (space(), number(), family()).prop_map(|(space, number, family)| Hole(space, number, family).into()),
        3 => (select(&GROUPS[..]), select(&LINKS[..]), hand).prop_map(|(group, link, hand)| ByHand(group, link, hand).into()),
        2 => (select(&GROUPS[..]).prop_flat_map(group), anything::<bool>())
            .prop_map(|(group, watched)| Regroup { group, watched }.into()),
    ]
    .boxed()
}

/// A group of two or three members, or the one that finds them.
fn group(name: &'static str) -> impl Strategy<Value = Group> {
    let members = subsequence(&LINKS[..], 2..=3).prop_shuffle();
    let places = proptest::collection::vec((1..=2_u8, 1..=3_u8, dns()), LINKS.len());
    (members, places, anything::<bool>(), anything::<bool>()).prop_map(move |(links, places, probed, by_socket)| {
        if name == AUTO {
            return Group::auto(probed, by_socket);
        }
        let members =
            links.into_iter().zip(places).map(|(link, (tier, weight, dns))| Member { link, tier, weight, dns });
        Group { name, members: members.collect(), probed, by_socket }
    })
}

/// Connections on a line that fails send again later and later.
fn stopped(reference: &mut Reference, space: Space) {
    for ((_, of), accepted) in &mut reference.accepted {
        accepted.by = accepted.by.filter(|_| *of != space);
    }
    reference.settle();
}

impl Act for Lose {
    /// Not with a further network, which is an address and a route of its own.
    fn makes_sense(&self, now: &Reference) -> bool {
        let line = now.lines.get(&(self.0, self.1)).map(|(line, _)| *line);
        let is_alone = |line| now.further_line(self.0) != Some(line);
        let has_carrier = |line| self.2 == Lack::Carrier || !now.lacks_carrier(line);
        line.is_some_and(|line| is_alone(line) && has_carrier(line))
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let Self(space, number, lack) = *self;
        let line = now.lines[&(space, number)].0;
        if now.lacking.get(&line).is_some_and(|lacks| lacks.contains(&lack)) {
            world.give_back(now, space, number, lack)?;
        } else {
            world.take_away(space, number, lack)?;
        }
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let line = reference.lines[&(self.0, self.1)].0;
        let lacks = reference.lacking.entry(line).or_default();
        if !lacks.remove(&self.2) {
            lacks.insert(self.2);
        } else if self.2 != Lack::Carrier {
            // All that is missing is put back, as a person does who calls a script.
            lacks.clear();
        }
        stopped(reference, self.0);
        Ok(())
    }

    /// Whoever follows may have seen the link without its routes.
    fn removes_routes(&self) -> Option<Space> {
        Some(self.0)
    }
}

impl Act for Hole {
    fn makes_sense(&self, _: &Reference) -> bool {
        true
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.black_hole(self.0, self.1, self.2, !now.holes.contains(&(self.0, self.1, self.2)))?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let hole = (self.0, self.1, self.2);
        if !reference.holes.remove(&hole) {
            reference.holes.insert(hole);
        }
        stopped(reference, self.0);
        Ok(())
    }
}

impl Act for ByHand {
    fn makes_sense(&self, now: &Reference) -> bool {
        let group = now.in_force.iter().filter_map(|it| it.lines.group.as_ref()).find(|group| group.name == self.0);
        group.is_some_and(|group| group.members.iter().any(|member| member.link == self.1))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let hand = format!("{:?}", self.2).to_lowercase();
        world.steer(Space::Here, &["uplink", &hand, self.0, self.1].map(str::to_owned))
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        // The daemon may not have found a member yet.
        if self.0 == AUTO && done.as_ref().is_err_and(|said| said.contains("is no member of uplink")) {
            reference.follow(Space::Here);
            reference.settle();
            return Ok(());
        }
        right(done, true)?;
        reference.hands.insert((self.0, self.1), Some(self.2));
        reference.follow(Space::Here);
        reference.settle();
        Ok(())
    }
}

impl Regroup {
    fn next(&self, now: &Reference) -> Files {
        let mut files = now.files.clone();
        files
            .groups
            .iter_mut()
            .filter(|group| group.name == self.group.name)
            .for_each(|group| *group = self.group.clone());
        files
    }
}

impl Act for Regroup {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.daemon_runs || self.next(now).policies().is_some()
    }

    fn files(&self, now: &Reference) -> Option<Files> {
        Some(self.next(now))
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        change(now, world, &self.next(now), self.watched)
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let files = self.next(reference);
        changed(reference, files, done)
    }
}
