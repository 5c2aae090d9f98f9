//! `steer explain`: which policy applies to a process or a cgroup, and why.
//!
//! `target`, `look` and `packet` read the host. `chain`, `reasons`, `conclusion`, `fate` and `assembly` are pure.
//!
//! **Invariant:** it only reads. The pins show what is in force. The function that decides about a socket in the kernel also
//! decides here. The configuration is used for the reasons only.

mod assembly;
mod chain;
mod conclusion;
mod document;
mod fate;
mod look;
mod members;
mod packet;
mod reasons;
mod target;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::PathBuf};

pub use document::{
    Attached, Cgroup, Configuration, Decision, Explanation, Foreign, Hop, Kind, LinkState, Match, Netns, Outcome,
    Process, Resolver, Route, Sockets, Subject, Uplink,
};
pub use members::{Members, Predicted};
pub use packet::{Fate, Method, Packet, Rule};
pub use target::{Error, Target};

use crate::{
    host::{cgroup::Hierarchy, policy_files::Store},
    model::uplink::health::State,
};

/// What to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin directory as the user names it. It may be missing.
    pub pin_directory: PathBuf,
    /// The files of the policies.
    pub store: Store,
    /// Whether the user named the configuration file, so that it must exist.
    pub config_is_named: bool,
    /// The destination of the routes, instead of a far address of each family. A packet to it is explained.
    pub to: Option<IpAddr>,
    /// States of members of groups of uplinks, to predict the choice.
    pub assumed: Vec<(String, State)>,
}

/// Explains a target. Needs a tokio runtime, and a thread in the target's network namespace: see [`Target::inside`].
pub async fn explain(options: &Options, hierarchy: &Hierarchy, target: &Target) -> anyhow::Result<Explanation> {
    let facts = look::read(options, hierarchy, target).await?;
    let deciding = chain::deciding(&facts.levels);
    let network = look::read_network(options, &facts, deciding).await?;
    members::check(deciding, &options.assumed)?;
    Ok(assembly::assemble(&facts, deciding, &network, &options.assumed))
}
