//! Links go, come back, and change their names.

use proptest::prelude::{BoxedStrategy, Strategy, prop_oneof};
use proptest::sample::select;

use super::{Act, Done, Operation, space};
use crate::model::{
    reference::{Reference, Space},
    world::World,
};

/// A link is deleted.
#[derive(Clone, Debug)]
pub(crate) struct Go(pub(crate) Space, pub(crate) u8);

/// It is made again, with another index.
#[derive(Clone, Debug)]
pub(crate) struct Come(pub(crate) Space, pub(crate) u8);

/// It loses its name, or gets it back.
#[derive(Clone, Debug)]
pub(crate) struct Rename(pub(crate) Space, pub(crate) u8);

/// Both links swap their names.
#[derive(Clone, Debug)]
pub(crate) struct Swap(pub(crate) Space);

pub(super) fn any() -> BoxedStrategy<Operation> {
    let link = || (space(), select(&[0, 1, 1, 2][..]));
    prop_oneof![
        3 => link().prop_map(|(space, number)| Go(space, number).into()),
        4 => link().prop_map(|(space, number)| Come(space, number).into()),
        2 => link().prop_map(|(space, number)| Rename(space, number).into()),
        1 => space().prop_map(|space| Swap(space).into()),
    ]
    .boxed()
}

/// A link cannot be set up without a carrier.
fn has_carrier(now: &Reference, space: Space, number: u8) -> bool {
    now.lines.get(&(space, number)).is_some_and(|(line, _)| !now.lacks_carrier(*line))
}

impl Act for Go {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.lines.contains_key(&(self.0, self.1))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.net(self.0).remove_uplink(self.1)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.lines.remove(&(self.0, self.1));
        reference.forget_hands_of_auto(self.0);
        // What the other end acknowledges may have come by this one.
        for ((_, space), accepted) in &mut reference.accepted {
            accepted.by = accepted.by.filter(|_| *space != self.0);
        }
        reference.settle();
        Ok(())
    }
}

impl Act for Come {
    fn makes_sense(&self, now: &Reference) -> bool {
        let name = format!("a{}", self.1);
        !now.lines.contains_key(&(self.0, self.1)) && now.line_called(self.0, &name).is_none()
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.net(self.0).create_uplink(self.1)?;
        let mut with_it = now.clone();
        with_it.add_line(self.0, self.1);
        world.know_line(&with_it, self.0, self.1)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.add_line(self.0, self.1);
        reference.settle();
        Ok(())
    }
}

impl Rename {
    /// Its next name, if it can have it.
    fn next(&self, now: &Reference) -> Option<String> {
        let (_, name) = now.lines.get(&(self.0, self.1))?;
        let own = format!("a{}", self.1);
        let next = if *name == own { format!("gone{}", self.1) } else { own };
        now.line_called(self.0, &next).is_none().then_some(next).filter(|_| has_carrier(now, self.0, self.1))
    }
}

impl Act for Rename {
    fn makes_sense(&self, now: &Reference) -> bool {
        self.next(now).is_some()
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let next = self.next(now).unwrap_or_default();
        world.net(self.0).rename_uplink(self.1, &next)?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let next = self.next(reference).unwrap_or_default();
        if let Some((line, name)) = reference.lines.get_mut(&(self.0, self.1)) {
            *name = next;
            // It gets back what it lacks.
            reference.lacking.remove(line);
        }
        reference.forget_hands_of_auto(self.0);
        reference.settle();
        Ok(())
    }
}

impl Act for Swap {
    fn makes_sense(&self, now: &Reference) -> bool {
        [0, 1].iter().all(|number| now.lines.contains_key(&(self.0, *number)) && has_carrier(now, self.0, *number))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let net = world.net(self.0);
        let names = [net.link(0).to_owned(), net.link(1).to_owned()];
        net.rename_uplink(1, "aside")?;
        net.rename_uplink(0, &names[1])?;
        net.rename_uplink(1, &names[0])?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        let name = |number: u8| reference.lines[&(self.0, number)].1.clone();
        let (first, second) = (name(0), name(1));
        for (number, next) in [(0, second), (1, first)] {
            if let Some((line, name)) = reference.lines.get_mut(&(self.0, number)) {
                *name = next;
                reference.lacking.remove(line);
            }
        }
        reference.forget_hands_of_auto(self.0);
        reference.settle();
        Ok(())
    }
}
