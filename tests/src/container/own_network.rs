//! A network namespace for a container that has several ways out, and a server behind them.

use anyhow::ensure;
use steer_lab::{Server, Uplinks};

use super::Ways;
use crate::Bed;

/// A network namespace with uplinks of its own, called as the bed's are, with other indexes.
pub struct OwnNetwork {
    /// The container's namespace is `client`.
    pub net: Uplinks,
    /// Answers behind them.
    pub server: Server,
}

impl OwnNetwork {
    /// Makes one beside a bed.
    pub fn new(bed: &Bed) -> anyhow::Result<Self> {
        let mut net = Uplinks::new()?;
        let server = Server::start(&net.server)?;
        net.remove_uplink(1)?;
        net.create_uplink(1)?;
        ensure!(net.ifindex(1)? != bed.net.ifindex(1)?, "the uplink has the same index here and there");
        Ok(Self { net, server })
    }

    /// Where a container in it is.
    pub fn ways(&self) -> Ways<'_> {
        Ways { net: &self.net, server: &self.server }
    }
}
