//! Other programs change rules, routes and addresses.

use proptest::{
    option::weighted,
    prelude::{BoxedStrategy, Strategy, any as anything, prop_oneof},
    sample::select,
};

use super::{Act, Done, Operation, space};
use crate::model::{
    reference::{Reference, Space},
    world::World,
};

/// One of steer's rules is deleted: this one of those that there are.
#[derive(Clone, Debug)]
pub(crate) struct Unrule(pub(crate) Space, pub(crate) u8);

/// All routes of steer are deleted, or those by one link.
#[derive(Clone, Debug)]
pub(crate) struct Flush(pub(crate) Space, pub(crate) Option<u8>);

/// A link loses its routes in the main table, and gets them back.
#[derive(Clone, Debug)]
pub(crate) struct Reroute(pub(crate) Space, pub(crate) u8);

/// A link gets an address in a further network, or a link loses that.
#[derive(Clone, Debug)]
pub(crate) struct Further(pub(crate) Space, pub(crate) u8);

pub(super) fn any() -> BoxedStrategy<Operation> {
    let link = || select(&[0, 1][..]);
    prop_oneof![
        3 => (space(), anything::<u8>()).prop_map(|(space, which)| Unrule(space, which).into()),
        2 => (space(), weighted(0.5, link())).prop_map(|(space, number)| Flush(space, number).into()),
        2 => (space(), link()).prop_map(|(space, number)| Reroute(space, number).into()),
        3 => (space(), link()).prop_map(|(space, number)| Further(space, number).into()),
    ]
    .boxed()
}

/// What is removed is put back by whoever follows the namespace.
fn removed(reference: &mut Reference, space: Space) {
    reference.broken.insert(space);
    reference.settle();
}

impl Act for Unrule {
    fn makes_sense(&self, _: &Reference) -> bool {
        true
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.delete_rule(self.0, self.1)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        removed(reference, self.0);
        Ok(())
    }

    fn removes_routes(&self) -> Option<Space> {
        Some(self.0)
    }
}

impl Act for Flush {
    fn makes_sense(&self, now: &Reference) -> bool {
        self.1.is_none_or(|number| now.lines.contains_key(&(self.0, number)))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.flush_routes(self.0, self.1)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        removed(reference, self.0);
        Ok(())
    }

    fn removes_routes(&self) -> Option<Space> {
        Some(self.0)
    }
}

impl Act for Reroute {
    fn makes_sense(&self, now: &Reference) -> bool {
        // Without its address, a gateway cannot be reached, and the route not be added again.
        let lacks = |line| now.lacking.get(&line).is_some_and(|lacks| !lacks.is_empty());
        now.lines.get(&(self.0, self.1)).is_some_and(|(line, _)| !lacks(*line))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.reroute(self.0, self.1)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.settle();
        Ok(())
    }

    /// Whoever follows has seen the link without them, and its network is by the uplink then.
    fn removes_routes(&self) -> Option<Space> {
        Some(self.0)
    }
}

impl Act for Further {
    fn makes_sense(&self, now: &Reference) -> bool {
        let lacks = |line| now.lacking.get(&line).is_some_and(|lacks| !lacks.is_empty());
        now.further_line(self.0).is_some() || now.lines.get(&(self.0, self.1)).is_some_and(|(line, _)| !lacks(*line))
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        match now.further_line(self.0) {
            Some(line) => world.remove_network(self.0, line.number)?,
            None => world.add_network(self.0, self.1)?,
        }
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        if reference.further_line(self.0).is_some() {
            reference.further.remove(&self.0);
        } else {
            let line = reference.lines.get(&(self.0, self.1)).map(|(line, _)| *line);
            reference.further.extend(line.map(|line| (self.0, line)));
        }
        reference.settle();
        Ok(())
    }
}
