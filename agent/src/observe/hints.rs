//! What to set in a policy to reach what it does not.
//!
//! **Invariant:** each hint names the key and the words as they are written in the configuration.

use std::net::IpAddr;

use steer_common::{Counter, EventRecord, LimitKey, address::ip_address};

use crate::{host::route, kernel::text};

/// The first interface of every network namespace is its loopback.
const LOOPBACK: i32 = 1;
/// Port of DNS.
const DNS: u32 = 53;

/// For an address of this host.
pub(super) const HOST: &str = "`local = [\"host\"]` in the policy reaches this host";
/// For a socket with a loopback address that sends to another host.
const FROM_LOOPBACK: &str = "a socket that is bound to a loopback address reaches this host only";
/// For a group of IPv6 that is not one of discovery.
const GROUP_V6: &str = "unless the program names a link (IPV6_MULTICAST_IF, or a scope), the kernel sends to a group of IPv6 by the \
                        first link, not by the policy's routes";
/// For `bind` to a loopback address.
const UNREACHABLE: &str =
    "nothing reaches a steered socket on a loopback address; with `local = [\"host\"]` in the policy, this host does";
/// For `bind` to an address of another link.
const FOREIGN: &str = "the address belongs to another link: what leaves by the uplink with it gets no answer";
/// For an option that binds to an interface with the name of an address.
const NAME_IS_ADDRESS: &str = "the program was given an address, and tries first whether an interface has that name; curl goes on with the address";
/// For a name server of this host.
pub(super) const RESOLVER: &str =
    "a steered socket does not reach this host's resolver; give the policy a resolver by `dns` (or --dns)";
/// For an address in a directly connected network.
pub(super) const LAN: &str = "`local = [\"lan\"]` in the policy reaches the networks that this host is connected to";
/// For a public address in a directly connected network.
pub(super) const PUBLIC: &str = "`lan` has private networks only, because a DHCP server or a router chooses what is on the link; an \
                                 exception reaches a public one: `except = [\"PREFIX=INTERFACE\"]`";
/// For multicast and broadcast that find services.
pub(super) const DISCOVERY: &str =
    "`local = [\"lan\", \"discovery\"]` in the policy allows discovery in the networks that this host is connected to";

fn is_this_host(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

fn is_group_v6(address: IpAddr) -> bool {
    address.is_ipv6() && address.is_multicast()
}

/// For what was stopped.
pub(super) fn of(record: &EventRecord) -> Option<&'static str> {
    match Counter::of_index(LimitKey::of(record).counter())? {
        Counter::StoppedLocal if record.peer.port == DNS && is_this_host(ip_address(record.peer.address)) => {
            Some(RESOLVER)
        }
        Counter::StoppedLocal if is_this_host(ip_address(record.peer.address)) => Some(HOST),
        Counter::StoppedLocal => Some(FROM_LOOPBACK),
        Counter::UnreachableBind => Some(UNREACHABLE),
        Counter::ForeignSource => Some(FOREIGN),
        Counter::StoppedSetsockopt if text(&record.interface).parse::<IpAddr>().is_ok() => Some(NAME_IS_ADDRESS),
        Counter::StoppedEgress if route::is_discovery(ip_address(record.peer.address)) => Some(DISCOVERY),
        Counter::StoppedEgress if is_group_v6(ip_address(record.peer.address)) => Some(GROUP_V6),
        Counter::StoppedExcept => Some("an exception of the policy refuses this destination"),
        Counter::StoppedDns => {
            Some("not the policy's resolver; a new socket without a source route is redirected to it")
        }
        Counter::StoppedEgress if record.ifindex == LOOPBACK => {
            Some("a raw packet to this host whose source is neither its destination nor a loopback address")
        }
        _ => None,
    }
}
