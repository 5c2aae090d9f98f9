//! A network namespace for a container with several uplinks, and a server behind them.

use anyhow::ensure;
use steer_lab::{Server, Uplinks};

use super::Ways;
use crate::Bed;

/// A network namespace with its own uplinks. They have the names of the bed's uplinks and other indexes.
pub struct OwnNetwork {
    /// The container's namespace is `client`.
    pub net: Uplinks,
    /// Answers behind them.
    pub server: Server,
}

impl OwnNetwork {
    /// Makes one in addition to a bed.
    pub fn new(bed: &Bed) -> anyhow::Result<Self> {
        let mut net = Uplinks::new()?;
        let server = Server::start(&net.server)?;
        net.remove_uplink(1)?;
        net.create_uplink(1)?;
        ensure!(net.ifindex(1)? != bed.net.ifindex(1)?, "the uplink has the same index here and there");
        Ok(Self { net, server })
    }

    /// The uplinks of a container in this namespace.
    pub fn ways(&self) -> Ways<'_> {
        Ways { net: &self.net, server: &self.server }
    }
}
