//! What is in a table: copies of the uplink's routes, with regions that go elsewhere. Pure.
//!
//! A region is a prefix that an exception, a network of this host or a resolver has. Everything outside of the regions is
//! the uplink's. Regions nest.
//!
//! **Invariant:** the smallest region around a destination decides. A region always has a route for all of its prefix, so
//! no route from around it applies inside.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
};

use super::{
    By, Marked,
    entry::{BLACKHOLE, MAIN, PROHIBIT, Route, THROW, UNICAST, UNREACHABLE},
    state::{Link, State, is_link_local, is_multicast},
};
use crate::model::prefix::Prefix;

/// The origin `kernel`, as that of rules. Whenever systemd-networkd configures a link, it removes the routes of all other origins that are
/// by the link or, as those that refuse, by none, from all tables: a refused destination would leave by the uplink until they are back.
pub(super) const PROTOCOL: u8 = super::rule::KERNEL;

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// Who decides about a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The links that have this network.
    Lan(Vec<u32>),
    /// An exception.
    By(By),
    /// A resolver, which only the uplink leads to.
    Resolver,
    /// The links for discovery. It needs no routes: destinations are multicast with a link, or broadcast.
    Discovery(Vec<u32>),
}

/// Owners by prefix.
pub(super) type Regions = BTreeMap<Prefix, Owner>;

/// The regions of a policy, without discovery.
pub(super) fn regions(policy: &Marked, state: &State) -> Regions {
    let mut regions = Regions::new();
    if policy.local.lan {
        for (link, route) in state.lan(policy.uplink) {
            let owner = regions.entry(route.prefix).or_insert_with(|| Owner::Lan(Vec::new()));
            if let Owner::Lan(links) = owner
                && !links.contains(&link)
            {
                links.push(link);
            }
        }
    }
    regions.extend(policy.exceptions.iter().map(|exception| (exception.to, Owner::By(exception.by))));
    regions.extend(
        policy
            .resolvers
            .iter()
            .map(|&address| Prefix::host(address))
            .filter(|&resolver| is_far(resolver))
            .map(|resolver| (resolver, Owner::Resolver)),
    );
    regions
}

/// Whether the address alone says which host is meant. One on each link is found by the link, and loopback needs no route.
fn is_far(resolver: Prefix) -> bool {
    let address = resolver.address();
    !address.is_loopback() && !address.is_unspecified() && !is_multicast(resolver) && !is_link_local(resolver)
}

/// The smallest region around a prefix.
pub(super) fn around<'a>(regions: &'a Regions, prefix: &Prefix) -> Option<(&'a Prefix, &'a Owner)> {
    regions.iter().filter(|(region, _)| region.covers(prefix)).max_by_key(|(region, _)| region.len())
}

/// The table of a policy, for one family.
pub(super) fn marked(policy: &Marked, state: &State, regions: &Regions, is_ipv4: bool, table: u32) -> Vec<Route> {
    let uplink = policy.uplink.map(|link| state.mirror(link, is_ipv4)).unwrap_or_default();
    // Inside a network of this host the uplink's more specific routes count, as they would without steer.
    let is_uplinks = |route: &&Route| matches!(around(regions, &route.prefix), None | Some((_, Owner::Lan(_))));
    let mut routes: Vec<Route> = uplink.iter().filter(is_uplinks).cloned().collect();
    if policy.local.lan {
        let is_lans = |route: &Route| matches!(regions.get(&route.prefix), Some(Owner::Lan(_)));
        let lan = state.lan(policy.uplink).map(|(_, route)| route);
        routes.extend(lan.filter(|route| route.prefix.is_ipv4() == is_ipv4 && is_lans(route)));
    }
    let main = main(state, is_ipv4);
    let mut mirrors: HashMap<u32, Vec<Route>> = HashMap::new();
    let mut ends = Vec::new();
    for (&region, owner) in regions.iter().filter(|(region, _)| region.is_ipv4() == is_ipv4) {
        let inside = match owner {
            Owner::Lan(_) | Owner::Discovery(_) => continue,
            Owner::By(By::Refuse) => {
                routes.push(Route::without_link(PROHIBIT, region));
                continue;
            }
            Owner::By(By::Link(None)) => Vec::new(),
            Owner::By(By::Link(Some(link))) => {
                narrowed(mirrors.entry(*link).or_insert_with(|| state.mirror(*link, is_ipv4)), region)
            }
            Owner::By(By::Main) => narrowed(&main, region),
            Owner::Resolver => narrowed(&uplink, region),
        };
        let is_inside = |route: &Route| around(regions, &route.prefix).map(|(at, _)| *at) == Some(region);
        routes.extend(inside.into_iter().filter(is_inside));
        ends.push(end(region, table));
    }
    let mut routes = numbered(routes, table);
    routes.extend(ends);
    routes
}

/// The end of a region. It counts if there is no other route, also when a link goes down: the kernel removes the link's
/// routes at once, and what is around the region must not apply.
fn end(region: Prefix, table: u32) -> Route {
    Route { table, metric: u32::MAX, protocol: PROTOCOL, ..Route::without_link(UNREACHABLE, region) }
}

/// The end of the table of a bound uplink.
pub(super) fn end_of_all(table: u32) -> Route {
    end(Prefix::ALL_IPV6, table)
}

/// The table of a bound uplink.
pub(super) fn bound(link: u32, state: &State, table: u32) -> Vec<Route> {
    let mut mirror = state.mirror(link, false);
    // Link-local destinations need their link in any case, so they are left to the rules behind. The kernel removes copies when the link
    // goes down, and then not only steered sockets would miss them.
    mirror.retain(|route| !is_link_local(route.prefix));
    let has_default = mirror.iter().any(|route| route.prefix == Prefix::ALL_IPV6 && route.source.is_none());
    let mut routes = numbered(mirror, table);
    // Packets that have the link only as a preference may take another one by the rules behind. That stays as it is while
    // the link has no default route, unless connections need the end: see the module `leftover`. While it is down, nobody can use it, and connections of before are still there.
    let is_up = state.links.get(&link).is_some_and(Link::is_up);
    if has_default || !is_up {
        routes.push(end_of_all(table));
    }
    if let Some(link_local) = Prefix::of(LINK_LOCAL.into(), 10) {
        routes.push(Route { table, metric: 1, protocol: PROTOCOL, ..Route::without_link(THROW, link_local) });
    }
    routes
}

/// The routes of the main table.
fn main(state: &State, is_ipv4: bool) -> Vec<Route> {
    let is_up = |link| state.links.get(&link).is_some_and(Link::is_up);
    let mut routes: Vec<Route> = Vec::new();
    for route in state.routes.iter().filter(|route| route.table == MAIN && route.prefix.is_ipv4() == is_ipv4) {
        let mut route = route.clone();
        match route.kind {
            UNICAST => route.hops.retain(|hop| is_up(hop.link)),
            // In main it means: ask the tables behind. Here the end is behind.
            THROW => route = Route { source: route.source, ..Route::without_link(UNREACHABLE, route.prefix) },
            UNREACHABLE | PROHIBIT | BLACKHOLE => {}
            _ => continue,
        }
        if route.kind != UNICAST || !route.hops.is_empty() {
            routes.push(route);
        }
    }
    routes.sort_by_key(|route| route.metric);
    routes
}

/// The routes for a prefix: those inside, and those of the smallest prefix around it, as routes for the prefix itself.
fn narrowed(routes: &[Route], to: Prefix) -> Vec<Route> {
    let mut inside: Vec<Route> = routes.iter().filter(|route| to.covers(&route.prefix)).cloned().collect();
    if !inside.iter().any(|route| route.prefix == to && route.source.is_none()) {
        let around = routes.iter().filter(|route| route.prefix.covers(&to) && route.prefix != to);
        let nearest = around.clone().map(|route| route.prefix.len()).max();
        let around = around.filter(|route| Some(route.prefix.len()) == nearest);
        inside.extend(around.map(|route| Route { prefix: to, ..route.clone() }));
    }
    inside
}

/// The routes in this table. Those for the same destinations get metrics in this order: with their own ones two could be
/// equal, and one would replace the other, or the kernel would use both in turns.
fn numbered(routes: Vec<Route>, table: u32) -> Vec<Route> {
    let mut metrics: HashMap<(Prefix, Option<Prefix>, u8), u32> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    let mut numbered = Vec::with_capacity(routes.len());
    for route in routes {
        let mut route = Route { table, metric: 0, protocol: PROTOCOL, ..route };
        if !seen.insert(route.clone()) {
            continue;
        }
        let metric = metrics.entry((route.prefix, route.source, route.tos)).or_default();
        *metric += 1;
        route.metric = *metric;
        numbered.push(route);
    }
    numbered
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use super::{
        super::{
            By, Exception, Local, Marked, Pass,
            entry::{IPV4, MAIN, PROHIBIT, Route, UNICAST},
            passes::passes,
            state::State,
        },
        Link, Owner, Prefix, marked, regions,
    };

    /// xorshift, so that a failure can be repeated.
    struct Random(u32);

    impl Random {
        fn below(&mut self, limit: u32) -> u32 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 17;
            self.0 ^= self.0 << 5;
            self.0 % limit
        }

        /// Few bits, so that prefixes nest. Destinations are 10.0.0.0 to 10.0.0.15.
        fn prefix(&mut self) -> Prefix {
            let address = IpAddr::from([10, 0, 0, u8::try_from(self.below(16)).expect("small")]);
            let len = [0, 28, 29, 30, 31, 32][usize::try_from(self.below(6)).expect("small")];
            Prefix::of(address, len).expect("a prefix")
        }

        fn state(&mut self) -> State {
            let link = |flags| Link { name: b"x".to_vec(), flags: flags | libc::IFF_UP, ..Link::default() };
            let links = BTreeMap::from([(1, link(0)), (2, link(0)), (3, link(0)), (4, link(libc::IFF_POINTOPOINT))]);
            let mut state = State { links, families: vec![IPV4], ..State::default() };
            for _ in 0..self.below(10) {
                let table = if self.below(4) == 0 { 77 } else { MAIN };
                let mut route = Route { table, metric: self.below(3), ..Route::by(1 + self.below(4), self.prefix()) };
                if self.below(6) == 0 {
                    route = Route { table, ..Route::without_link(PROHIBIT, route.prefix) };
                }
                state.routes.push(route);
            }
            state
        }
    }

    fn best<'a>(routes: impl Iterator<Item = &'a Route>, to: IpAddr) -> Option<&'a Route> {
        let matching = routes.filter(|route| route.prefix.contains(to));
        matching.min_by_key(|route| (std::cmp::Reverse(route.prefix.len()), route.metric))
    }

    /// The link of the route; `None`: it refuses.
    fn leads_to(route: Option<&Route>) -> Option<u32> {
        route.and_then(|route| route.hops.first()).map(|hop| hop.link)
    }

    fn lookup(passes: &[Pass], link: u32, to: IpAddr) -> bool {
        let longest = |link| {
            let entries = passes.iter().filter(|pass| pass.ifindex == link && pass.prefix.contains(to));
            entries.max_by_key(|pass| pass.prefix.len()).map(|pass| pass.allow)
        };
        longest(link).or_else(|| longest(0)).unwrap_or(false)
    }

    #[test]
    fn tables_lead_where_the_smallest_region_says_and_the_passes_agree() {
        let mut random = Random(0x2545_f491);
        for round in 0..4_000 {
            let state = random.state();
            let exceptions = (0..random.below(6)).map(|_| {
                let by = match random.below(5) {
                    0 => By::Main,
                    1 => By::Refuse,
                    2 => By::Link(None),
                    _ => By::Link(Some(1 + random.below(4))),
                };
                Exception { to: random.prefix(), by }
            });
            let exceptions = exceptions.collect();
            let resolvers = (0..random.below(3)).map(|_| random.prefix().address()).collect();
            let local = Local { lan: random.below(2) == 0, discovery: false };
            let policy = Marked { number: 1, uplink: Some(1), local, resolvers, exceptions };
            let regions = regions(&policy, &state);
            let table = marked(&policy, &state, &regions, true, 9);
            let keys: std::collections::BTreeSet<_> = table.iter().map(Route::key).collect();
            assert_eq!(keys.len(), table.len(), "two routes for the same key: {table:?}");
            let passes = passes(&regions, policy.uplink);
            let uplink = state.mirror(1, true);
            for last in 0..16 {
                let to = IpAddr::from([10, 0, 0, last]);
                let around = regions.iter().filter(|(region, _)| region.contains(to));
                let owner = around.max_by_key(|(region, _)| region.len()).map(|(_, owner)| owner);
                let mirror = |link| best_by_order(&state.mirror(link, true), to);
                let expected = match owner {
                    None | Some(Owner::Resolver) => best_by_order(&uplink, to),
                    Some(Owner::By(By::Refuse | By::Link(None))) => None,
                    Some(Owner::By(By::Link(Some(link)))) => mirror(*link),
                    Some(Owner::By(By::Main)) => {
                        let main = state.routes.iter().filter(|route| route.table == MAIN);
                        // Among those with the same prefix and metric, the first one counts.
                        leads_to(best(main, to))
                    }
                    Some(Owner::Lan(links)) => {
                        let leads = leads_to(best(table.iter(), to)).expect("a route");
                        assert!(leads == 1 || links.contains(&leads), "{to}: {leads} of {links:?}");
                        Some(leads)
                    }
                    Some(Owner::Discovery(_)) => panic!("not asked for"),
                };
                let found = leads_to(best(table.iter(), to));
                assert_eq!(found, expected, "round {round}, {to}: {policy:?} {state:?} {table:?}");
                let allowed = found.is_none_or(|link| link == 1 || lookup(&passes, link, to));
                assert!(allowed, "round {round}, {to} by {found:?}: {policy:?} {passes:?}");
            }
        }
    }

    /// The link of the longest prefix; among equal ones of the first.
    fn best_by_order(routes: &[Route], to: IpAddr) -> Option<u32> {
        let matching = routes.iter().filter(|route| route.kind == UNICAST && route.prefix.contains(to));
        leads_to(matching.min_by_key(|route| std::cmp::Reverse(route.prefix.len())))
    }
}
