//! What to set in a policy to reach what it does not.
//!
//! **Invariant:** each hint names the key and the words as they are written in the configuration.

use steer_common::{Counter, EventRecord, address::ip_address};

use crate::host::route;

/// The first interface of every network namespace is its loopback.
const LOOPBACK: i32 = 1;
/// Port of DNS.
const DNS: u32 = 53;

/// For an address of this host.
pub(super) const HOST: &str = "`local = [\"host\"]` in the policy reaches this host";
/// For a name server of this host.
pub(super) const RESOLVER: &str =
    "a steered socket does not reach this host's resolver; give the policy a resolver by `dns` (or --dns)";
/// For an address in a directly connected network.
pub(super) const LAN: &str = "`local = [\"lan\"]` in the policy reaches the networks that this host is connected to";
/// For multicast and broadcast that find services.
pub(super) const DISCOVERY: &str =
    "`local = [\"lan\", \"discovery\"]` in the policy allows discovery in the networks that this host is connected to";

/// For what was stopped.
pub(super) fn of(record: &EventRecord) -> Option<&'static str> {
    match Counter::of_index(record.reason)? {
        Counter::StoppedLocal if record.peer.port == DNS => Some(RESOLVER),
        Counter::StoppedLocal => Some(HOST),
        Counter::StoppedEgress if route::is_discovery(ip_address(record.peer.address)) => Some(DISCOVERY),
        Counter::StoppedDns => {
            Some("not the policy's resolver; a new socket without a source route is redirected to it")
        }
        Counter::StoppedEgress if record.ifindex == LOOPBACK => {
            Some("a raw packet to this host whose source is neither its destination nor a loopback address")
        }
        _ => None,
    }
}
