//! `steer explain --to`: the kernel's answers about a packet of a new socket. The module `fate` judges them.
//!
//! **Invariant:** the kernel finds the routes, and the map of the programs says what passes. Nothing is sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use serde::Serialize;
use steer_common::{Line, Mark, Verdict, decide};

use super::document::Hop;
use crate::{
    host::{
        link::network::{self, Entry, Network},
        route::{Selected, Sent, State},
    },
    kernel::{Passes, PolicyEntry},
};

/// How a policy holds its sockets to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// They are bound to it.
    Bind,
    /// They have a mark, which rules lead to a table.
    Route,
}

/// What happens to a packet of a new socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// Its destination.
    pub destination: IpAddr,
    /// How the socket is held. Absent: it is not.
    pub method: Option<Method>,
    /// The mark of the socket. Absent without one.
    pub mark: Option<u32>,
    /// The rule that leads to the table, or refuses. Absent if the packet meets none.
    pub rule: Option<Rule>,
    /// The table with the route. Absent without a route.
    pub table: Option<u32>,
    /// The destinations of the route.
    pub prefix: Option<String>,
    /// The next hops of the route.
    pub hops: Vec<Hop>,
    /// The exception of the policy that the route is for.
    pub exception: Option<String>,
    /// What happens.
    pub fate: Fate,
    /// The error that the program gets. Absent if the packet leaves, or is stopped later.
    pub error: Option<String>,
    /// The same in a sentence.
    pub conclusion: String,
    /// What to set in the policy to get something else.
    pub hint: Option<String>,
}

/// A policy rule of the network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its preference.
    pub preference: u32,
    /// All of it, for people.
    pub text: String,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It leaves by the uplink.
    Uplink,
    /// It leaves by another link.
    OtherLink,
    /// It stays on this host.
    ThisHost,
    /// The program's call fails, because steer refuses it.
    Refused,
    /// The program's call fails, because there is no route.
    NoRoute,
    /// It is stopped when it would leave by a link that the policy does not allow.
    Stopped,
    /// The program's call fails, because the uplink is missing.
    Closed,
    /// No policy holds the socket. It leaves by the routes of this host.
    Unsteered,
}

/// How new sockets are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// No policy holds them.
    Free,
    /// They cannot be created.
    Refused,
    /// They are bound to an index that no link has.
    Closed,
    Bound(u32),
    Marked(Mark),
}

impl Socket {
    /// `is_present`: whether the link with the policy's index exists.
    pub(super) fn of(policy: Option<&PolicyEntry>, line: Line, netns_cookie: u64, is_present: bool) -> Self {
        let Some(policy) = policy else { return Self::Free };
        match decide(Some(&policy.record), line, netns_cookie) {
            Verdict::Leave(_) => Self::Free,
            Verdict::Refuse(_) => Self::Refused,
            Verdict::Bind(ifindex) if is_present => Self::Bound(ifindex.unsigned_abs()),
            Verdict::Bind(_) | Verdict::Close(_) => Self::Closed,
            Verdict::Mark(mark) => Self::Marked(mark),
        }
    }

    pub(super) fn method(self) -> Option<Method> {
        match self {
            Self::Bound(_) | Self::Closed => Some(Method::Bind),
            Self::Marked(_) => Some(Method::Route),
            Self::Free | Self::Refused => None,
        }
    }

    fn sent(self, to: IpAddr) -> Sent {
        let (mark, bound_to) = match self {
            Self::Marked(mark) => (mark.value, None),
            Self::Bound(link) => (0, Some(link)),
            Self::Free | Self::Refused | Self::Closed => (0, None),
        };
        // As `connect` does.
        let to = match to {
            IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            to => to,
        };
        Sent { to, mark, bound_to }
    }
}

/// The kernel's answer for a socket.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Route(Entry),
    /// IPv4 looks for the destination on this link, without a route.
    Neighbour(network::Hop),
    None(Errno),
}

impl Answer {
    pub(super) async fn ask(network: &Network, socket: Socket, to: IpAddr) -> anyhow::Result<Self> {
        let Sent { to, mark, bound_to } = socket.sent(to);
        let packet = network::Packet { to, bound_to, mark, from: None };
        Ok(match network.look_up(packet).await? {
            Ok(entry) => Self::Route(entry),
            Err(error) => match network.neighbour(packet).await? {
                Some(hop) => Self::Neighbour(hop),
                None => Self::None(error),
            },
        })
    }

    /// The next hops of the route, if there is one.
    pub(super) fn hops(&self) -> &[network::Hop] {
        match self {
            Self::Route(entry) => &entry.hops,
            Self::Neighbour(_) | Self::None(_) => &[],
        }
    }
}

/// What was read about a packet.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) destination: IpAddr,
    pub(super) socket: Socket,
    pub(super) answer: Answer,
    /// The answer for a socket that is not held.
    pub(super) free: Answer,
    pub(super) rules: State,
    /// What passes on other links for the policy.
    pub(super) passes: Passes,
    /// Whether the programs know the destination as an address of this host.
    pub(super) is_own: bool,
}

impl Look {
    /// The rule and the route, of what was found or of what refuses.
    pub(super) fn way(&self) -> (Option<Selected>, Option<u32>, Option<String>) {
        let sent = self.socket.sent(self.destination);
        match &self.answer {
            Answer::Route(entry) => {
                (self.rules.rule_to(sent, entry.table), Some(entry.table), Some(entry.prefix.to_string()))
            }
            Answer::Neighbour(_) => (None, None, None),
            Answer::None(error) => {
                let refusal = self.rules.refusal(sent, *error);
                let (table, prefix) = refusal.route.unzip();
                (refusal.rule, table, prefix.map(|prefix| prefix.to_string()))
            }
        }
    }
}
