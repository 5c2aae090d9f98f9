//! Judges what happens to a packet, by the kernel's answers and by what the programs do with calls and packets. Pure.

use std::net::IpAddr;

use nix::errno::Errno;
use steer_common::policy_flags;

use super::{
    document::Hop,
    packet::{Answer, Fate, Look, Packet, Rule, Socket},
};
use crate::{
    host::{
        link::{
            Table,
            network::{self, Entry},
        },
        route,
    },
    kernel::{PolicyEntry, passes},
    model::{prefix::Prefix, spec::Exception},
    observe::hints,
};

const LOOPBACK: u32 = 1;

/// Fate, error, conclusion.
struct Judgment(Fate, Option<Errno>, String);

pub(super) fn packet(look: &Look, policy: Option<&PolicyEntry>, table: &Table) -> Packet {
    let named = |hop: &network::Hop| super::assembly::named(hop, table);
    let scene = Scene { look, policy, table };
    let Judgment(fate, error, conclusion) = scene.judge();
    let asks_routes = !matches!(fate, Fate::Refused | Fate::Closed);
    let (rule, number, prefix) = if asks_routes { look.way() } else { (None, None, None) };
    let hops = match &look.answer {
        _ if !asks_routes => Vec::new(),
        Answer::Route(entry) => entry.hops.iter().map(named).collect(),
        Answer::Neighbour(hop) => vec![named(hop)],
        Answer::None(_) => Vec::new(),
    };
    let mark = match look.socket {
        Socket::Marked(mark) => Some(mark.value),
        _ => None,
    };
    Packet {
        destination: look.destination,
        method: look.socket.method(),
        mark,
        rule: rule.map(|rule| Rule { preference: rule.preference, text: rule.text }),
        table: number,
        prefix,
        hops,
        exception: scene.exception().filter(|_| asks_routes).map(ToString::to_string),
        hint: scene.hint(fate),
        fate,
        error: error.map(|error| format!("{error:?}")),
        conclusion: format!("a packet to {} {conclusion}", look.destination),
    }
}

#[derive(Clone, Copy)]
struct Scene<'a> {
    look: &'a Look,
    policy: Option<&'a PolicyEntry>,
    table: &'a Table,
}

impl<'a> Scene<'a> {
    fn has(self, flag: u32) -> bool {
        self.policy.is_some_and(|policy| policy.record.flags & flag != 0)
    }

    fn is_uplink(self, ifindex: u32) -> bool {
        self.policy.is_some_and(|policy| policy.is_uplink(ifindex))
    }

    fn judge(self) -> Judgment {
        let to = self.look.destination;
        let is_this_host = to.is_loopback() || to.is_unspecified();
        let is_own = self.look.is_own && !self.passes(LOOPBACK);
        match self.look.socket {
            Socket::Free => self.free(),
            Socket::Refused => {
                Judgment(Fate::Refused, Some(Errno::EPERM), "is not sent: no socket can be created (EPERM)".to_owned())
            }
            Socket::Bound(_) | Socket::Marked(_) | Socket::Closed
                if is_this_host && !self.has(policy_flags::LOCAL_HOST) =>
            {
                let but = if self.has(policy_flags::GUARD) {
                    ""
                } else if self.has(policy_flags::OBSERVE) {
                    "; a datagram of an unconnected socket is observed: strict would stop this"
                } else {
                    "; only strict refuses a datagram of an unconnected socket"
                };
                let why = format!(
                    "is not sent: the call is refused (EPERM), because the policy does not reach this host{but}"
                );
                Judgment(Fate::Refused, Some(Errno::EPERM), why)
            }
            Socket::Bound(_) | Socket::Marked(_) | Socket::Closed
                if is_own && !is_this_host && !self.has(policy_flags::LOCAL_HOST) =>
            {
                let why = "is not sent: `connect` is refused (EPERM), because the policy does not reach this host, which has the address";
                Judgment(Fate::Refused, Some(Errno::EPERM), why.to_owned())
            }
            Socket::Closed => {
                let error = if to.is_ipv4() { Errno::ENODEV } else { Errno::ENETUNREACH };
                Judgment(Fate::Closed, Some(error), format!("is not sent: the socket is closed ({error:?})"))
            }
            Socket::Bound(_) | Socket::Marked(_) => match &self.look.answer {
                Answer::Route(entry) => self.route(entry),
                Answer::Neighbour(hop) => {
                    let name = self.name(hop.ifindex);
                    let how = format!(
                        "leaves by the uplink {name}, which has no route to it: it is treated as a neighbour on the link"
                    );
                    Judgment(Fate::Uplink, None, how)
                }
                Answer::None(error) => self.no_route(*error),
            },
        }
    }

    fn free(self) -> Judgment {
        let how = match &self.look.answer {
            Answer::Route(entry) if entry.is_local => "is not steered, and stays on this host".to_owned(),
            Answer::Route(entry) => format!("is not steered, and leaves by {}", self.ways(&entry.hops)),
            Answer::Neighbour(hop) => format!("is not steered, and leaves by {}", self.name(hop.ifindex)),
            Answer::None(error) => {
                return Judgment(Fate::NoRoute, Some(*error), format!("is not steered, and has no route ({error:?})"));
            }
        };
        Judgment(Fate::Unsteered, None, how)
    }

    fn route(self, entry: &Entry) -> Judgment {
        let ways = self.ways(&entry.hops);
        if entry.is_local || entry.hops.iter().all(|hop| hop.ifindex == LOOPBACK) {
            return Judgment(Fate::ThisHost, None, "stays on this host, which has the address".to_owned());
        }
        let others = entry.hops.iter().filter(|hop| !self.is_uplink(hop.ifindex) && hop.ifindex != LOOPBACK);
        let others: Vec<&network::Hop> = others.collect();
        let mut stopped = others.iter().filter(|hop| !self.passes(hop.ifindex));
        match (others.as_slice(), stopped.next()) {
            ([], _) => Judgment(Fate::Uplink, None, format!("leaves by the uplink {ways}")),
            (_, None) => Judgment(Fate::OtherLink, None, format!("leaves by {ways}, {}", self.reason())),
            (_, Some(_)) if !self.has(policy_flags::GUARD) => {
                let why = if self.has(policy_flags::OBSERVE) {
                    "is observed: strict would stop this"
                } else {
                    "enforce = \"steer\" stops no packets"
                };
                let how = format!("leaves by {ways}, for the route leads there, and {why}");
                Judgment(Fate::OtherLink, None, how)
            }
            (_, Some(hop)) => {
                let link = self.name(hop.ifindex);
                let how =
                    format!("is stopped: it would leave by {link}, where the policy lets nothing to this address pass");
                Judgment(Fate::Stopped, None, how)
            }
        }
    }

    fn no_route(self, error: Errno) -> Judgment {
        let is_missing = self.policy.is_some_and(|policy| !policy.is_open());
        let why = match self.exception() {
            Some(exception) => format!("the exception {exception} of the policy leads nowhere"),
            None if is_missing => "the uplink is missing".to_owned(),
            None => "there is no route".to_owned(),
        };
        Judgment(Fate::NoRoute, Some(error), format!("is not sent: {why} ({error:?})"))
    }

    /// Whether the programs let it pass on a link that is not the uplink.
    fn passes(self, ifindex: u32) -> bool {
        passes(&self.look.passes, ifindex, self.look.destination)
    }

    /// Why it may leave by another link.
    fn reason(self) -> String {
        match self.exception() {
            Some(exception) => format!("by the exception {exception} of the policy"),
            None => "a network of this host, which `local` in the policy allows".to_owned(),
        }
    }

    /// The exception that the route is for.
    fn exception(self) -> Option<&'a Exception> {
        self.look.socket.method()?;
        let exception = self.policy?.exceptions.deciding(&Prefix::host(self.look.destination))?;
        let of_route = |prefix: Option<String>| prefix.and_then(|prefix| prefix.parse::<Prefix>().ok());
        let (_, _, prefix) = self.look.way();
        of_route(prefix).is_some_and(|prefix| exception.to.covers(&prefix)).then_some(exception)
    }

    /// What to set if this is not what the user wants.
    fn hint(self, fate: Fate) -> Option<String> {
        let to = self.look.destination;
        let is_held = matches!(self.look.socket, Socket::Bound(_) | Socket::Marked(_) | Socket::Closed);
        let free = match &self.look.free {
            Answer::Route(entry) => Some(entry),
            Answer::Neighbour(_) | Answer::None(_) => None,
        };
        match fate {
            Fate::Refused if is_held => {
                Some(format!("{}; for a resolver of this host, set `dns` instead", hints::HOST))
            }
            _ if !is_held || fate == Fate::OtherLink || fate == Fate::ThisHost => None,
            _ if route::is_discovery(to) || free.is_some_and(|free| free.is_broadcast) => {
                self.unless(policy_flags::LOCAL_DISCOVERY, hints::DISCOVERY)
            }
            _ if self.exception().is_some() => None,
            _ if free.is_some_and(|free| free.is_local) => self.unless(policy_flags::LOCAL_HOST, hints::HOST),
            _ if free.is_some_and(|free| self.is_near(to, free)) => {
                if route::is_private(Prefix::host(to)) {
                    self.unless(policy_flags::LOCAL_LAN, hints::LAN)
                } else {
                    Some(hints::PUBLIC.to_owned())
                }
            }
            _ => None,
        }
    }

    /// The hint, unless the policy has what it names.
    fn unless(self, flag: u32, hint: &str) -> Option<String> {
        (!self.has(flag)).then(|| hint.to_owned())
    }

    /// Whether the destination is in a network of another link than the uplink.
    fn is_near(self, to: IpAddr, free: &Entry) -> bool {
        let is_direct = |hop: &network::Hop| hop.gateway.is_none() && !self.is_uplink(hop.ifindex);
        !to.is_multicast() && free.prefix.len() > 0 && !free.hops.is_empty() && free.hops.iter().all(is_direct)
    }

    fn name(self, ifindex: u32) -> String {
        let name = i32::try_from(ifindex).ok().and_then(|ifindex| self.table.name(ifindex));
        name.map_or_else(|| format!("the link of index {ifindex}"), str::to_owned)
    }

    fn ways(self, hops: &[network::Hop]) -> String {
        let way = |hop: &network::Hop| {
            let Hop { interface, gateway, .. } = super::assembly::named(hop, self.table);
            gateway.map_or_else(|| interface.clone(), |gateway| format!("{interface} via {gateway}"))
        };
        hops.iter().map(way).collect::<Vec<_>>().join(" or ")
    }
}
