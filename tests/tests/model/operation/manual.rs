//! `steer attach` and `steer detach`.

use proptest::{
    prelude::{BoxedStrategy, Strategy, prop_oneof},
    sample::select,
};

use super::{AUTO, Act, By, Done, GROUPS, Operation, STORED, WRITTEN, node, right, space, spec};
use crate::model::{
    reference::{Holder, Reference, Space, policy::Spec},
    world::World,
};

/// `steer attach`, in a network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Attach {
    pub(crate) place: &'static str,
    pub(crate) by: By,
    pub(crate) space: Space,
}

/// `steer detach`.
#[derive(Clone, Debug)]
pub(crate) struct Detach(pub(crate) &'static str);

pub(super) fn any() -> BoxedStrategy<Operation> {
    prop_oneof![
        5 => (node(), by(), space()).prop_map(|(place, by, space)| Attach { place, by, space }.into()),
        3 => node().prop_map(|place| Detach(place).into()),
    ]
    .boxed()
}

/// By what a command steers.
pub(super) fn by() -> impl Strategy<Value = By> {
    let names: Vec<_> = WRITTEN.into_iter().chain(STORED).collect();
    // A command finds groups in the configuration of the system only, and not in that of a test. A list needs none.
    let listed = |spec: Spec| match spec.uplink {
        AUTO => Spec { uplink: "a2+a0", ..spec },
        uplink if uplink == GROUPS[0] => Spec { uplink: "a1+a2", ..spec },
        _ => spec,
    };
    prop_oneof![5 => spec().prop_map(move |spec| By::Interface(listed(spec))), 2 => select(names).prop_map(By::Policy)]
}

impl By {
    /// The options that say so.
    pub(super) fn options(&self) -> Vec<String> {
        match self {
            Self::Interface(spec) => spec.options(),
            Self::Policy(name) => ["--policy", name].map(str::to_owned).to_vec(),
        }
    }

    /// What a command makes of it in a network namespace; nothing if it must be refused.
    pub(super) fn holder(&self, now: &Reference, space: Space) -> Option<Holder> {
        match *self {
            Self::Interface(spec) => {
                let lines = now.lines_of(space, &spec, Reference::group_of(&spec, &[]));
                (spec.exempts() || lines.is_any()).then_some(Holder::Own { spec, space, lines })
            }
            Self::Policy(name) => Some(Holder::Named { name, last: now.policy(name)?.policy.spec }),
        }
    }
}

/// Whether the configuration names a cgroup by its path.
fn is_named(now: &Reference, place: &str) -> bool {
    let is_in_it = |name: &&str| now.policy(name).is_some_and(|it| it.policy.names(place, true));
    now.configured.get(place).is_some_and(is_in_it)
}

impl Act for Attach {
    fn makes_sense(&self, now: &Reference) -> bool {
        // Whether the same policy has it by a glob, or only holds it from outside, is not said.
        let is_same = now.configured.get(self.place).is_some_and(|name| self.by == By::Policy(name));
        now.places.contains_key(self.place) && (!is_same || is_named(now, self.place))
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        let mut arguments = vec!["attach".to_owned(), world.path(self.place)];
        arguments.extend(self.by.options());
        world.steer(self.space, &arguments)
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        let holder = self.by.holder(reference, self.space);
        match reference.configured.get(self.place) {
            // The same once more stays the configuration's.
            Some(name) if self.by == By::Policy(name) => {
                reference.follow(self.space);
                reference.settle();
                return right(done, true);
            }
            Some(_) if is_named(reference, self.place) => return right(done, false),
            // What names it by a glob may hold it from outside.
            Some(_) if done.is_err() => return Ok(()),
            _ => right(done, holder.is_some())?,
        }
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

impl Act for Detach {
    fn makes_sense(&self, now: &Reference) -> bool {
        now.manual.contains_key(self.0) || now.daemon_runs && is_named(now, self.0)
    }

    fn carry_out(&self, _: &Reference, world: &mut World) -> anyhow::Result<Done> {
        world.steer(Space::Here, &["detach".to_owned(), world.path(self.0)])
    }

    fn expect(&self, reference: &mut Reference, done: &Done) -> Result<(), String> {
        // What the configuration names would be attached again.
        right(done, reference.manual.contains_key(self.0))?;
        reference.manual.remove(self.0);
        reference.released.remove(self.0);
        reference.settle();
        Ok(())
    }
}
