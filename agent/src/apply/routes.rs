//! Rules, routes, and what passes on other links than the uplink, as the policies of a network namespace need them.
//!
//! A policy with `local` or `except` marks its sockets: rules lead the mark to a table with the uplink's routes and the exceptions.
//! A strict policy that binds its sockets needs one rule for IPv6: see [`crate::host::route`].
//!
//! **Invariant:** only this module says which rules and routes there should be. All of it is computed from the records in the
//! kernel, so any process can do it again. Without the rule of a mark, the programs stop the packets that have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
};

use steer_common::{Kind, Owner, policy_flags};

use super::resolve::Namespace;
use crate::{
    host::{
        cgroup::Hierarchy,
        netns,
        route::{self, Changes, Failed, Instance, Marked, Plan, State, Step, Wanted},
    },
    kernel::{self, Datapath, Error, Lock, Pass, Passes, Pins, Policy, PolicyEntry, Remaining},
    model::{fingerprint::fingerprint, mark::MarkMask, spec::By},
};

/// How often routes are planned when the kernel does not take one: its address or link may have gone since the reading.
const TRIES: usize = 5;
/// How many of these have to agree before a route is reported.
const AGREEING: usize = 4;

/// What was written last, by network namespace. It tells what others have removed.
#[derive(Debug, Default)]
pub struct Written(BTreeMap<u64, Plan>);

impl Written {
    /// Whether there are rules that only connections need. The kernel does not report their end.
    pub fn has_leftovers(&self) -> bool {
        self.0.values().any(|plan| !plan.leftover.is_empty())
    }
}

/// What happens to rules that no policy needs any more, but connections that end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// They stay until these connections have ended. Somebody has to look again.
    Stay,
    /// They go: whoever removes the policy releases its traffic.
    Go,
}

/// Which steer has these pins.
fn instance(pins: &Pins) -> Instance {
    let hash = fingerprint(pins.name().as_os_str().as_bytes()).to_ne_bytes();
    let (words, _) = hash.as_chunks::<2>();
    Instance::new(words.iter().map(|word| u16::from_ne_bytes(*word)).fold(0, |folded, word| folded ^ word))
}

/// Runs something in a network namespace.
fn run<T: Send>(
    namespace: Namespace<'_>,
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, Error> {
    namespace.run(work).flatten().map_err(|source| Error::Route { action, source })
}

fn read(namespace: Namespace<'_>) -> Result<State, Error> {
    run(namespace, "read rules and routes", State::read)
}

/// The numbers of marks that rules in the namespace select. Reads nothing if none of the policies needs a mark.
pub(super) fn taken(policies: &[Policy], namespace: Namespace<'_>) -> Result<BTreeSet<u8>, Error> {
    if policies.iter().all(|policy| policy.record.flags & policy_flags::ROUTE == 0) {
        return Ok(BTreeSet::new());
    }
    Ok(read(namespace)?.taken(namespace.marks))
}

/// What rules and routes of a namespace lack, and what of others is in their way.
#[derive(Debug, Default)]
pub struct Difference {
    /// Whether a policy needs rules and routes.
    pub is_needed: bool,
    /// What would have to be written.
    pub changes: BTreeSet<String>,
    /// What would have to be removed.
    pub removals: BTreeSet<String>,
    /// The policies for which the programs let other packets pass than they should.
    pub passes: BTreeSet<String>,
    /// Rules of others in front of those for marks.
    pub in_front: Vec<String>,
    /// Rules of others that use bits of steer's marks.
    pub clashing: Vec<String>,
    /// The bits for marks. Absent if no policy has a mark.
    pub marks: Option<MarkMask>,
    /// Bits for marks that no other program uses.
    pub free_marks: Option<MarkMask>,
}

/// Compares the rules and routes of a namespace with what its policies need.
pub fn compare(datapath: &Datapath, namespace: Namespace<'_>) -> Result<Difference, Error> {
    let (policies, namespace) = policies_of(datapath, namespace)?;
    let state = read(namespace)?;
    let plan = plan_of(&policies, datapath.pins(), namespace, &state)?;
    let plan = with_leftovers(plan, namespace, &state)?;
    let passes = datapath.passes()?;
    let none = Passes::new();
    let differs =
        |entry: &PolicyEntry| wanted_passes(entry, &plan, namespace) != *passes.get(&entry.slot).unwrap_or(&none);
    let (removals, changes): (Vec<_>, Vec<_>) = route::steps(&plan, &state).into_iter().partition(Step::is_removal);
    let texts = |steps: Vec<Step>| steps.iter().map(ToString::to_string).collect();
    let has_marks = policies.iter().any(|entry| entry.record.flags & policy_flags::ROUTE != 0);
    Ok(Difference {
        is_needed: !plan.is_empty(),
        changes: texts(changes),
        removals: texts(removals),
        passes: policies.iter().filter(|entry| reaches(entry) && differs(entry)).map(PolicyEntry::name).collect(),
        clashing: if has_marks { state.clashing(namespace.marks) } else { Vec::new() },
        marks: has_marks.then_some(namespace.marks),
        free_marks: state.free_mask(),
        in_front: plan.in_front,
    })
}

/// The policies that steer in a namespace, with the bits of their marks.
fn policies_of<'a>(datapath: &Datapath, namespace: Namespace<'a>) -> Result<(Vec<PolicyEntry>, Namespace<'a>), Error> {
    let is_here =
        |entry: &PolicyEntry| entry.record.kind == Kind::Steer as u32 && entry.record.netns_cookie == namespace.cookie;
    let policies: Vec<PolicyEntry> = datapath.policies()?.into_iter().filter(is_here).collect();
    let marks = mask_in_use(&policies).unwrap_or(namespace.marks);
    Ok((policies, Namespace { marks, ..namespace }))
}

fn plan_of(policies: &[PolicyEntry], pins: &Pins, namespace: Namespace<'_>, state: &State) -> Result<Plan, Error> {
    let wanted = wanted(policies, instance(pins), namespace);
    route::plan(&wanted, state)
        .map_err(|error| Error::Route { action: "plan rules and routes", source: io::Error::other(error) })
}

fn with_leftovers(plan: Plan, namespace: Namespace<'_>, state: &State) -> Result<Plan, Error> {
    run(namespace, "list the connections that need a rule", || plan.with_leftovers(state))
}

/// Makes the rules and routes of a namespace, and what passes on other links, agree with its policies.
pub fn follow(
    datapath: &mut Datapath,
    lock: &Lock,
    namespace: Namespace<'_>,
    written: &mut Written,
) -> Result<(), Error> {
    let (policies, namespace) = policies_of(datapath, namespace)?;
    let mut earlier: Option<Plan> = None;
    let mut failed: Option<Vec<Failed>> = None;
    let mut agreeing = 0;
    for _ in 0..TRIES {
        let state = read(namespace)?;
        let plan = plan_of(&policies, datapath.pins(), namespace, &state)?;
        set_passes(datapath, lock, &policies, &plan, namespace)?;
        let plan = with_leftovers(plan, namespace, &state)?;
        if namespace.inside.is_none() && !policies.is_empty() {
            datapath.set_own(lock, namespace.cookie, &state.own_by_link().collect())?;
        }
        let before = written.0.get(&namespace.cookie);
        let changes = run(namespace, "write rules and routes", || route::write(&plan, &state, before))?;
        report(&changes, &plan, before);
        written.0.insert(namespace.cookie, plan.clone());
        if changes.failed.is_empty() {
            return Ok(());
        }
        if earlier.is_some_and(|earlier| earlier != plan) {
            (failed, agreeing) = (None, 0);
        }
        (earlier, agreeing) = (Some(plan), agreeing + 1);
        // What fails in each try since the plan has changed.
        let again = |known: &Failed| changes.failed.iter().any(|failed| failed.what == known.what);
        failed = Some(match failed {
            None => changes.failed,
            Some(known) => known.into_iter().filter(again).collect(),
        });
    }
    // What changes meanwhile is reported by the kernel, and then followed.
    let failed = failed.filter(|_| agreeing >= AGREEING);
    for failed in failed.into_iter().flatten() {
        log::warn!("a route was not written, so its destinations are not reached: {failed}");
    }
    Ok(())
}

/// Removes the rules and routes of policies that are gone, from the network namespace of the calling thread. Returns whether some stay
/// for connections. With a policy left, they stay in any case.
pub fn release(datapath: &Datapath, leftovers: Leftovers) -> Result<bool, Error> {
    let staying = Staying::read(datapath)?;
    staying.release(leftovers).map_err(|source| Error::Route { action: "remove rules and routes", source })
}

/// The policies of other network namespaces than that of the calling thread: cookies of namespaces, and slots.
#[derive(Debug, Default)]
pub struct Elsewhere(BTreeSet<(u64, u32)>);

impl Elsewhere {
    /// Reads them, before some are freed.
    pub fn read(datapath: &Datapath) -> Result<Self, Error> {
        let own = kernel::netns_cookie()?;
        let policies = datapath.policies()?.into_iter().map(|entry| (entry.record.netns_cookie, entry.slot));
        Ok(Self(policies.filter(|(cookie, _)| *cookie != own && *cookie != 0).collect()))
    }

    /// Removes the rules and routes of those that are gone by now, also what connections need: nobody would look again. A namespace
    /// without a process cannot be found.
    pub fn release(&self, datapath: &Datapath) -> Result<(), Error> {
        let gone: BTreeSet<u64> = self.0.difference(&Self::read(datapath)?.0).map(|(cookie, _)| *cookie).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let staying = Staying::read(datapath)?;
        let failed = |source| Error::Route { action: "remove rules and routes of other network namespaces", source };
        for netns in netns::others().map_err(failed)? {
            let is_gone = || kernel::netns_cookie().is_ok_and(|cookie| gone.contains(&cookie));
            let release = || is_gone().then(|| staying.release(Leftovers::Go));
            enter(&netns, || release().transpose()).map_err(failed)?;
        }
        Ok(())
    }
}

/// The policies that keep their rules and routes.
struct Staying {
    instance: Instance,
    policies: Vec<PolicyEntry>,
}

impl Staying {
    fn read(datapath: &Datapath) -> Result<Self, Error> {
        Ok(Self { instance: instance(datapath.pins()), policies: datapath.policies()? })
    }

    /// Removes those of all others, from the network namespace of the calling thread.
    fn release(&self, leftovers: Leftovers) -> io::Result<bool> {
        let cookie = kernel::netns_cookie().map_err(io::Error::other)?;
        let (mut numbers, mut bound) = (BTreeSet::new(), BTreeSet::new());
        let mut stay = leftovers == Leftovers::Stay;
        for entry in self.policies.iter().filter(|entry| entry.record.netns_cookie == cookie) {
            stay = true;
            numbers.extend(kernel::numbers(MarkMask::new(entry.record.mark_mask), &entry.record));
            bound.extend(bound_uplinks(entry));
        }
        route::keep(self.instance, &numbers, &bound, stay)
    }
}

/// Removes the attachments of removed cgroups, with the rules and routes of policies that nothing needs any more. Returns what remains,
/// and whether rules stay for connections.
pub fn clean_up(
    datapath: &mut Datapath,
    lock: &Lock,
    hierarchy: &Hierarchy,
    leftovers: Leftovers,
) -> Result<(Remaining, bool), Error> {
    let elsewhere = Elsewhere::read(datapath)?;
    let remaining = datapath.clean_up(lock, hierarchy)?;
    let released = release(datapath, leftovers);
    if let Err(error) = elsewhere.release(datapath) {
        log::warn!("{error}");
    }
    let stay = released.unwrap_or_else(|error| {
        log::warn!("{error}");
        true
    });
    Ok((remaining, stay))
}

/// Cleans up after a change without a daemon; see [`kernel::remove_unused_pins`]. Returns whether rules stay for connections; then the pins stay, too,
/// for the lock.
pub fn tidy(pins: &Pins, lock: Lock, hierarchy: &Hierarchy, leftovers: Leftovers) -> Result<bool, Error> {
    if let Some(mut datapath) = Datapath::open(pins)?
        && let (_, true) = clean_up(&mut datapath, &lock, hierarchy, leftovers)?
    {
        return Ok(true);
    }
    kernel::remove_unused_pins(pins, lock)?;
    Ok(false)
}

/// Removes all rules and routes of these pins from the calling thread's network namespace, and from `others`. Returns how many, and what
/// went wrong.
pub fn remove(pins: &Pins, others: io::Result<Vec<File>>) -> (usize, Vec<String>) {
    let instance = instance(pins);
    let (mut removed, mut errors) = (0, Vec::new());
    let mut take_in = |result: io::Result<Changes>| match result {
        Ok(changes) => removed += changes.removed,
        Err(error) => errors.push(format!("remove rules and routes: {error}")),
    };
    take_in(route::remove(instance));
    match others {
        Ok(others) => others
            .into_iter()
            .filter_map(|netns| enter(&netns, || route::remove(instance)).transpose())
            .for_each(take_in),
        Err(error) => take_in(Err(error)),
    }
    (removed, errors)
}

/// Runs something in another network namespace. `None`: this process may not enter it, so it has written nothing there.
fn enter<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<Option<T>> {
    match netns::inside(netns.as_fd(), work) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        done => done.flatten().map(Some),
    }
}

fn report(changes: &Changes, plan: &Plan, before: Option<&Plan>) {
    if !changes.restored.is_empty() {
        log::warn!(
            "another program removed {} rules and routes of steer; they are back: {}",
            changes.restored.len(),
            changes.restored.join(", ")
        );
    }
    if let Some(lacks) = plan.lacks.filter(|_| before.is_none()) {
        log::warn!(
            "this kernel has no policy rules for {lacks}: the last acknowledgement of a connection that a steered program closes first may \
             leave by another link"
        );
    }
    for rule in plan.in_front.iter().filter(|rule| before.is_none_or(|before| !before.in_front.contains(rule))) {
        log::warn!(
            "the rule {rule} comes before those of steer, so it may take marked packets, which the programs then stop"
        );
    }
}

fn set_passes(
    datapath: &mut Datapath,
    lock: &Lock,
    policies: &[PolicyEntry],
    plan: &Plan,
    namespace: Namespace<'_>,
) -> Result<(), Error> {
    if !policies.iter().any(reaches) {
        return Ok(());
    }
    let mut present = datapath.passes()?;
    for entry in policies.iter().filter(|entry| reaches(entry)) {
        let wanted = wanted_passes(entry, plan, namespace);
        datapath.set_passes(lock, entry.slot, &present.remove(&entry.slot).unwrap_or_default(), &wanted)?;
    }
    Ok(())
}

/// Whether a policy lets packets pass on other links than its uplink.
fn reaches(entry: &PolicyEntry) -> bool {
    entry.record.flags & policy_flags::PASSES != 0
}

fn wanted_passes(entry: &PolicyEntry, plan: &Plan, namespace: Namespace<'_>) -> Passes {
    let planned = numbers(entry, namespace).filter_map(|number| plan.passes.get(&number)).flatten();
    planned.map(|pass| (Pass { ifindex: pass.ifindex, prefix: pass.prefix }, pass.allow)).collect()
}

/// The mask of the policies of the configuration in a network namespace. `None`: none of them has marks, or they have several masks.
pub fn mask_of_configured(datapath: &Datapath, netns_cookie: u64) -> Result<Option<MarkMask>, Error> {
    let mut policies = datapath.policies()?;
    policies.retain(|entry| entry.is_owned_by(Owner::Config) && entry.record.netns_cookie == netns_cookie);
    Ok(mask_in_use(&policies))
}

/// The mask of the policies with marks. `None`: there is none, or the configured mask has changed since some were put in force.
fn mask_in_use(policies: &[PolicyEntry]) -> Option<MarkMask> {
    let marked = policies.iter().filter(|entry| entry.record.flags & policy_flags::ROUTE != 0);
    let masks: BTreeSet<u32> = marked.map(|entry| entry.record.mark_mask).collect();
    if masks.len() == 1 { masks.first().copied().map(MarkMask::new) } else { None }
}

/// The numbers in the marks of a policy, one for each uplink. None if the mask has changed since.
fn numbers(entry: &PolicyEntry, namespace: Namespace<'_>) -> impl Iterator<Item = u8> {
    let is_current = entry.record.mark_mask == namespace.marks.bits();
    kernel::numbers(namespace.marks, &entry.record).filter(move |_| is_current)
}

/// The indexes of the uplinks of a policy that binds its sockets and is strict, of those that are there.
fn bound_uplinks(entry: &PolicyEntry) -> impl Iterator<Item = u32> {
    let flags = entry.record.flags;
    let is_bound = flags & policy_flags::ROUTE == 0 && flags & policy_flags::GUARD != 0;
    entry.uplinks().into_iter().filter(move |_| is_bound).filter_map(|uplink| index(&uplink))
}

/// The index of an uplink, if it is there.
fn index(uplink: &kernel::UplinkOf) -> Option<u32> {
    u32::try_from(uplink.line.ifindex).ok().filter(|ifindex| *ifindex > 0)
}

fn wanted(policies: &[PolicyEntry], instance: Instance, namespace: Namespace<'_>) -> Wanted {
    let has = |entry: &PolicyEntry, flag: u32| entry.record.flags & flag != 0;
    let mut marked = Vec::new();
    for entry in policies.iter().filter(|entry| has(entry, policy_flags::ROUTE)) {
        let numbers: Vec<u8> = numbers(entry, namespace).collect();
        if numbers.is_empty() {
            log::warn!(
                "policy {}: `mark_mask` has changed, and its mark {:#x} is of the old one; its packets are stopped until it is attached \
                 again",
                entry.name(),
                entry.record.mark
            );
            continue;
        }
        let exceptions = entry.exceptions.iter().map(|exception| route::Exception {
            to: exception.to,
            by: match &exception.by {
                By::Interface(name) => route::By::Link(namespace.links.resolve(name).map(i32::cast_unsigned)),
                By::Main => route::By::Main,
                By::Refuse => route::By::Refuse,
            },
        });
        let lan = has(entry, policy_flags::LOCAL_LAN);
        let discovery = has(entry, policy_flags::LOCAL_DISCOVERY);
        let exceptions: Vec<_> = exceptions.collect();
        // A policy that is closed permanently has a mark, and no uplink.
        let uplinks = entry.uplinks();
        // The marks follow each other as the members do, of which a group may lack some.
        let uplinks = (0..).map(|member| uplinks.iter().find(|uplink| uplink.member == member));
        marked.extend(numbers.into_iter().zip(uplinks).map(|(number, uplink)| Marked {
            number,
            uplink: uplink.and_then(index),
            local: route::Local { lan, discovery },
            resolvers: uplink.map(|uplink| uplink.resolvers.clone()).unwrap_or_default(),
            exceptions: exceptions.clone(),
        }));
    }
    let bound: BTreeSet<u32> = policies.iter().flat_map(bound_uplinks).collect();
    Wanted { mask: namespace.marks, instance, marked, bound: bound.into_iter().collect() }
}
