//! Policy rules and routes of the route method, in one network namespace, for IPv4 and IPv6.
//!
//! A policy of the route method leaves its sockets unbound and marks them. These rules lead marked packets to a table that
//! mirrors the routes of the uplink, with exceptions:
//!
//! ```text
//! 0       fwmark FLAG/FLAG goto 40000        behind `0: lookup local`
//! 40000   lookup local                       where the kernel's rule for it was moved
//! 40000+n fwmark MARK/MASK lookup TABLE      for policy number n
//! 40999   fwmark FLAG/FLAG unreachable       whatever no table has a route for
//! ```
//!
//! Unmarked packets pass only the first rule. FLAG is the highest bit of the mask; each mark has it.
//!
//! A policy that binds its sockets needs one rule, for IPv6: `0: oif UPLINK lookup TABLE`. It covers what the kernel sends
//! for a bound connection without a socket of its own, such as the acknowledgement in TIME_WAIT: the binding is then only a
//! preference, and a better route by another link would win.
//!
//! [`State::read`] reads the kernel, [`plan()`] says what has to be there, [`write()`] makes the difference, [`remove`] needs
//! no memory, and [`Watch`] reports when to do it again.
//!
//! **Invariant:** once the goto is there, no packet with the flag goes on to the rules behind it, at any moment of a change.
//! Nothing of another instance is changed.

mod contents;
mod entry;
mod facts;
mod hop;
mod leftover;
mod lines;
mod lookup;
mod netlink;
mod passes;
mod plan;
mod rule;
mod selected;
mod state;
mod table;
mod watch;
mod write;

use std::net::IpAddr;

use crate::model::{mark::MarkMask, prefix::Prefix};

pub use facts::facts;
pub use lines::lines;
pub use lookup::{Selector, gateways, leads};
pub use passes::is_discovery;
pub use plan::{Invalid, Plan, plan};
pub use selected::{Refusal, Selected, Sent};
pub use state::{State, is_private};
pub use table::Instance;
pub use watch::{Notified, Watch};
pub use write::{Changes, Failed, Step, keep, remove, steps, write};

/// What has to be there for one instance.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The bits for marks.
    pub mask: MarkMask,
    /// Which steer.
    pub instance: Instance,
    /// The policies of the route method.
    pub marked: Vec<Marked>,
    /// The uplinks of policies that bind and must not leak.
    pub bound: Vec<u32>,
}

/// A policy of the route method.
#[derive(Clone, Debug)]
pub struct Marked {
    /// Its number, which its mark and its table have.
    pub number: u8,
    /// The index of its uplink; `None`: missing.
    pub uplink: Option<u32>,
    /// What is reached directly.
    pub local: Local,
    /// Addresses that only the uplink leads to.
    pub resolvers: Vec<IpAddr>,
    /// Destinations that go elsewhere. Of those that contain a destination, and of the networks of this host, the longest
    /// prefix counts; of equal ones an exception, and of two exceptions the last.
    pub exceptions: Vec<Exception>,
}

/// What a policy reaches without its uplink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local {
    /// The networks that this host is connected to.
    pub lan: bool,
    /// Discovery of services in these networks, by multicast and broadcast.
    pub discovery: bool,
}

/// Destinations that do not go by the uplink.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// The destinations.
    pub to: Prefix,
    /// Where they go.
    pub by: By,
}

/// Where an exception goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By the link of this index; `None`: it is missing.
    Link(Option<u32>),
    /// Where the main table leads to.
    Main,
    /// Nowhere.
    Refuse,
}

/// What the program on a policy's packets decides about a link that is not the uplink.
///
/// The longest prefix of the packet's link counts, then the longest of link 0. Without any, the packet is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// The index of the link; 0: any; [`REFUSED`](steer_common::reach::REFUSED): what exceptions refuse.
    pub ifindex: u32,
    /// The destinations.
    pub prefix: Prefix,
    /// Whether they may leave by the link, or are refused.
    pub allow: bool,
}
