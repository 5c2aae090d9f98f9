//! The kernel's rules and tables, simulated: what holds after each message.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::{
        By, Exception, Local, MarkMask, Marked, Wanted,
        entry::{IPV6, MAIN, UNICAST},
        plan,
        rule::{GOTO, LOOKUP, UNREACHABLE},
        state::Link,
    },
    Action, Instance, Role, Route, Rule, State, Step, steps,
};

/// Where a packet goes.
#[derive(Debug, PartialEq)]
enum Way {
    Main,
    Link(u32),
    Refused,
}

/// As the kernel keeps rules: by preference, a new one behind those with the same.
fn apply(step: &Step, state: &mut State) {
    match &step.0 {
        Action::Add(rule) => {
            state.rules.push(rule.clone());
            state.rules.sort_by_key(|rule| rule.preference);
        }
        Action::Delete(rule) => {
            let at = state.rules.iter().position(|one| one == rule).expect("only what is there is deleted");
            state.rules.remove(at);
        }
        Action::Set(route) => {
            state.routes.retain(|one| one.key() != route.key());
            state.routes.push(route.clone());
        }
        Action::Remove(route) => {
            let had = state.routes.len();
            state.routes.retain(|one| one.key() != route.key());
            assert!(state.routes.len() < had, "only what is there is deleted");
        }
    }
}

fn way(state: &State, mark: u32, to: IpAddr) -> Way {
    let rules: Vec<&Rule> = state.rules.iter().filter(|rule| rule.family == IPV6).collect();
    let mut at = 0;
    while let Some(rule) = rules.get(at) {
        at += 1;
        if rule.bound_to.is_some() || mark & rule.mask != rule.mark {
            continue;
        }
        match rule.action {
            // Without its target it is skipped.
            GOTO => at = rules.iter().position(|one| Some(one.preference) == rule.target).unwrap_or(at),
            UNREACHABLE => return Way::Refused,
            LOOKUP if rule.table == MAIN => return Way::Main,
            LOOKUP => {
                let matching = state.routes.iter().filter(|one| one.table == rule.table && one.prefix.contains(to));
                match matching.min_by_key(|one| (std::cmp::Reverse(one.prefix.len()), one.metric)) {
                    Some(route) if route.kind == UNICAST => return Way::Link(route.hops[0].link),
                    Some(_) => return Way::Refused,
                    None => {}
                }
            }
            _ => {}
        }
    }
    Way::Refused
}

fn host() -> State {
    let link = |name: &str| Link { name: name.into(), flags: libc::IFF_UP, ..Link::default() };
    let links = BTreeMap::from([(2, link("a")), (3, link("b")), (4, link("c"))]);
    let mut main = Rule { table: MAIN, ..Rule::bound(IPV6, b"", 0) };
    (main.preference, main.bound_to) = (32_766, None);
    let prefix = |text: &str| text.parse().expect("a prefix");
    let route = |link, to| Route { table: MAIN, metric: link, ..Route::by(link, prefix(to)) };
    let routes = vec![route(2, "::/0"), route(3, "::/0"), route(4, "2001:db8::/32"), route(3, "2001:db8:1::/48")];
    State { links, routes, rules: vec![main], families: vec![IPV6], without_rules: Vec::new() }
}

#[test]
fn no_step_of_any_change_lets_marked_packets_pass() {
    let mut random = 0x2545_f491_u32;
    let mut below = move |limit: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % limit
    };
    let bits = MarkMask::new(0xf000_0000);
    let mut state = host();
    for round in 0..600_u32 {
        // Two instances change in turns, each with numbers of its own.
        let first = if round % 2 == 0 { 1 } else { 3 };
        let policy = |number, below: &mut dyn FnMut(u32) -> u32| Marked {
            number,
            uplink: Some(2 + below(4)),
            local: Local { lan: below(2) == 0, discovery: false },
            resolvers: Vec::new(),
            exceptions: (0..below(3))
                .map(|one| Exception {
                    to: ["2001:db8:1::/48", "2001:db8::/33", "::/1"][one as usize].parse().expect("a prefix"),
                    by: [By::Main, By::Refuse, By::Link(None), By::Link(Some(3))][below(4) as usize],
                })
                .collect(),
        };
        let wanted = Wanted {
            mask: bits,
            instance: Instance::new(first.into()),
            marked: (first..first + 2)
                .filter(|_| below(3) > 0)
                .collect::<Vec<_>>()
                .into_iter()
                .map(|number| policy(number, &mut below))
                .collect(),
            bound: (2..5).filter(|_| below(2) == 0).collect(),
        };
        let plan = plan(&wanted, &state).expect("a plan");
        for step in steps(&plan, &state) {
            let others = state.clone();
            apply(&step, &mut state);
            let has_goto = state.rules.iter().any(|rule| matches!(rule.role(), Some(Role::Goto(_))));
            for number in 1..=4 {
                let mark = bits.mark(number).expect("a mark");
                for to in ["2001:db8:1::1", "2001:db8::1", "2a00::1"] {
                    let to = to.parse().expect("an address");
                    let way_now = way(&state, mark, to);
                    assert!(!has_goto || way_now != Way::Main, "after {step}: {number} to {to}: {state:?}");
                    if !(first..first + 2).contains(&number) {
                        let is_served = others.rules.iter().any(|rule| rule.mark == mark);
                        assert!(!is_served || way(&others, mark, to) == way_now, "after {step}: the other instance");
                    }
                }
            }
            assert_eq!(way(&state, 0, "2a00::1".parse().expect("an address")), Way::Main, "others");
        }
        assert!(steps(&super::super::plan(&wanted, &state).expect("a plan"), &state).is_empty(), "round {round}");
    }
    for instance in [1, 3] {
        let plan = super::Plan::none(Instance::new(instance));
        for step in steps(&plan, &state) {
            apply(&step, &mut state);
        }
    }
    let host = host();
    assert_eq!((state.rules, state.routes), (host.rules, host.routes), "nothing is left");
}
