//! The configuration file is written, and files in `policies.d` are written and removed.

use proptest::{
    option::weighted,
    prelude::{BoxedStrategy, Just, Strategy, any as anything, prop_oneof},
    sample::select,
};

use super::{Act, Done, Operation, STORED, level, policies, policy, reach, right};
use crate::model::{
    reference::{
        Files, Reference, Space,
        policy::{Level, Policy},
        reach::Reach,
    },
    world::World,
};

/// The file is written anew. The daemon sees that by itself if it is `watched`, else `steer reload` asks it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) policies: Vec<Policy>,
    pub(crate) parent: Option<&'static str>,
    pub(crate) held: Option<&'static str>,
    pub(crate) least: Level,
    pub(crate) grants: Reach,
    pub(crate) watched: bool,
}

/// The file is emptied, which is refused, and put back.
#[derive(Clone, Debug)]
pub(crate) struct Empty;

/// A file is written to `policies.d`.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) policy: Policy,
    pub(crate) watched: bool,
}

/// A file is removed from there.
#[derive(Clone, Debug)]
pub(crate) struct Unstore {
    pub(crate) name: &'static str,
    pub(crate) watched: bool,
}

/// `policies.d` is gone for a moment, as one that is mounted late, or a symbolic link to nothing is in its place. Then it is back.
#[derive(Clone, Debug)]
pub(crate) struct Vanish {
    pub(crate) dangling: bool,
}

pub(super) fn any() -> BoxedStrategy<Operation> {
    let write =
        (policies(), weighted(0.3, Just("/e")), weighted(0.2, Just("/a")), level(), grants(), anything::<bool>());
    let stored = || select(&STORED[..]);
    prop_oneof![
        6 => write.prop_map(|(policies, parent, held, least, grants, watched)| {
            Write { policies, parent, held, least, grants, watched }.into()
        }),
        1 => Just(Empty.into()),
        1 => anything::<bool>().prop_map(|dangling| Vanish { dangling }.into()),
        3 => (stored().prop_flat_map(policy), anything::<bool>()).prop_map(|(policy, watched)| Store { policy, watched }.into()),
        2 => (stored(), anything::<bool>()).prop_map(|(name, watched)| Unstore { name, watched }.into()),
    ]
    .boxed()
}

/// What containers may ask for: often something.
fn grants() -> impl Strategy<Value = Reach> {
    prop_oneof![1 => Just(Reach::NONE), 2 => reach()]
}

/// Writes other files. What the daemon does not accept is put back.
pub(super) fn change(now: &Reference, world: &mut World, next: &Files, watched: bool) -> anyhow::Result<Done> {
    let reloads = world.reloads();
    world.write_files(next)?;
    if !now.daemon_runs {
        return Ok(Ok(()));
    }
    let in_force: Vec<_> = now.in_force.iter().map(|in_force| in_force.policy.clone()).collect();
    let is_other = |policies| policies != in_force || next.groups != now.files.groups;
    if watched && next.policies().is_some_and(is_other) {
        world.wait_for_reload(reloads)?;
        return Ok(Ok(()));
    }
    let reload = |world: &World| world.steer(Space::Here, &["reload".to_owned()]);
    let done = reload(world)?;
    if done.is_err() {
        world.write_files(&now.files)?;
        reload(world)?.map_err(anyhow::Error::msg)?;
    }
    Ok(done)
}

/// What is right when files are changed.
pub(super) fn changed(reference: &mut Reference, next: Files, done: &Done) -> Result<(), String> {
    let before = std::mem::replace(&mut reference.files, next);
    if !reference.daemon_runs {
        return Ok(());
    }
    let accepted = reference.read_files(false);
    if !accepted {
        reference.files = before;
    }
    right(done, accepted)
}

impl Write {
    fn next(&self, now: &Reference) -> Files {
        let Self { policies, parent, held, least, grants, .. } = self;
        Files {
            parent: *parent,
            held: *held,
            least: *least,
            grants: *grants,
            stored: now.files.stored.clone(),
            groups: now.files.groups.clone(),
            ..Files::new(policies.clone())
        }
    }
}

impl Act for Write {
    fn makes_sense(&self, now: &Reference) -> bool {
        // Without a daemon nobody refuses.
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

impl Empty {
    fn next(now: &Reference) -> Files {
        Files { main: Vec::new(), parent: None, held: None, ..now.files.clone() }
    }
}

impl Act for Empty {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.daemon_runs
    }

    fn carry_out(&self, now: &Reference, world: &mut World) -> anyhow::Result<Done> {
        change(now, world, &Self::next(now), false)
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let files = Self::next(reference);
        changed(reference, files, done)
    }
}

impl Store {
    fn next(&self, now: &Reference) -> Files {
        let mut files = now.files.clone();
        files.stored.insert(self.policy.name, self.policy.clone());
        files
    }
}

impl Act for Store {
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

impl Unstore {
    fn next(&self, now: &Reference) -> Files {
        let mut files = now.files.clone();
        files.stored.remove(self.name);
        files
    }
}

impl Act for Unstore {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.files.stored.contains_key(self.name)
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

impl Act for Vanish {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.daemon_runs
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let reload = |world: &World| world.steer(Space::Here, &["reload".to_owned()]);
        let done = world.without_stored(self.dangling, reload)??;
        reload(world)?.map_err(anyhow::Error::msg)?;
        Ok(done)
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        right(done, !self.dangling && reference.files.stored.is_empty())
    }
}
