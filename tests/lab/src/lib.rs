//! Labs to test steering: network namespaces joined by veth uplinks, a server that reports the address that it saw, a
//! client program that has no knowledge of steering, and captures that show what left on every other link.
//!
//! A lab uses anonymous namespaces, so nothing remains on the host when its process ends, however it ends.
//!
//! **Invariant:** nothing here changes an interface, route, sysctl or port of the caller's namespace. Nothing here
//! depends on steer: the observations of a lab are evidence only because it shares no code with the agent.

pub mod capture;
pub mod cli;
pub mod clients;
mod echo;
pub mod error;
pub mod escape;
pub mod forge;
pub mod gaps;
pub mod hold;
pub mod link;
pub mod load;
pub mod lock;
pub mod name_server;
pub mod netns;
pub mod packet;
pub mod probe;
pub mod prober;
pub mod resolve;
pub mod server;
mod service;
pub mod stray;
mod sys;
pub mod table_log;
pub mod uplinks;
pub mod wait;

pub use capture::{Capture, leaks};
pub use clients::{Clients, ClientsReport};
pub use error::{Error, Result};
pub use escape::{Attempt, Step, Vector};
pub use hold::Hold;
pub use link::{Tun, create_veth};
pub use load::{Load, LoadReport};
pub use name_server::NameServer;
pub use netns::Netns;
pub use packet::{Direction, Kind, Packet};
pub use probe::{Family, Outcome, Probe, Proto, Stage, parse_outcomes};
pub use resolve::Resolve;
pub use server::{Seen, Server, Transport};
pub use stray::{NewSocket, Stray};
pub use table_log::{RouteSeen, RuleSeen, Tables};
pub use uplinks::{SERVER_V4, SERVER_V6, Uplinks, client_v4, client_v6, gateway_v4, gateway_v6};
pub use wait::{wait_for, wait_until};
