//! The reference: what there is, what was asked for, and so what is right.
//!
//! **Invariant:** it knows nothing of how steer does anything: no slots, programs, pins or records. Where the product does something
//! else than is right, [`super::known`] says so, not this.

mod answer;
mod files;
pub(crate) mod groups;
pub(crate) mod policy;
mod query;
pub(crate) mod reach;
mod routed;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use steer_lab::Family;

pub(crate) use answer::{Answer, Asked, Held};
pub(crate) use files::Files;
use groups::{Hand, Lack, Lines};
use policy::{Level, Policy, Spec};
pub(crate) use routed::{Followed, Mark};

/// A network namespace: the daemon's, or the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    Here,
    There,
}

pub(crate) const SPACES: [Space; 2] = [Space::Here, Space::There];

/// A link, which is another one when it has been made again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) space: Space,
    /// The lower it is, the more its default route is preferred.
    pub(crate) number: u8,
    generation: u32,
}

impl Line {
    const LOOPBACK: u8 = u8::MAX - 1;

    /// The loopback interface, which nothing leaves by.
    pub(crate) const fn loopback(space: Space) -> Self {
        Self { space, number: Self::LOOPBACK, generation: 0 }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Self::LOOPBACK => write!(formatter, "loopback {:?}", self.space),
            number => write!(formatter, "link {number} {:?}", self.space),
        }
    }
}

/// What steers a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A policy of its own, made by a command or a hook, in this network namespace.
    Own { spec: Spec, space: Space, lines: Lines },
    /// A policy of the configuration, asked for by name; while there is none of that name it is closed, as it was last.
    Named { name: &'static str, last: Spec },
}

/// What a socket that was kept may be bound to: more than one thing where a policy may have bound it, or not yet.
pub(crate) type Bindings = BTreeSet<Binding>;

/// What a socket is bound to, or marked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Binding {
    None,
    Line(Line),
    Mark(Mark),
}

/// A connection that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) bindings: Bindings,
    /// Where its packets have left so far; nothing once some were stopped, for TCP sends again later and later.
    pub(crate) by: Option<Line>,
}

/// A policy that the daemon has carried out, with the link that it goes by.
#[derive(Clone, Debug)]
pub(crate) struct InForce {
    pub(crate) policy: Policy,
    pub(crate) lines: Lines,
}

/// A policy that is `Closed` binds to no link; no other socket is bound to this one.
pub(crate) const CLOSED: Line = Line { space: Space::Here, number: u8::MAX, generation: 0 };

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) files: Files,
    pub(crate) in_force: Vec<InForce>,
    /// The cgroups that the configuration steers, and by which policy.
    pub(crate) configured: BTreeMap<String, &'static str>,
    /// The cgroups that something else steers.
    pub(crate) manual: BTreeMap<String, Holder>,
    /// What `off` has released.
    pub(crate) released: BTreeMap<String, Holder>,
    /// The cgroups, and the network namespaces in which processes of them live.
    pub(crate) places: BTreeMap<String, BTreeSet<Space>>,
    /// Sockets that processes kept, by the cgroup they were made in.
    pub(crate) kept: BTreeMap<(String, Space), Bindings>,
    /// Connections that processes accepted, likewise.
    pub(crate) accepted: BTreeMap<(String, Space), Accepted>,
    /// The cgroup around one that is gone.
    pub(crate) around_removed: BTreeMap<String, String>,
    /// How many removals there were.
    pub(crate) removals: usize,
    /// The links by their numbers, with their names.
    pub(crate) lines: BTreeMap<(Space, u8), (Line, String)>,
    /// The links that have a further network.
    pub(crate) further: BTreeMap<Space, Line>,
    /// What links lack.
    pub(crate) lacking: BTreeMap<Line, BTreeSet<Lack>>,
    /// The links, by their numbers, and the families, for which the server's answers are lost.
    pub(crate) holes: BTreeSet<(Space, u8, Family)>,
    /// What an administrator has decided about a member of a group; nothing if that may be forgotten.
    pub(crate) hands: BTreeMap<(&'static str, &'static str), Option<Hand>>,
    /// What the routes of policies were made of.
    followed: BTreeMap<Space, Followed>,
    /// Where somebody has removed rules or routes of steer, and nobody has put them back.
    pub(crate) broken: BTreeSet<Space>,
    generation: u32,
    pub(crate) daemon_runs: bool,
    /// The known fault that is being shown, by its number.
    pub(crate) shown: Option<usize>,
}

/// The number of links of a namespace.
pub(crate) const LINES: u8 = 3;
/// A cgroup that is gone is known by this name and a number.
pub(crate) const REMOVED: &str = "removed";
/// The last part of the path of a cgroup that `steer exec` made.
pub(crate) const SCOPE: &str = "steer-exec";

impl Reference {
    /// A daemon with these files, three links in each namespace, and no cgroup.
    pub(crate) fn new(files: Files) -> Self {
        let mut reference = Self {
            files,
            in_force: Vec::new(),
            configured: BTreeMap::new(),
            manual: BTreeMap::new(),
            released: BTreeMap::new(),
            places: BTreeMap::new(),
            kept: BTreeMap::new(),
            accepted: BTreeMap::new(),
            around_removed: BTreeMap::new(),
            removals: 0,
            lines: BTreeMap::new(),
            further: BTreeMap::new(),
            lacking: BTreeMap::new(),
            holes: BTreeSet::new(),
            hands: BTreeMap::new(),
            followed: SPACES.map(|space| (space, Followed::default())).into(),
            broken: BTreeSet::new(),
            generation: 0,
            daemon_runs: true,
            shown: None,
        };
        for space in SPACES {
            for number in 0..LINES {
                reference.add_line(space, number);
            }
        }
        reference.read_files(false);
        reference
    }

    /// A new link, under its first name.
    pub(crate) fn add_line(&mut self, space: Space, number: u8) {
        self.generation += 1;
        let line = Line { space, number, generation: self.generation };
        self.lines.insert((space, number), (line, format!("a{number}")));
    }

    /// The link that has a name.
    pub(crate) fn line_called(&self, space: Space, name: &str) -> Option<Line> {
        let called = |((of, _), (line, known)): (&(Space, u8), &(Line, String))| {
            (*of == space && known == name).then_some(*line)
        };
        self.lines.iter().find_map(called)
    }

    pub(crate) fn exists(&self, line: Line) -> bool {
        self.lines.get(&(line.space, line.number)).is_some_and(|(known, _)| *known == line)
    }

    /// The link of the best default route.
    pub(crate) fn default_line(&self, space: Space) -> Option<Line> {
        self.lines.iter().find(|((of, _), _)| *of == space).map(|(_, (line, _))| *line)
    }

    pub(crate) fn policy(&self, name: &str) -> Option<&InForce> {
        self.in_force.iter().find(|in_force| in_force.policy.name == name)
    }

    /// The daemon reads the files. False if they are no configuration, or would release everything and nobody asked for that.
    pub(crate) fn read_files(&mut self, may_be_empty: bool) -> bool {
        let Some(policies) = self.files.policies() else { return false };
        if self.files.main.is_empty() && !self.in_force.is_empty() && !may_be_empty {
            return false;
        }
        let before: Vec<_> = self.in_force.iter().map(|in_force| in_force.policy.spec.uplink).collect();
        let lines = |policy: &Policy| {
            self.lines_of(Space::Here, &policy.spec, Self::group_of(&policy.spec, &self.files.groups))
        };
        self.in_force = policies.into_iter().map(|policy| InForce { lines: lines(&policy), policy }).collect();
        self.keep_hands(&before);
        let specs: BTreeMap<_, _> = self.in_force.iter().map(|it| (it.policy.name, it.policy.spec)).collect();
        for holder in self.manual.values_mut() {
            if let Holder::Named { name, last } = holder {
                *last = specs.get(name).copied().unwrap_or(*last);
            }
        }
        self.settle();
        true
    }

    /// What the daemon, or whatever follows links, does sooner or later.
    pub(crate) fn settle(&mut self) {
        if self.daemon_runs {
            let policies: Vec<_> = self.in_force.iter().map(|in_force| in_force.policy.clone()).collect();
            let free = self.places.keys().filter(|place| !self.manual.contains_key(*place));
            let named = free.filter_map(|place| Some((place.clone(), policy::naming(&policies, place)?.name)));
            self.configured = named.collect();
        }
        for space in SPACES {
            if self.is_followed(space) {
                self.follow(space);
            }
        }
        self.bind_kept();
    }

    /// By the daemon: its own namespace, and one that a policy belongs to; or by whoever looks after a running `steer exec`.
    fn is_followed(&self, space: Space) -> bool {
        let in_it = |(place, holder): (&String, &Holder)| {
            !place.starts_with(REMOVED) && matches!(holder, Holder::Own { space: of, .. } if *of == space)
        };
        let by_scope = self.places.iter().any(|(place, spaces)| place.ends_with(SCOPE) && spaces.contains(&space));
        by_scope || self.daemon_runs && (space == Space::Here || self.manual.iter().any(in_it))
    }

    /// The policies of a namespace get the links that have the names of their uplinks now. Every attachment does that.
    pub(crate) fn follow(&mut self, space: Space) {
        self.followed.insert(space, self.links_now(space));
        self.broken.remove(&space);
        let now = self.clone();
        if space == Space::Here {
            for in_force in &mut self.in_force {
                in_force.lines = now.lines_of(space, &in_force.policy.spec, in_force.lines.group.clone());
            }
        }
        for holder in self.manual.values_mut() {
            match holder {
                Holder::Own { spec, space: of, lines } if *of == space => {
                    *lines = now.lines_of(space, spec, lines.group.clone());
                }
                _ => {}
            }
        }
    }

    /// Marks of policies that do not hold their sockets any more may mean something else from now on.
    pub(crate) fn forget_marks(&mut self, all: bool) {
        let mut of = self.kept.iter().collect::<Vec<_>>();
        of.extend(self.accepted.iter().map(|(key, accepted)| (key, &accepted.bindings)));
        let stale: BTreeSet<(String, Space)> = of
            .into_iter()
            .filter(|((place, space), bindings)| {
                let mark = self.mark(place, *space).filter(|_| !all).map(Binding::Mark);
                bindings.iter().any(|binding| matches!(binding, Binding::Mark(_)) && Some(binding) != mark.as_ref())
            })
            .map(|(key, _)| key.clone())
            .collect();
        let forget = |bindings: &Bindings| -> Bindings {
            let known = bindings.iter().filter(|binding| !matches!(binding, Binding::Mark(_))).cloned();
            known.chain([Binding::Mark(Mark::STALE)]).collect()
        };
        for key in stale {
            self.kept.entry(key.clone()).and_modify(|bindings| *bindings = forget(bindings));
            self.accepted.entry(key).and_modify(|accepted| accepted.bindings = forget(&accepted.bindings));
        }
    }

    /// Kept sockets may have been bound by now.
    fn bind_kept(&mut self) {
        self.forget_marks(false);
        let keys: Vec<_> = self.kept.keys().cloned().collect();
        for key in keys {
            let bound = self.binds_kept(&key.0, key.1);
            self.kept.entry(key).or_default().extend(bound);
        }
        let keys: Vec<_> = self.accepted.keys().cloned().collect();
        for (place, space) in keys {
            let must = self.accepted_by(&place, space);
            let bound = self.binds_kept(&place, space);
            if let Some(accepted) = self.accepted.get_mut(&(place, space)) {
                accepted.by = accepted.by.filter(|by| Some(*by) == must);
                accepted.bindings.extend(bound);
            }
        }
    }

    /// A cgroup is there, with a process in each of these namespaces.
    pub(crate) fn add_place(&mut self, place: &str, spaces: &[Space]) {
        self.places.insert(place.to_owned(), spaces.iter().copied().collect());
    }

    /// A command or a hook steers a cgroup.
    pub(crate) fn steer_manually(&mut self, place: &str, holder: Holder) {
        if !self.daemon_runs {
            // Nobody attaches what a glob names inside, and so far the attachment around held.
            let below = format!("{place}/");
            let held =
                self.configured.keys().filter(|inner| inner.starts_with(&below) && self.is_held_from_outside(inner));
            for inner in held.cloned().collect::<Vec<_>>() {
                self.configured.remove(&inner);
            }
        }
        self.configured.remove(place);
        self.manual.insert(place.to_owned(), holder);
        self.settle();
    }

    /// Whether a cgroup has no attachment of its own, for only a glob names it and the nearest one around has the same policy.
    fn is_held_from_outside(&self, place: &str) -> bool {
        let Some(name) = self.configured.get(place) else { return false };
        if self.policy(name).is_some_and(|it| it.policy.names(place, true)) {
            return false;
        }
        let mut around = std::iter::successors(Some(outer(place)), |place| (!place.is_empty()).then(|| outer(place)));
        let nearest = around.find(|around| self.manual.contains_key(*around) || self.configured.contains_key(*around));
        nearest.is_some_and(|around| !self.manual.contains_key(around) && self.configured.get(around) == Some(name))
    }

    /// A cgroup is gone. What steers it holds its sockets, as long as there are any.
    pub(crate) fn remove_place(&mut self, place: &str, removed: &str) {
        for around in self.around_removed.values_mut().filter(|around| *around == place) {
            removed.clone_into(around);
        }
        self.around_removed.insert(removed.to_owned(), outer(place).to_owned());
        self.places.remove(place);
        self.released.remove(place);
        if let Some(holder) = self.manual.remove(place) {
            self.manual.insert(removed.to_owned(), holder);
        }
        // It follows its policy by the name, and is closed while there is none.
        if let Some(name) = self.configured.remove(place)
            && let Some(policy) = self.policy(name)
        {
            let last = policy.policy.spec;
            self.manual.insert(removed.to_owned(), Holder::Named { name, last });
        }
        for space in SPACES {
            if let Some(bindings) = self.kept.remove(&(place.to_owned(), space)) {
                self.kept.insert((removed.to_owned(), space), bindings);
            }
            if let Some(accepted) = self.accepted.remove(&(place.to_owned(), space)) {
                self.accepted.insert((removed.to_owned(), space), accepted);
            }
        }
    }

    /// The cgroups at a path and below it, the innermost first.
    pub(crate) fn within(&self, place: &str) -> Vec<String> {
        let below = format!("{place}/");
        let mut found: Vec<_> =
            self.places.keys().filter(|known| *known == place || known.starts_with(&below)).cloned().collect();
        found.reverse();
        found
    }
}

/// The path of the cgroup around one; empty for the outermost.
pub(crate) fn outer(place: &str) -> &str {
    place.rsplit_once('/').map_or("", |(outer, _)| outer)
}
