//! A client that would send by another link than it may.

use steer_lab::NewSocket;

use crate::{Bed, Cgroup, User, held::Told};

/// It does something when asked only. Dropped, it is killed.
pub struct Strayed(Told);

impl Strayed {
    /// Starts it in a cgroup; once it is there, so are its first sockets.
    pub fn start(bed: &Bed, cgroup: &Cgroup, user: User, link: &str) -> anyhow::Result<Self> {
        let told = Told::start(bed.client(Some(cgroup), user)?.args(["--stray", link]))?;
        let mut strayed = Self(told);
        strayed.round(None)?;
        Ok(strayed)
    }

    /// Has it make sockets, and, given a port, send to that from all it has. Returns what the new ones were bound to.
    pub fn round(&mut self, port: Option<u16>) -> anyhow::Result<Vec<NewSocket>> {
        self.0.tell(&port.map(|port| port.to_string()).unwrap_or_default())
    }
}
