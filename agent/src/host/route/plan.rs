//! What has to be there: rules, routes and passes for what is wanted, by the links and routes that the kernel has. Pure.
//!
//! **Invariant:** the same reading gives the same plan, also after it has been carried out.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{
    Instance, Pass, Wanted, contents,
    entry::{IPV4, IPV6, Route},
    passes,
    rule::{END, FRONT, Role, Rule, TARGET},
    state::{State, is_link_local, is_multicast},
    table,
};
use crate::model::mark::MarkMask;

/// What has to be there for one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) instance: Instance,
    pub(super) rules: Vec<Rule>,
    pub(super) routes: Vec<Route>,
    /// For each number of a policy of the route method, what may leave by another link than its uplink.
    pub passes: BTreeMap<u8, Vec<Pass>>,
    /// Rules of others that marked packets meet before steer's, as `ip rule` would describe them. They stand in front
    /// because they were made before steer's, and may lead packets elsewhere, where the programs stop them.
    pub in_front: Vec<String>,
    /// The rules of bound uplinks that this kernel lacks.
    pub lacks: Option<&'static str>,
    /// The tables that are as they are only because of connections, which their programs may have closed.
    pub leftover: BTreeSet<u32>,
}

/// A plan cannot be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Invalid {
    /// The mask has no mark for this number.
    #[error("policy number {0} does not fit in the mask {1:#x}")]
    Number(u8, u32),
    /// Two policies would have the same mark.
    #[error("policy number {0} is given twice")]
    Twice(u8),
    /// The kernel has no policy rules for a family.
    #[error("this kernel has no policy rules for {}, which `local` and `except` need", without_rules(*.0))]
    NoRules(u8),
    /// Another instance in this network namespace uses the mark.
    #[error("another instance of steer uses the mark {1:#x} of policy number {0} in this network namespace")]
    Taken(u8, u32),
}

impl Plan {
    /// The plan of an instance that wants nothing.
    pub(super) fn none(instance: Instance) -> Self {
        Self {
            instance,
            rules: Vec::new(),
            routes: Vec::new(),
            passes: BTreeMap::new(),
            in_front: Vec::new(),
            lacks: None,
            leftover: BTreeSet::new(),
        }
    }
}

impl Plan {
    /// Whether it needs rules and routes.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.routes.is_empty()
    }

    /// What is there now, but only the tables of these numbers, and of these bound uplinks.
    pub(super) fn of_present(instance: Instance, state: &State, numbers: &BTreeSet<u8>, bound: &BTreeSet<u32>) -> Self {
        let uplink = |rule: &Rule| {
            let name = rule.bound_to.as_deref();
            state.links.iter().find(|(_, link)| Some(link.name.as_slice()) == name).map(|(index, _)| *index)
        };
        let stays = |rule: &&Rule| match rule.role() {
            Some(Role::Lookup) => numbers.iter().any(|&number| instance.marked(number) == rule.table),
            Some(Role::Bound) => instance.has(rule.table) && uplink(rule).is_some_and(|link| bound.contains(&link)),
            _ => false,
        };
        let rules: Vec<Rule> = state.rules.iter().filter(stays).cloned().collect();
        let tables: BTreeSet<u32> = rules.iter().map(|rule| rule.table).collect();
        let routes = state.routes.iter().filter(|route| tables.contains(&route.table)).cloned().collect();
        Self { rules, routes, ..Self::none(instance) }
    }
}

/// Plans what has to be there.
pub fn plan(wanted: &Wanted, state: &State) -> Result<Plan, Invalid> {
    let mut plan = Plan::none(wanted.instance);
    if let (false, Some(&family)) = (wanted.marked.is_empty(), state.without_rules.first()) {
        return Err(Invalid::NoRules(family));
    }
    for policy in &wanted.marked {
        let number = policy.number;
        let mark = wanted.mask.mark(number).ok_or(Invalid::Number(number, wanted.mask.bits()))?;
        let table = wanted.instance.marked(number);
        if state.is_taken(mark, Some(wanted.instance)) {
            return Err(Invalid::Taken(number, mark));
        }
        let regions = contents::regions(policy, state);
        for &family in &state.families {
            plan.rules.push(Rule::lookup(family, wanted.mask, number, table));
            plan.routes.extend(contents::marked(policy, state, &regions, family == IPV4, table));
        }
        let regions = passes::with_discovery(regions, policy, state);
        let mut passes = passes::passes(&regions, policy.uplink);
        passes.extend(passes::refused(&regions, state));
        if plan.passes.insert(number, passes).is_some() {
            return Err(Invalid::Twice(number));
        }
    }
    if !wanted.marked.is_empty() {
        for &family in &state.families {
            plan.rules.extend([
                Rule::target(family),
                Rule::end(family, wanted.mask.flag()),
                Rule::goto(family, wanted.mask.flag()),
            ]);
        }
        plan.in_front = in_front(state, wanted.mask.flag());
    }
    bound(wanted, state, &mut plan);
    Ok(plan)
}

impl State {
    /// Numbers of policies that a new policy cannot have: a rule of any instance in this network namespace selects their mark, for a
    /// policy, or for connections that end.
    pub fn taken(&self, mask: MarkMask) -> BTreeSet<u8> {
        mask.numbers().filter(|&number| mask.mark(number).is_some_and(|mark| self.is_taken(mark, None))).collect()
    }

    /// Rules of others that use bits of the mask, as `ip rule` would describe them.
    pub fn clashing(&self, mask: MarkMask) -> Vec<String> {
        self.foreign_marks().filter(|rule| rule.clashes(mask)).map(ToString::to_string).collect()
    }

    /// A mask for marks with which no rule of others clashes. `None`: there is none.
    pub fn free_mask(&self) -> Option<MarkMask> {
        let masks = [8, 6, 4].into_iter().flat_map(|len| {
            let bits = (1_u32 << len) - 1;
            (0..=32 - len).rev().map(move |shift| MarkMask::new(bits << shift))
        });
        masks.into_iter().find(|mask| !self.foreign_marks().any(|rule| rule.clashes(*mask)))
    }

    fn foreign_marks(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.mask != 0 && rule.role().is_none())
    }

    /// Whether a rule of an instance other than `own` selects the mark.
    fn is_taken(&self, mark: u32, own: Option<Instance>) -> bool {
        let is_other = |rule: &&Rule| own.is_none_or(|own| !own.has(rule.table));
        let mut others = self.rules.iter().filter(|rule| rule.role() == Some(Role::Lookup)).filter(is_other);
        others.any(|rule| rule.mark == mark & rule.mask)
    }
}

/// A family without policy rules, and how kernels are configured to have them.
fn without_rules(family: u8) -> &'static str {
    if family == IPV4 { "IPv4 (CONFIG_IP_MULTIPLE_TABLES)" } else { "IPv6 (CONFIG_IPV6_MULTIPLE_TABLES)" }
}

/// The tables and rules of bound uplinks.
fn bound(wanted: &Wanted, state: &State, plan: &mut Plan) {
    if !state.families.contains(&IPV6) {
        let lacks = !wanted.bound.is_empty() && state.without_rules.contains(&IPV6);
        plan.lacks = lacks.then(|| without_rules(IPV6));
        return;
    }
    let links: BTreeSet<u32> = wanted.bound.iter().copied().filter(|&link| can_leak(link, state)).collect();
    let names: Vec<(u32, &[u8])> =
        links.iter().filter_map(|link| Some((*link, state.links.get(link)?.name.as_slice()))).collect();
    // An uplink keeps its table.
    let mut tables: BTreeMap<u32, u32> = BTreeMap::new();
    for &(link, name) in &names {
        let mut ours = state.rules.iter().filter(|rule| rule.family == IPV6 && rule.role() == Some(Role::Bound));
        let rule = ours.find(|rule| wanted.instance.has(rule.table) && rule.bound_to.as_deref() == Some(name));
        if let Some(rule) = rule
            && !tables.values().any(|table| *table == rule.table)
        {
            tables.insert(link, rule.table);
        }
    }
    // Connections may need the rule of a link that is no longer wanted.
    let present = state.rules.iter().filter(|rule| rule.role() == Some(Role::Bound)).map(|rule| rule.table);
    let mut taken: BTreeSet<u32> = present.collect();
    let mut free = (0..).map(|position| wanted.instance.bound(position));
    for (link, name) in names {
        let table = tables.get(&link).copied().or_else(|| free.find(|table| taken.insert(*table)));
        let Some(table) = table else { continue };
        tables.insert(link, table);
        plan.rules.push(Rule::bound(IPV6, name, table));
        plan.routes.extend(contents::bound(link, state, table));
    }
}

/// Whether the kernel could prefer another link for what a connection that is bound to this link sends.
fn can_leak(link: u32, state: &State) -> bool {
    let mut far = state
        .foreign()
        .filter(|route| !route.prefix.is_ipv4() && !is_link_local(route.prefix) && !is_multicast(route.prefix));
    let is_other = |other: u32| other != link && state.links.get(&other).is_none_or(|other| !other.is_loopback());
    far.any(|route| route.hops.iter().any(|hop| is_other(hop.link)))
}

/// Rules of others that marked packets can meet: between the rule for the table `local` and the goto, and behind it.
fn in_front(state: &State, flag: u32) -> Vec<String> {
    let mut found = Vec::new();
    for &family in &state.families {
        let rules = || state.rules.iter().filter(move |rule| rule.family == family);
        let first = rules().filter(|rule| rule.preference == FRONT);
        let before = first.take_while(|rule| rule.role() != Some(Role::Goto(flag)));
        let behind = rules().filter(|rule| (TARGET..=END).contains(&rule.preference));
        let others = before.chain(behind).filter(|rule| !rule.is_local() && rule.role().is_none());
        found.extend(others.map(ToString::to_string));
    }
    found
}

impl Plan {
    /// Whether a table is this instance's.
    pub(super) fn owns(&self, table: u32) -> bool {
        table::is_ours(table) && self.instance.has(table)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Instance, Local, Marked, Wanted},
        IPV4, IPV6, Invalid, State, plan,
    };
    use crate::model::mark::MarkMask;

    #[test]
    fn a_kernel_without_policy_rules() {
        let marked =
            Marked { number: 1, uplink: None, local: Local::default(), resolvers: Vec::new(), exceptions: Vec::new() };
        let binds =
            Wanted { mask: MarkMask::new(0xff00_0000), instance: Instance::new(1), marked: Vec::new(), bound: vec![2] };
        let routes = Wanted { marked: vec![marked], ..binds.clone() };
        for (families, without_rules, refused, lacks) in [
            (vec![], vec![IPV4, IPV6], Some(IPV4), true),
            (vec![IPV4], vec![IPV6], Some(IPV6), true),
            (vec![IPV6], vec![IPV4], Some(IPV4), false),
            (vec![IPV4], vec![], None, false),
        ] {
            let state = State { families, without_rules, ..State::default() };
            assert_eq!(plan(&routes, &state).err(), refused.map(Invalid::NoRules), "{state:?}");
            let plan = plan(&binds, &state).expect("binding needs no rules");
            assert_eq!((plan.is_empty(), plan.lacks.is_some()), (true, lacks), "{state:?}");
        }
    }
}
