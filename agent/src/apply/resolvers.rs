//! The resolvers in the records of policies: those that a policy names, or those that the host has for the link of its uplink.
//!
//! **Invariant:** with `dns = "link"`, no query goes to another server than one of the link. Without one, it goes nowhere.

use std::net::{IpAddr, Ipv4Addr};

use steer_common::{AddressWords, PolicyRecord, address::address_words, policy_flags};

use crate::{
    host::link::Table,
    kernel::{Datapath, Error, Lock, NOWHERE, PolicyEntry, own_resolvers},
    model::spec::Resolvers,
};

/// The resolvers of each family for a record.
pub(super) fn words(dns: &Resolvers, ifindex: i32, links: &Table) -> [AddressWords; 2] {
    match dns {
        Resolvers { link: true, .. } => of_link(links.resolvers(ifindex).unwrap_or_default()),
        Resolvers { v4, v6, .. } => [v4.map_or([0; 4], mapped), v6.map_or([0; 4], address_words)],
    }
}

/// Whether a link has a resolver that can be asked.
pub fn has_some(ifindex: i32, links: &Table) -> bool {
    links.resolvers(ifindex).is_some_and(|resolvers| of_link(resolvers) != NOWHERE)
}

/// Gives a policy the resolvers that its link has now, if it asks for them and they are known. Returns its new state.
pub(super) fn follow(
    datapath: &mut Datapath,
    lock: &Lock,
    mut entry: PolicyEntry,
    ifindex: i32,
    links: &Table,
) -> Result<PolicyEntry, Error> {
    let known = links.resolvers(ifindex).filter(|_| entry.record.flags & policy_flags::DNS_LINK != 0);
    let Some([dns4, dns6]) = known.map(of_link) else { return Ok(entry) };
    if [dns4, dns6] != [entry.record.dns4, entry.record.dns6] {
        entry.record = PolicyRecord { dns4, dns6, ..entry.record };
        datapath.set_resolvers(lock, entry.slot, &entry.record)?;
        log_resolvers(&entry);
    }
    Ok(entry)
}

fn log_resolvers(entry: &PolicyEntry) {
    let (name, interface) = (entry.name(), entry.interface());
    let resolvers: Vec<_> = own_resolvers(&entry.record).map(|resolver| resolver.to_string()).collect();
    if resolvers.is_empty() {
        log::warn!("policy {name}: systemd-resolved has no resolver for {interface}; DNS queries are stopped");
    } else {
        log::info!("policy {name}: the resolvers of {interface} are {}", resolvers.join(", "));
    }
}

fn mapped(address: Ipv4Addr) -> AddressWords {
    address_words(address.to_ipv6_mapped())
}

/// The first resolver of each family that a link has, or the one that no query reaches. A resolver on this host is none, and a link-local
/// address is valid on a socket of the link only.
fn of_link(resolvers: &[IpAddr]) -> [AddressWords; 2] {
    let [nowhere4, nowhere6] = NOWHERE;
    let usable = || resolvers.iter().map(IpAddr::to_canonical).filter(is_usable);
    let v4 = usable().find_map(|resolver| if let IpAddr::V4(v4) = resolver { Some(mapped(v4)) } else { None });
    let v6 = usable().find_map(|resolver| if let IpAddr::V6(v6) = resolver { Some(address_words(v6)) } else { None });
    [v4.unwrap_or(nowhere4), v6.unwrap_or(nowhere6)]
}

fn is_usable(resolver: &IpAddr) -> bool {
    let is_link_local = matches!(resolver, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !is_link_local && Resolvers::default().add(&resolver.to_string()).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use steer_common::address::ip_address;

    use super::{NOWHERE, words};
    use crate::{host::link::Table, model::spec::Resolvers};

    #[test]
    fn those_of_a_link() {
        let mut dns = Resolvers::NONE;
        dns.add("link").expect("a word");
        let of = |texts: Option<&[&str]>| {
            let mut links = Table::default();
            let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
            links.set_resolvers(texts.map(|texts| Arc::new(BTreeMap::from([(7, addresses(texts))]))));
            let words = words(&dns, 7, &links);
            let known = words.iter().filter(|words| !NOWHERE.contains(words));
            known.map(|words| ip_address(*words).to_string()).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(of(None), none, "nothing is known yet");
        assert_eq!(of(Some(&[])), none);
        assert_eq!(of(Some(&["127.0.0.1", "fe80::1", "10.64.0.1", "10.64.0.2"])), ["10.64.0.1"]);
        assert_eq!(of(Some(&["2001:db8::53", "10.64.0.1"])), ["10.64.0.1", "2001:db8::53"]);
    }
}
