//! The daemon is killed and started again, and steer is switched off.

use proptest::prelude::{BoxedStrategy, Just, Strategy, prop_oneof};

use super::{Act, Done, Operation, right};
use crate::model::{reference::Reference, world::World};

/// The daemon is killed.
#[derive(Clone, Debug)]
pub(crate) struct Kill;

/// The daemon is stopped.
#[derive(Clone, Debug)]
pub(crate) struct Stop;

/// A daemon starts. It steers again what was released.
#[derive(Clone, Debug)]
pub(crate) struct Start;

/// `steer off`.
#[derive(Clone, Debug)]
pub(crate) struct Off;

pub(super) fn any() -> BoxedStrategy<Operation> {
    prop_oneof![2 => Just(Kill.into()), 1 => Just(Stop.into()), 5 => Just(Start.into()), 1 => Just(Off.into())].boxed()
}

impl Act for Kill {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.daemon_runs
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.kill_daemon()?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.daemon_runs = false;
        Ok(())
    }

    fn at_once(&self) -> Option<String> {
        Some(String::new())
    }
}

impl Act for Stop {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.daemon_runs
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.stop_daemon()?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        Kill.expect(reference, done)
    }

    fn at_once(&self) -> Option<String> {
        Kill.at_once()
    }
}

impl Act for Start {
    fn makes_sense(&self, now: &Reference) -> bool {
        !now.daemon_runs
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.start_daemon()?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        reference.daemon_runs = true;
        for (place, holder) in std::mem::take(&mut reference.released) {
            reference.manual.entry(place).or_insert(holder);
        }
        right(done, reference.read_files(true))
    }
}

impl Act for Off {
    fn makes_sense(&self, _: &Reference) -> bool {
        true
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.off()?;
        Ok(Ok(()))
    }

    fn expect(&self, reference: &mut Reference, _: &Done) -> Result<(), String> {
        reference.daemon_runs = false;
        reference.in_force.clear();
        reference.hands.clear();
        reference.configured.clear();
        reference.broken.clear();
        reference.forget_marks(true);
        let manual = std::mem::take(&mut reference.manual);
        let places = &reference.places;
        reference.released.extend(manual.into_iter().filter(|(place, _)| places.contains_key(place)));
        Ok(())
    }
}
