//! Converts policies and links to the records in the kernel, and back.
//!
//! **Invariant:** only this module converts the name of an interface to an index, and options to flags. A name that no link has
//! resolves to the closed index.

use std::{io, net::IpAddr, os::fd::BorrowedFd};

use steer_common::{
    AddressWords, CLOSED_IFINDEX, Kind, Owner, PolicyRecord, policy_flags,
    record::{INTERFACE_BYTES, NAME_BYTES},
    uplink::uplink_flags,
};

use thiserror::Error as ThisError;

use super::{resolvers, uplinks};
use crate::{
    host::{
        link::{self, Table},
        netns,
    },
    kernel::{Datapath, Error, Lock, Policy, PolicyEntry, own_resolvers, text},
    model::{
        fingerprint::fingerprint,
        mark::MarkMask,
        spec::{
            Account, By, Enforce, Enforcement, Exceptions, Existing, Ingress, Local, OtherNetns, Reach, Resolvers,
            Target, Uplink,
        },
        uplink::group::{self, Group, GroupName},
    },
};

/// A network namespace: its links, its identity, and the marks of steer in it.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// The links that exist.
    pub links: &'a Table,
    /// The result of `bpf_get_netns_cookie` in it.
    pub cookie: u64,
    /// The bits of marks that are steer's.
    pub marks: MarkMask,
    /// The configured groups of uplinks.
    pub groups: &'a [Group],
    /// A descriptor of it; `None`: it is that of the calling thread.
    pub inside: Option<BorrowedFd<'a>>,
}

impl<'a> Namespace<'a> {
    /// That of the calling thread.
    pub fn own(links: &'a Table, cookie: u64, marks: MarkMask, groups: &'a [Group]) -> Self {
        Self { links, cookie, marks, groups, inside: None }
    }

    /// Runs something in it.
    pub(super) fn run<T: Send>(self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self.inside {
            None => Ok(work()),
            Some(netns) => netns::inside(netns, work),
        }
    }
}

/// A policy of this namespace, for the kernel. It is closed while the interface is missing.
pub fn policy(name: &str, target: &Target, owner: Owner, namespace: Namespace<'_>) -> Policy {
    let exceptions = target.reach.except.clone();
    let group = target.uplink.group().and_then(|name| group::named(namespace.groups, name));
    let group = group.map(|group| Box::new(uplinks::record(&group, namespace)));
    let mut record = record(name, target, owner, namespace);
    if let Some(group) = &group {
        record.members = group.members;
        let has = |resolvers: &[AddressWords]| resolvers.iter().any(|resolver| *resolver != [0; 4]);
        record.flags |= policy_flags::GROUP
            | flag_if(has(&group.dns4), policy_flags::DNS4)
            | flag_if(has(&group.dns6), policy_flags::DNS6);
    }
    Policy { record, exceptions, group }
}

fn record(name: &str, target: &Target, owner: Owner, namespace: Namespace<'_>) -> PolicyRecord {
    let common = PolicyRecord {
        owner: owner as u32,
        name: padded::<NAME_BYTES>(name),
        flags: flags(&target.enforcement) | reach_flags(&target.reach),
        mark_mask: namespace.marks.bits(),
        exceptions: exceptions_fingerprint(&target.reach.except),
        ..PolicyRecord::EMPTY
    };
    if target.uplink == Uplink::Exempt {
        return PolicyRecord { kind: Kind::Exempt as u32, ..common };
    }
    let interface = target.uplink.interface().or(target.uplink.group().map(GroupName::as_str)).unwrap_or_default();
    let is_group = target.uplink.group().is_some();
    let ifindex = if is_group { CLOSED_IFINDEX } else { index(interface, namespace.links) };
    let [dns4, dns6] = resolvers::words(&target.enforcement.dns, ifindex, namespace.links);
    PolicyRecord {
        kind: Kind::Steer as u32,
        ifindex,
        netns_cookie: namespace.cookie,
        dns4,
        dns6,
        interface: padded::<INTERFACE_BYTES>(interface),
        ..common
    }
}

/// As [`policy`], but fails while the interface is missing.
pub fn present(name: &str, target: &Target, owner: Owner, namespace: Namespace<'_>) -> Result<Policy, Absent> {
    if let Some(interface) = target.uplink.interface() {
        namespace.links.require(interface)?;
    }
    let policy = policy(name, target, owner, namespace);
    if let Some(name) = target.uplink.group() {
        let Some(group) = &policy.group else { return Err(Absent::Group(name.to_string())) };
        // It finds its members when it is put in force.
        let is_auto = group.flags & uplink_flags::AUTO != 0;
        if !is_auto && group.ifindex.iter().all(|ifindex| *ifindex <= 0) {
            return Err(Absent::Members(name.to_string()));
        }
    }
    Ok(policy)
}

/// Why a policy has no uplink.
#[derive(Debug, ThisError)]
pub enum Absent {
    /// There is no such interface.
    #[error(transparent)]
    Interface(#[from] link::Error),
    /// There is no such group.
    #[error("there is no [[uplink]] {0:?} in the configuration")]
    Group(String),
    /// None of its members is there.
    #[error("no member of uplink {0} exists here; `steer interfaces` lists the interfaces that do")]
    Members(String),
}

/// The index of an interface, or the closed index while it is missing. No link has an empty name.
pub(super) fn index(interface: &str, links: &Table) -> i32 {
    links.resolve(interface).filter(|_| !interface.is_empty()).unwrap_or(CLOSED_IFINDEX)
}

/// Why the index in a policy is not that of its uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The difference.
    pub what: String,
    /// Its effect.
    pub why: &'static str,
}

/// Compares the index in a policy of this namespace, absent while it is closed, with its uplink. `None`: they agree, or nothing is open that should not be.
pub fn stale(interface: &str, pinned: Option<i32>, links: &Table) -> Option<Stale> {
    let (pinned, present) = (pinned.unwrap_or(CLOSED_IFINDEX), index(interface, links));
    if pinned == present {
        return None;
    }
    let has = if pinned > 0 { format!("has index {pinned}") } else { "records it as missing".to_owned() };
    match (links.name(pinned), present) {
        (Some(other), _) => Some(Stale {
            what: format!("index {pinned} of the policy belongs to {other} now, not to {interface}"),
            why: "the sockets of its cgroups are bound to another interface, because the policy was not updated",
        }),
        // A missing uplink is closed.
        (None, CLOSED_IFINDEX) => None,
        (None, _) => Some(Stale {
            what: format!("{interface} has index {present}, but the policy {has}"),
            why: "the sockets of its cgroups are closed, because the policy was not updated",
        }),
    }
}

/// Gives each policy of the namespace the current index of its interface. This writes one word for each policy. Returns the
/// changed policies with their new state.
pub fn follow(datapath: &mut Datapath, lock: &Lock, namespace: Namespace<'_>) -> Result<Vec<PolicyEntry>, Error> {
    let mut changed = Vec::new();
    for entry in datapath.policies()? {
        // The members of groups have a choice: see `uplinks::follow`.
        if entry.exempts() || entry.record.netns_cookie != namespace.cookie || entry.record.uplink != 0 {
            continue;
        }
        let ifindex = index(&text(&entry.record.interface), namespace.links);
        let entry = resolvers::follow(datapath, lock, entry, ifindex, namespace.links)?;
        if ifindex != entry.record.ifindex {
            changed.push(datapath.set_uplink(lock, &entry, ifindex)?);
        }
    }
    Ok(changed)
}

/// The flags of a policy with this enforcement. They select its programs.
pub fn flags(enforcement: &Enforcement) -> u32 {
    let Enforcement { enforce, ingress, other_netns, dns, existing, account } = enforcement;
    let enforced = policy_flags::RESTORE
        | match enforce {
            Enforce::Steer => 0,
            Enforce::Observe => policy_flags::OBSERVE,
            Enforce::Strict => policy_flags::GUARD,
        };
    let existing = match existing {
        Existing::Keep => 0,
        Existing::Rebind => policy_flags::EXISTING_REBIND,
        Existing::Destroy => policy_flags::EXISTING_DESTROY,
    };
    enforced
        | existing
        | flag_if(*ingress == Ingress::Uplink && *enforce != Enforce::Steer, policy_flags::GUARD_INGRESS)
        | flag_if(*other_netns == OtherNetns::Refuse, policy_flags::REFUSE_OTHER_NETNS)
        | flag_if(dns.v4.is_some() || dns.link, policy_flags::DNS4)
        | flag_if(dns.v6.is_some() || dns.link, policy_flags::DNS6)
        | flag_if(dns.link, policy_flags::DNS_LINK)
        | flag_if(*account == Account::True, policy_flags::ACCOUNT)
}

fn flag_if(is_set: bool, flag: u32) -> u32 {
    if is_set { flag } else { 0 }
}

/// The flags of what a policy reaches besides its uplink. Any of it needs the route method.
fn reach_flags(reach: &Reach) -> u32 {
    let Reach { local: Local { host, lan, discovery }, except } = reach;
    let asked = [
        (*host, policy_flags::LOCAL_HOST),
        (*lan, policy_flags::LOCAL_LAN),
        (*discovery, policy_flags::LOCAL_DISCOVERY),
        (!except.is_empty(), policy_flags::EXCEPT),
        (except.iter().any(|exception| exception.by == By::Refuse), policy_flags::REFUSES),
    ];
    asked.into_iter().filter(|(is_asked, _)| *is_asked).fold(0, |flags, (_, flag)| flags | policy_flags::ROUTE | flag)
}

/// The opposite of [`reach_flags`].
fn reach(flags: u32, exceptions: &Exceptions) -> Reach {
    let has = |flag: u32| flags & flag != 0;
    let local = Local {
        host: has(policy_flags::LOCAL_HOST),
        lan: has(policy_flags::LOCAL_LAN),
        discovery: has(policy_flags::LOCAL_DISCOVERY),
    };
    Reach { local, except: exceptions.clone() }
}

/// A number that differs for other exceptions; 0 is none.
fn exceptions_fingerprint(exceptions: &Exceptions) -> u64 {
    let texts: Vec<String> = exceptions.iter().map(ToString::to_string).collect();
    if texts.is_empty() { 0 } else { fingerprint(texts.join("\n").as_bytes()) }
}

/// The target that a record and its exceptions describe.
pub fn target(record: &PolicyRecord, exceptions: &Exceptions) -> Target {
    let interface = text(&record.interface);
    let uplink = match interface.as_str() {
        _ if record.kind == Kind::Exempt as u32 => Uplink::Exempt,
        "" => Uplink::Closed,
        _ if record.members != 0 => GroupName::parse(&interface).map_or(Uplink::Closed, Uplink::Group),
        _ => Uplink::Interface(interface),
    };
    let has = |flag: u32| record.flags & flag != 0;
    let mut dns = Resolvers { link: has(policy_flags::DNS_LINK), ..Resolvers::NONE };
    for address in own_resolvers(record).filter(|_| !dns.link) {
        match address {
            IpAddr::V4(v4) => dns.v4 = Some(v4),
            IpAddr::V6(v6) => dns.v6 = Some(v6),
        }
    }
    let enforcement = Enforcement {
        enforce: enforce(record.flags),
        ingress: if has(policy_flags::GUARD_INGRESS) { Ingress::Uplink } else { Ingress::Any },
        other_netns: other_netns(record.flags),
        existing: existing(record.flags),
        dns,
        account: if has(policy_flags::ACCOUNT) { Account::True } else { Account::False },
    };
    Target { uplink, enforcement, reach: reach(record.flags, exceptions) }
}

/// The enforcement level of a policy with these flags.
pub fn enforce(flags: u32) -> Enforce {
    if flags & policy_flags::GUARD != 0 {
        Enforce::Strict
    } else if flags & policy_flags::OBSERVE != 0 {
        Enforce::Observe
    } else {
        Enforce::Steer
    }
}

/// What a policy with these flags does with sockets of other network namespaces.
pub fn other_netns(flags: u32) -> OtherNetns {
    if flags & policy_flags::REFUSE_OTHER_NETNS == 0 { OtherNetns::Leave } else { OtherNetns::Refuse }
}

/// What a policy with these flags does with older sockets.
pub fn existing(flags: u32) -> Existing {
    match (flags & policy_flags::EXISTING_DESTROY, flags & policy_flags::EXISTING_REBIND) {
        (0, 0) => Existing::Keep,
        (0, _) => Existing::Rebind,
        _ => Existing::Destroy,
    }
}

/// Cuts the text after a whole character, so that a NUL follows it.
pub(super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let end = (0..N.min(text.len() + 1)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

#[cfg(test)]
mod tests {
    use steer_common::{CLOSED_IFINDEX, Kind, Owner, policy_flags};

    use super::{MarkMask, Namespace, padded, present, record, stale};
    use crate::{
        host::link::{Change, Names, Table},
        model::spec::{Account, Enforce, Enforcement, Existing, Ingress, OtherNetns, Reach, Resolvers, Target, Uplink},
    };

    fn links() -> Table {
        let mut links = Table::default();
        links.apply(Change::Present(7, Names { name: "wg0".to_owned(), alternative: Vec::new() }));
        links
    }

    #[test]
    fn records() {
        let links = links();
        let here = Namespace::own(&links, 9, MarkMask::new(0xff00_0000), &[]);
        let enforcement = Enforcement { other_netns: OtherNetns::Refuse, ..Enforcement::default() };
        let steer = |name: &str| Target { uplink: Uplink::Interface(name.to_owned()), enforcement, reach: Reach::NONE };
        let of = |target: &Target| record("vpn", target, Owner::Config, here);
        let vpn = of(&steer("wg0"));
        assert_eq!((vpn.kind, vpn.ifindex, vpn.netns_cookie), (Kind::Steer as u32, 7, 9));
        let strict = policy_flags::RESTORE | policy_flags::GUARD;
        assert_eq!(vpn.flags, strict | policy_flags::REFUSE_OTHER_NETNS, "strict is the default");
        assert_eq!(of(&steer("wg1")).ifindex, CLOSED_IFINDEX);
        assert!(present("vpn", &steer("wg1"), Owner::Config, here).is_err());
        assert_eq!((of(&Target::CLOSED).ifindex, of(&Target::CLOSED).interface), (CLOSED_IFINDEX, [0; 128]));
        assert_eq!(of(&Target::exempt()).kind, Kind::Exempt as u32);
    }

    #[test]
    fn an_index_that_another_link_has() {
        let mut links = links();
        let what = |links: &Table| stale("wg0", Some(7), links).map(|stale| stale.what);
        assert_eq!(what(&links), None);
        assert!(stale("wg0", None, &links).is_some_and(|stale| stale.what.contains("records it as missing")));
        links.apply(Change::Gone(7));
        assert_eq!(what(&links), None, "closed");
        let named = |name: &str| Names { name: name.to_owned(), alternative: Vec::new() };
        links.apply(Change::Present(7, named("eth0")));
        assert_eq!(what(&links).as_deref(), Some("index 7 of the policy belongs to eth0 now, not to wg0"));
        links.apply(Change::Present(9, named("wg0")));
        assert_eq!(what(&links).as_deref(), Some("index 7 of the policy belongs to eth0 now, not to wg0"));
        links.apply(Change::Gone(7));
        assert_eq!(what(&links).as_deref(), Some("wg0 has index 9, but the policy has index 7"));
    }

    #[test]
    fn records_are_read_back() {
        let links = links();
        let mut dns = Resolvers::NONE;
        dns.add("10.0.0.1").expect("an address");
        for existing in [Existing::Keep, Existing::Rebind, Existing::Destroy] {
            for (enforce, ingress) in [
                (Enforce::Steer, Ingress::Any),
                (Enforce::Observe, Ingress::Any),
                (Enforce::Observe, Ingress::Uplink),
                (Enforce::Strict, Ingress::Any),
                (Enforce::Strict, Ingress::Uplink),
            ] {
                let account = if ingress == Ingress::Any { Account::True } else { Account::False };
                let enforcement =
                    Enforcement { enforce, ingress, other_netns: OtherNetns::Refuse, existing, dns, account };
                let target = Target { uplink: Uplink::Interface("wg0".to_owned()), enforcement, reach: Reach::NONE };
                let record =
                    record("vpn", &target, Owner::Config, Namespace::own(&links, 9, MarkMask::new(0xff00_0000), &[]));
                assert_eq!(super::target(&record, &target.reach.except), target);
            }
        }
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(padded::<4>("abcdef"), *b"abc\0");
        assert_eq!(padded::<4>("ab\u{e9}"), *b"ab\0\0");
        assert_eq!(padded::<4>("a"), *b"a\0\0\0");
    }
}
