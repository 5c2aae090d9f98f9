//! Network interfaces: resolves names and alternative names to indexes in one network namespace, and follows changes.
//!
//! **Invariant:** only reads. A name that no link has now does not resolve, even if a link had it before.

mod message;
mod near;
pub(crate) mod network;
mod reading;
mod table;
mod traffic;
mod watch;

use std::io;

use thiserror::Error;

use crate::model::quote::shown;

pub use near::{Near, near};
pub use reading::read;
pub use table::{Change, Names, Table};
pub use traffic::{Traffic, traffic};
pub use watch::Watch;

/// What can go wrong with interfaces.
#[derive(Debug, Error)]
pub enum Error {
    /// Netlink failed.
    #[error("list interfaces over netlink: {0}")]
    Netlink(#[source] rtnetlink::Error),
    /// The netlink socket failed.
    #[error("open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// A full reading failed.
    #[error("read all interfaces over netlink: {0}")]
    Read(#[source] io::Error),
    /// The thread that reads all interfaces ended early.
    #[error("read all interfaces over netlink: the thread that reads them ended")]
    Ended,
    /// No such interface.
    #[error("there is no interface {name:?} in this network namespace{}", found(.known))]
    Missing {
        /// The requested name.
        name: String,
        /// The existing interfaces.
        known: Vec<String>,
    },
    /// The network namespace has no readable identity.
    #[error("read the network namespace's cookie: {0}")]
    Cookie(#[source] io::Error),
}

/// The name of the interface that has this index now, in the calling thread's network namespace.
pub fn name_of(ifindex: i32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(u32::try_from(ifindex).ok()?).ok()?;
    Some(name.to_string_lossy().into_owned())
}

fn found(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; there are {}", shown(&known.join(", "))) }
}
