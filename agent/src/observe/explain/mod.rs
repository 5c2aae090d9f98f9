//! `steer explain`: which policy holds a process or a cgroup, and why.
//!
//! What is looked at (`target`, `look`) and what is said of it (`chain`, `reasons`, `conclusion`, `assembly`) are apart; the latter is
//! pure.
//!
//! **Invariant:** only looks. What is in force is told from the pins, and what becomes of a socket by the function that decides it
//! in the kernel; the configuration only tells why.

mod assembly;
mod chain;
mod conclusion;
mod document;
mod look;
mod reasons;
mod target;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::PathBuf};

pub use document::{
    Attached, Cgroup, Configuration, Decision, Explanation, Foreign, Hop, Kind, LinkState, Match, Netns, Outcome,
    Process, Resolver, Route, Sockets, Subject, Uplink,
};
pub use target::{Error, Target};

use crate::host::{cgroup::Hierarchy, policy_files::Store};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin directory as its user names it; it need not exist.
    pub pin_directory: PathBuf,
    /// Where policies are kept.
    pub store: Store,
    /// Whether the configuration file was named, so that it should be there.
    pub config_is_named: bool,
    /// Whither routes are asked for, instead of far addresses of both families.
    pub to: Option<IpAddr>,
}

/// Explains a target. Needs a tokio runtime, and a thread in the target's network namespace: see [`Target::inside`].
pub async fn explain(options: &Options, hierarchy: &Hierarchy, target: &Target) -> anyhow::Result<Explanation> {
    let facts = look::look(options, hierarchy, target).await?;
    let deciding = chain::deciding(&facts.levels);
    let network = look::look_at_network(options, &facts, deciding).await?;
    Ok(assembly::assemble(&facts, deciding, &network))
}
