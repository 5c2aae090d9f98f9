//! Policies that are kept by `steer policy`: by the daemon's API, or in files while there is no daemon.

use proptest::{
    prelude::{BoxedStrategy, Strategy, prop_oneof},
    sample::select,
};

use super::{Act, Done, Operation, STORED, policy, right};
use crate::model::{
    reference::{Files, Reference, Space, policy::Policy},
    world::World,
};

/// `steer policy set`.
#[derive(Clone, Debug)]
pub(crate) struct Set(pub(crate) Policy);

/// `steer policy remove`.
#[derive(Clone, Debug)]
pub(crate) struct Unset(pub(crate) &'static str);

pub(super) fn any() -> BoxedStrategy<Operation> {
    let name = || select(&[STORED[0], STORED[1], "p0"][..]);
    prop_oneof![
        3 => name().prop_flat_map(policy).prop_map(|policy| Set(policy).into()),
        1 => name().prop_map(|name| Unset(name).into()),
    ]
    .boxed()
}

/// What is in the file is changed there only.
fn is_in_file(now: &Reference, name: &str) -> bool {
    now.files.main.iter().any(|policy| policy.name == name)
}

/// A change that somebody asked for, so it may leave nothing.
fn changed(reference: &mut Reference, files: Files, done: &Done, should: bool) -> Result<(), String> {
    right(done, should)?;
    if should {
        reference.files = files;
        if reference.daemon_runs {
            reference.read_files(true);
        }
    }
    Ok(())
}

impl Act for Set {
    fn makes_sense(&self, now: &Reference) -> bool {
        !self.0.patterns.is_empty() && (STORED.contains(&self.0.name) || is_in_file(now, self.0.name))
    }

    fn files(&self, now: &Reference) -> Option<Files> {
        let mut files = now.files.clone();
        // What is not named stays.
        let before = files.stored.get(self.0.name).map(|policy| policy.spec);
        let spec = before.map_or(Some(self.0.spec), |before| self.0.spec.over(&before))?;
        files.stored.insert(self.0.name, Policy { spec, ..self.0.clone() });
        Some(files)
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let Policy { name, spec, patterns } = &self.0;
        let mut arguments = ["policy", "set", name, "--config"].map(str::to_owned).to_vec();
        arguments.push(world.bed.config_file().display().to_string());
        arguments.extend(spec.options());
        arguments.extend(patterns.iter().flat_map(|pattern| ["--cgroup".to_owned(), world.path(pattern)]));
        world.steer(Space::Here, &arguments)
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let files = self.files(reference);
        let is_valid = files.as_ref().is_some_and(|files| files.policies().is_some());
        let should = !is_in_file(reference, self.0.name) && is_valid;
        changed(reference, files.unwrap_or_else(|| reference.files.clone()), done, should)
    }
}

impl Act for Unset {
    fn makes_sense(&self, _: &Reference) -> bool {
        true
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let config = world.bed.config_file().display().to_string();
        world.steer(Space::Here, &["policy", "remove", self.0, "--config", &config].map(str::to_owned))
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let mut files = reference.files.clone();
        let should = files.stored.remove(self.0).is_some();
        changed(reference, files, done, should)
    }
}
