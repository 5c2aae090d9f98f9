//! What may leave by another link than the uplink, for the program on the packets. Pure.
//!
//! **Invariant:** the program's look-up gives for each link and destination what the smallest region around the destination
//! says. A packet that no region allows is stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use steer_common::reach::REFUSED;

use super::{
    By, Marked, Pass,
    contents::{Owner, Regions},
    state::State,
};
use crate::model::prefix::Prefix;

/// Groups of mDNS, SSDP and LLMNR, and the broadcast address of any network.
const DISCOVERY: [&str; 8] =
    ["224.0.0.251", "ff02::fb", "239.255.255.250", "ff02::c", "ff05::c", "224.0.0.252", "ff02::1:3", "255.255.255.255"];

/// Whether the address is one of discovery on any network. The broadcast addresses of networks are others.
pub fn is_discovery(address: IpAddr) -> bool {
    DISCOVERY.iter().any(|group| group.parse() == Ok(address))
}

/// The regions with those for discovery.
pub(super) fn with_discovery(mut regions: Regions, policy: &Marked, state: &State) -> Regions {
    if policy.local.discovery {
        let links: Vec<u32> = state.lan_links(policy.uplink).collect();
        for group in DISCOVERY.iter().filter_map(|group| group.parse().ok()) {
            regions.entry(group).or_insert_with(|| Owner::Discovery(links.clone()));
        }
        for link in links {
            for broadcast in state.broadcasts(link) {
                let owner = regions.entry(broadcast).or_insert_with(|| Owner::Discovery(Vec::new()));
                if let Owner::Discovery(links) = owner
                    && !links.contains(&link)
                {
                    links.push(link);
                }
            }
        }
    }
    regions
}

/// The entries for these regions.
pub(super) fn passes(regions: &Regions, uplink: Option<u32>) -> Vec<Pass> {
    // In this order a region comes after those around it.
    let mut any = BTreeMap::new();
    for (&prefix, owner) in regions {
        let allow = allows(owner, 0);
        if nearest(&any, &prefix).unwrap_or(false) != allow {
            any.insert(prefix, allow);
        }
    }
    let mut passes: Vec<Pass> = any.iter().map(|(&prefix, &allow)| Pass { ifindex: 0, prefix, allow }).collect();
    let links: BTreeSet<u32> = regions.values().flat_map(links).filter(|&link| Some(link) != uplink).collect();
    for link in links {
        let mut entries = BTreeMap::new();
        for (&prefix, owner) in regions {
            let allow = allows(owner, link);
            let inherited = nearest(&entries, &prefix).or_else(|| nearest(&any, &prefix));
            if inherited.unwrap_or(false) != allow {
                entries.insert(prefix, allow);
            }
        }
        passes.extend(entries.into_iter().map(|(prefix, allow)| Pass { ifindex: link, prefix, allow }));
    }
    passes
}

/// The entries for what exceptions refuse. The addresses of this host are reached whatever the exceptions say: the kernel looks
/// for them before all rules.
pub(super) fn refused(regions: &Regions, state: &State) -> impl Iterator<Item = Pass> {
    let mut entries = BTreeMap::new();
    for (&prefix, owner) in regions {
        let is_refused = *owner == Owner::By(By::Refuse);
        if nearest(&entries, &prefix).unwrap_or(false) != is_refused {
            entries.insert(prefix, is_refused);
        }
    }
    for own in state.own_addresses() {
        if nearest(&entries, &own) == Some(true) {
            entries.insert(own, false);
        }
    }
    entries.into_iter().map(|(prefix, allow)| Pass { ifindex: REFUSED, prefix, allow })
}

/// What the entry with the longest prefix around `prefix` says.
fn nearest(entries: &BTreeMap<Prefix, bool>, prefix: &Prefix) -> Option<bool> {
    let around = entries.iter().filter(|(entry, _)| entry.covers(prefix));
    around.max_by_key(|(entry, _)| entry.len()).map(|(_, &allow)| allow)
}

/// Whether packets into the region may leave by the link; 0: by one that no region names.
fn allows(owner: &Owner, link: u32) -> bool {
    match owner {
        Owner::Lan(links) | Owner::Discovery(links) => links.contains(&link),
        Owner::By(By::Link(by)) => *by == Some(link),
        Owner::By(By::Main) => true,
        Owner::By(By::Refuse) | Owner::Resolver => false,
    }
}

fn links(owner: &Owner) -> Vec<u32> {
    match owner {
        Owner::Lan(links) | Owner::Discovery(links) => links.clone(),
        Owner::By(By::Link(link)) => link.iter().copied().collect(),
        Owner::By(_) | Owner::Resolver => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{By, IpAddr, Owner, Pass, Prefix, REFUSED, Regions, State, allows, passes, refused};

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The look-up of the program on the packets.
    fn lookup(passes: &[Pass], link: u32, to: IpAddr) -> bool {
        let longest = |link| {
            let entries = passes.iter().filter(|pass| pass.ifindex == link && pass.prefix.contains(to));
            entries.max_by_key(|pass| pass.prefix.len()).map(|pass| pass.allow)
        };
        longest(link).or_else(|| longest(0)).unwrap_or(false)
    }

    #[test]
    fn an_exception_inside_another_one_is_closed_on_the_outer_link() {
        let by = |link| Owner::By(By::Link(Some(link)));
        let regions = Regions::from([(prefix("192.168.0.0/16"), by(2)), (prefix("192.168.3.0/24"), by(3))]);
        let shown: Vec<_> = passes(&regions, Some(9))
            .iter()
            .map(|pass| format!("{} {} {}", pass.ifindex, pass.prefix, pass.allow))
            .collect();
        assert_eq!(shown, ["2 192.168.0.0/16 true", "2 192.168.3.0/24 false", "3 192.168.3.0/24 true"]);
    }

    #[test]
    fn the_entries_say_what_the_regions_say() {
        // xorshift, so that a failure can be repeated.
        let mut seed = 0x2545_f491_u32;
        let mut random = move |below: u32| {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed % below
        };
        for _ in 0..3_000 {
            let mut regions = Regions::new();
            for _ in 0..random(9) {
                // Few bits, so that regions nest.
                let address = IpAddr::from([10, 0, 0, u8::try_from(random(16)).expect("small")]);
                let Some(at) = Prefix::of(address, u8::try_from(28 + random(5)).expect("small")) else { continue };
                let owner = match random(6) {
                    0 => Owner::Lan((1..=3).filter(|_| random(2) == 0).collect()),
                    1 => Owner::By(By::Main),
                    2 => Owner::By(By::Refuse),
                    3 => Owner::Resolver,
                    4 => Owner::By(By::Link(None)),
                    _ => Owner::By(By::Link(Some(1 + random(3)))),
                };
                regions.insert(at, owner);
            }
            let entries = passes(&regions, None);
            for last in 0..16 {
                let to = IpAddr::from([10, 0, 0, last]);
                let around = regions.iter().filter(|(region, _)| region.contains(to));
                let nearest = around.max_by_key(|(region, _)| region.len());
                let expected = nearest.is_some_and(|(_, owner)| *owner == Owner::By(By::Refuse));
                let refused: Vec<Pass> = refused(&regions, &State::default()).collect();
                assert_eq!(lookup(&refused, REFUSED, to), expected, "{to}: {regions:?} {refused:?}");
            }
            for link in 1..=4 {
                for last in 0..16 {
                    let to = IpAddr::from([10, 0, 0, last]);
                    let around = regions.iter().filter(|(region, _)| region.contains(to));
                    let expected =
                        around.max_by_key(|(region, _)| region.len()).is_some_and(|(_, owner)| allows(owner, link));
                    assert_eq!(lookup(&entries, link, to), expected, "{to} by {link}: {regions:?} {entries:?}");
                }
            }
            let keys: BTreeSet<_> = entries.iter().map(|pass| (pass.ifindex, pass.prefix)).collect();
            assert_eq!(keys.len(), entries.len(), "one entry for each key");
        }
    }
}
