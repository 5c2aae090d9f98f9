//! A client that tries to send by a link that its policy does not allow.

use steer_lab::NewSocket;

use crate::{Bed, Cgroup, User, held::RequestClient};

/// It acts only on request. On drop, it is killed.
pub struct Strayed(RequestClient);

impl Strayed {
    /// Starts it in a cgroup. When this returns, its first sockets exist.
    pub fn start(bed: &Bed, cgroup: &Cgroup, user: User, link: &str) -> anyhow::Result<Self> {
        let client = RequestClient::start(bed.client(Some(cgroup), user)?.args(["--stray", link]))?;
        let mut strayed = Self(client);
        strayed.round(None)?;
        Ok(strayed)
    }

    /// Makes it create sockets and, if a port is given, send to that port from all its sockets. Returns the interfaces
    /// of the new sockets.
    pub fn round(&mut self, port: Option<u16>) -> anyhow::Result<Vec<NewSocket>> {
        self.0.request(&port.map(|port| port.to_string()).unwrap_or_default())
    }
}
