//! Makes the difference between what the kernel has and a plan.
//!
//! **Invariant:** each step leaves a state in which a packet with the flag is led by its own table, or refused, from the
//! step on that adds the goto until the one that deletes it. The goto has its target before it is added and until it is
//! deleted; a table is filled before its rule is added.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

use nix::errno::Errno;

use super::{
    Instance, Plan,
    entry::{Key, Route},
    netlink::{Connection, Request},
    rule::{Role, Rule},
    state::State,
};

/// One message to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step(Action);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Add(Rule),
    Delete(Rule),
    /// Writes a route, in place of one with the same key.
    Set(Route),
    Remove(Route),
}

/// What [`write()`] did.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// How many rules and routes were written.
    pub written: usize,
    /// How many were removed.
    pub removed: usize,
    /// Rules and routes that were written before, are still wanted, and were no longer there.
    pub restored: Vec<String>,
    /// Routes that the kernel did not take. Their destinations stay closed, or take what is around them in the table.
    pub failed: Vec<Failed>,
}

/// A route that the kernel did not take.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The route.
    pub what: String,
    /// The kernel's answer.
    pub error: Errno,
}

impl fmt::Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "write {}: {}", self.what, self.error.desc())
    }
}

/// Makes what the kernel has equal to the plan. `before` is the plan that was written last, if known, so that the result
/// can say what somebody else removed.
pub fn write(plan: &Plan, state: &State, before: Option<&Plan>) -> io::Result<Changes> {
    let steps = steps(plan, state);
    if steps.is_empty() {
        return Ok(Changes::default());
    }
    let mut changes = Step::carry_out(&steps)?;
    if let Some(before) = before {
        let restored = steps.iter().filter(|step| match &step.0 {
            Action::Add(rule) => before.rules.contains(rule),
            Action::Set(route) => {
                before.routes.contains(route) && !state.routes.iter().any(|had| had.key() == route.key())
            }
            Action::Delete(_) | Action::Remove(_) => false,
        });
        changes.restored = restored.map(ToString::to_string).collect();
    }
    Ok(changes)
}

/// Removes everything of an instance. Needs to know nothing of what was written.
pub fn remove(instance: Instance) -> io::Result<Changes> {
    write(&Plan::none(instance), &State::read()?, None)
}

/// Removes everything of an instance but the tables of these numbers, and of these bound uplinks; with `leftovers`, but those that
/// connections need, too. Returns whether there are any.
pub fn keep(instance: Instance, numbers: &BTreeSet<u8>, bound: &BTreeSet<u32>, leftovers: bool) -> io::Result<bool> {
    let state = State::read()?;
    let mut plan = Plan::of_present(instance, &state, numbers, bound);
    if leftovers {
        plan = plan.with_leftovers(&state)?;
    }
    write(&plan, &state, None)?;
    Ok(!plan.leftover.is_empty())
}

/// The messages that make the difference, in order. The kernel's answers do not matter for those behind.
pub fn steps(plan: &Plan, state: &State) -> Vec<Step> {
    let had: BTreeSet<&Rule> = state.rules.iter().collect();
    let missing = plan.rules.iter().filter(|rule| !had.contains(rule));
    let (mut frame, mut lookups): (Vec<&Rule>, Vec<&Rule>) = missing.partition(|rule| frame_order(rule).is_some());
    frame.sort_by_key(|rule| (frame_order(rule), rule.family));
    lookups.sort();

    let had: BTreeMap<Key, &Route> = state.routes.iter().map(|route| (route.key(), route)).collect();
    let mut routes: Vec<&Route> =
        plan.routes.iter().filter(|route| had.get(&route.key()).is_none_or(|had| !had.leads_like(route))).collect();
    // A gateway is found by the routes without one.
    routes.sort_by_key(|route| route.has_gateway());

    let wanted: BTreeSet<&Rule> = plan.rules.iter().collect();
    let keys: BTreeSet<Key> = plan.routes.iter().map(Route::key).collect();
    let old_routes = state.routes.iter().filter(|route| plan.owns(route.table) && !keys.contains(&route.key()));

    let add = |rules: Vec<&Rule>| rules.into_iter().cloned().map(Action::Add).collect::<Vec<_>>();
    let mut actions = add(frame);
    actions.extend(routes.into_iter().cloned().map(Action::Set));
    actions.extend(add(lookups));
    actions.extend(old_rules(plan, state, &wanted).into_iter().cloned().map(Action::Delete));
    actions.extend(old_routes.cloned().map(Action::Remove));
    actions.into_iter().map(Step).collect()
}

/// The place of a rule that all instances share, in the order of adding.
fn frame_order(rule: &Rule) -> Option<u8> {
    match rule.role()? {
        Role::Target => Some(0),
        Role::End(_) => Some(1),
        Role::Goto(_) => Some(2),
        Role::Lookup | Role::Bound => None,
    }
}

/// The rules to delete, in order: those that lead to a table, then the goto, then what is behind it.
fn old_rules<'a>(plan: &Plan, state: &'a State, wanted: &BTreeSet<&Rule>) -> Vec<&'a Rule> {
    let leads = |rule: &Rule| matches!(rule.role(), Some(Role::Lookup | Role::Bound));
    let is_old = |rule: &&Rule| leads(rule) && plan.owns(rule.table) && !wanted.contains(rule);
    let mut old: Vec<&Rule> = state.rules.iter().filter(is_old).collect();
    // The shared rules stay as long as a mark of any instance needs them.
    let staying = state.rules.iter().filter(|rule| !is_old(rule)).chain(plan.rules.iter());
    let flags: BTreeSet<(u8, u32)> =
        staying.filter(|rule| rule.role() == Some(Role::Lookup)).map(|rule| (rule.family, rule.flag())).collect();
    let mut frame: Vec<&Rule> = state
        .rules
        .iter()
        .filter(|rule| match rule.role() {
            Some(Role::Goto(flag) | Role::End(flag)) => !flags.contains(&(rule.family, flag)),
            Some(Role::Target) => !flags.iter().any(|(family, _)| *family == rule.family),
            _ => false,
        })
        .collect();
    frame.sort_by_key(|rule| (rule.family, std::cmp::Reverse(frame_order(rule))));
    old.extend(frame);
    old
}

impl Step {
    /// Carries out steps in this order.
    pub fn carry_out(steps: &[Self]) -> io::Result<Changes> {
        let mut connection = Connection::open()?;
        let mut changes = Changes::default();
        // Routes and rules alternate at most twice, and a rule has to wait for its table.
        for part in steps.chunk_by(|one, next| one.is_route() == next.is_route()) {
            let requests: Vec<Request> = part.iter().map(|step| step.request(false)).collect();
            let results = connection.change(&requests)?;
            for (step, result) in part.iter().zip(results) {
                let result = match result {
                    Err(_) if step.has_gateway() => {
                        connection.change(&[step.request(true)])?.pop().unwrap_or(Err(Errno::EPROTO))
                    }
                    result => result,
                };
                step.count(result, &mut changes)?;
            }
        }
        Ok(changes)
    }

    /// Whether it removes something.
    pub fn is_removal(&self) -> bool {
        matches!(self.0, Action::Delete(_) | Action::Remove(_))
    }

    fn is_route(&self) -> bool {
        matches!(self.0, Action::Set(_) | Action::Remove(_))
    }

    fn has_gateway(&self) -> bool {
        matches!(&self.0, Action::Set(route) if route.has_gateway())
    }

    /// The message. `again`: the kernel did not take the first one.
    ///
    /// A gateway is looked for in other routes, which may lack the network that it is in, or be told to be on the link. For
    /// IPv4 the latter asks for the least; for IPv6 it asks the main table.
    fn request(&self, again: bool) -> Request {
        match &self.0 {
            Action::Add(rule) => rule.write(),
            Action::Delete(rule) => rule.delete(),
            Action::Set(route) => route.write(route.prefix.is_ipv4() != again),
            Action::Remove(route) => route.delete(),
        }
    }

    /// Takes in the kernel's answer. What is there already, or gone already, is what was wanted.
    fn count(&self, result: Result<(), Errno>, changes: &mut Changes) -> io::Result<()> {
        match (&self.0, result) {
            (Action::Add(_) | Action::Set(_), Ok(())) => changes.written += 1,
            (Action::Delete(_) | Action::Remove(_), Ok(())) => changes.removed += 1,
            (Action::Add(_), Err(Errno::EEXIST))
            | (Action::Delete(_) | Action::Remove(_), Err(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV)) => {}
            (Action::Set(route), Err(error)) => changes.failed.push(Failed { what: route.to_string(), error }),
            (_, Err(error)) => {
                return Err(io::Error::new(io::Error::from(error).kind(), format!("{self}: {}", error.desc())));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Action::Add(rule) => write!(formatter, "add {rule}"),
            Action::Delete(rule) => write!(formatter, "delete {rule}"),
            Action::Set(route) => write!(formatter, "write {route}"),
            Action::Remove(route) => write!(formatter, "delete {route}"),
        }
    }
}

impl Route {
    /// Whether this one, as the kernel has it, does what `wanted` would. The protocol number leads no packet.
    fn leads_like(&self, wanted: &Self) -> bool {
        *self == Self { protocol: self.protocol, ..wanted.clone() }
    }
}

#[cfg(test)]
mod tests;
