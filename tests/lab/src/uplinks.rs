//! The standard lab: a client with several uplinks, all of which reach the same server.
//!
//! ```text
//! client  a0 10.0.0.2/24 fd00:0::2/64  <->  b0 10.0.0.1/24 fd00:0::1/64  server   default via b0, metric 100
//!         a1 10.0.1.2/24 fd00:1::2/64  <->  b1 10.0.1.1/24 fd00:1::1/64           default via b1, metric 200
//!         ...                                                         lo 198.51.100.1/32 fd00:ffff::1/128
//! ```
//!
//! **Invariant:** the server is reachable over every uplink without address translation, so the source address that it
//! sees identifies the uplink.

use crate::{
    error::{Error, Result},
    link::create_veth,
    netns::Netns,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The server's IPv4 address.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The server's IPv6 address.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 1);

/// The client's IPv4 address on uplink `i`.
pub const fn client_v4(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, i, 2)
}

/// The client's IPv6 address on uplink `i`.
pub const fn client_v6(i: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, i as u16, 0, 0, 0, 0, 0, 2)
}

/// The server's IPv4 address on uplink `i`, the client's gateway there.
pub const fn gateway_v4(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, i, 1)
}

/// The server's IPv6 address on uplink `i`, the client's gateway there.
pub const fn gateway_v6(i: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, i as u16, 0, 0, 0, 0, 0, 1)
}

/// A client, a server and the uplinks between them.
#[derive(Debug)]
pub struct Uplinks {
    /// The namespace of the programs under test.
    pub client: Netns,
    /// The namespace of the [`Server`](crate::Server).
    pub server: Netns,
    /// The client's names of the uplinks.
    links: Vec<String>,
}

impl Uplinks {
    /// Two uplinks.
    pub fn new() -> Result<Self> {
        Self::with(2)
    }

    /// Any number of uplinks. Routes of a lower-numbered uplink are preferred.
    pub fn with(uplinks: u8) -> Result<Self> {
        let mut lab = Self {
            client: Netns::new("client")?,
            server: Netns::new("server")?,
            links: (0..uplinks).map(|i| format!("a{i}")).collect(),
        };
        lab.server.add_address("lo", SERVER_V4.into(), 32)?;
        lab.server.add_address("lo", SERVER_V6.into(), 128)?;
        for i in 0..uplinks {
            lab.create_uplink(i)?;
        }
        Ok(lab)
    }

    /// How many uplinks there are, with those that are removed.
    pub fn count(&self) -> u8 {
        u8::try_from(self.links.len()).unwrap_or(u8::MAX)
    }

    /// The client's name of uplink `i`; `a{i}` until it is renamed.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn link(&self, i: u8) -> &str {
        &self.links[usize::from(i)]
    }

    /// The server's name of uplink `i`.
    pub fn server_link(&self, i: u8) -> String {
        format!("b{i}")
    }

    /// The client's current index of uplink `i`; an error while the uplink is removed.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn ifindex(&self, i: u8) -> Result<u32> {
        self.client.ifindex(self.link(i))
    }

    /// Lets the server drop everything it would send by uplink `i`, or do so no longer. The link goes on.
    pub fn black_hole(&self, i: u8, is_on: bool) -> Result<()> {
        self.server.black_hole(client_v4(i).into(), is_on)?;
        self.server.black_hole(client_v6(i).into(), is_on)
    }

    /// Deletes both ends of uplink `i`.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn remove_uplink(&self, i: u8) -> Result<()> {
        self.client.delete_link(self.link(i))
    }

    /// Makes uplink `i` again, with its first name, a new index, and its addresses and routes.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn create_uplink(&mut self, i: u8) -> Result<()> {
        let (a, b) = (format!("a{i}"), self.server_link(i));
        create_veth(&self.client, &a, &self.server, &b)?;
        self.links[usize::from(i)].clone_from(&a);
        self.server.add_address(&b, gateway_v4(i).into(), 24)?;
        self.server.add_address(&b, gateway_v6(i).into(), 64)?;
        // The server learns the client's link-layer address from the client's own request. It could not send such a
        // request: its answers come from the address of `lo`, and there is no link-local address. So the entry must not
        // become stale, which would happen within seconds.
        self.server.write_sysctl(&format!("net/ipv6/neigh/{b}/delay_first_probe_time"), "3600")?;
        // The client can send one with a packet only. Without, its entry would fail, and IPv6 would use the next default route.
        self.client.write_sysctl(&format!("net/ipv6/neigh/{a}/delay_first_probe_time"), "3600")?;
        self.server.set_up(&b)?;
        self.restore_client(i)?;
        self.server.wait_running(&b)
    }

    /// Brings up the server's end of uplink `i`, and adds its missing addresses.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn restore_server(&self, i: u8) -> Result<()> {
        let link = self.server_link(i);
        self.server.set_up(&link)?;
        self.server.add_address(&link, gateway_v4(i).into(), 24)?;
        self.server.add_address(&link, gateway_v6(i).into(), 64)?;
        self.server.wait_running(&link)?;
        self.client.wait_running(self.link(i))
    }

    /// Renames the client's end of uplink `i`. It keeps its index, its addresses and its routes.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn rename_uplink(&mut self, i: u8, new: &str) -> Result<()> {
        match self.client.rename_link(self.link(i), new) {
            // Before Linux 6.2 only an interface that is down can be renamed, and it then loses addresses and routes.
            Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                self.client.set_down(self.link(i))?;
                self.client.rename_link(self.link(i), new)?;
            }
            result => result?,
        }
        new.clone_into(&mut self.links[usize::from(i)]);
        self.restore_client(i)
    }

    /// Brings up the client's end and adds its missing addresses and routes.
    ///
    /// # Panics
    /// When there is no uplink `i`.
    pub fn restore_client(&self, i: u8) -> Result<()> {
        let (client, link, metric) = (&self.client, self.link(i), 100 * (u32::from(i) + 1));
        client.set_up(link)?;
        for (address, prefix_len) in [(IpAddr::V4(client_v4(i)), 24), (IpAddr::V6(client_v6(i)), 64)] {
            client.add_address(link, address, prefix_len)?;
        }
        for gateway in [IpAddr::V4(gateway_v4(i)), IpAddr::V6(gateway_v6(i))] {
            client.add_default_route(gateway, link, metric)?;
        }
        client.wait_running(link)
    }
}
