//! A WireGuard tunnel from a bed's client to its server, over uplink `a1`.
//!
//! **Invariant:** in the tunnel, the client has the addresses that uplink 2 would have. The source address that the
//! server sees therefore identifies the tunnel.

use std::{fs, net::IpAddr, path::PathBuf, process::Command};

use anyhow::ensure;
use steer_lab::{Error, Netns, client_v4, client_v6, gateway_v4, gateway_v6};

use crate::{Bed, NotHere, output};

/// The tunnel's number as an uplink.
pub const TUNNEL: u8 = 2;

const PORT: u16 = 51820;

/// A tunnel. Its ends are removed with their namespaces.
pub struct Tunnel<'a> {
    bed: &'a Bed,
    client: Key,
    server: Key,
}

struct Key {
    private: PathBuf,
    public: String,
}

impl<'a> Tunnel<'a> {
    /// The client's interface.
    pub const LINK: &'static str = "wg0";

    /// Makes both ends. [`NotHere`] where the kernel has no WireGuard or wg(8) is missing.
    pub fn new(bed: &'a Bed) -> anyhow::Result<Self> {
        let key = |name: &str| {
            let private = bed.directory.join(name);
            let key = wg(&bed.net.client, &["genkey"])?;
            fs::write(&private, &key)?;
            let mut public = Command::new("wg");
            let public = output(public.arg("pubkey").stdin(fs::File::open(&private)?))?;
            ensure!(public.code == 0, "{public:?}");
            Ok(Key { private, public: public.stdout.trim().to_owned() })
        };
        let tunnel = Self { bed, client: key("client.key")?, server: key("server.key")? };
        let server = &bed.net.server;
        add_link(server)?;
        let private = tunnel.server.private.to_string_lossy();
        let allowed = format!("{}/32,{}/128", client_v4(TUNNEL), client_v6(TUNNEL));
        let port = PORT.to_string();
        wg(server, &["set", Self::LINK, "listen-port", &port, "private-key", &private])?;
        wg(server, &["set", Self::LINK, "peer", &tunnel.client.public, "allowed-ips", &allowed])?;
        add_addresses(server, gateway_v4(TUNNEL).into(), gateway_v6(TUNNEL).into())?;
        tunnel.create()?;
        Ok(tunnel)
    }

    /// Makes the client's end, which carries all traffic that is routed to it.
    pub fn create(&self) -> anyhow::Result<()> {
        let client = &self.bed.net.client;
        add_link(client)?;
        let private = self.client.private.to_string_lossy();
        let endpoint = format!("{}:{PORT}", gateway_v4(1));
        wg(client, &["set", Self::LINK, "private-key", &private])?;
        let peer = ["set", Self::LINK, "peer", &self.server.public, "endpoint", &endpoint];
        wg(client, &[&peer[..], &["allowed-ips", "0.0.0.0/0,::/0"]].concat())?;
        add_addresses(client, client_v4(TUNNEL).into(), client_v6(TUNNEL).into())?;
        for gateway in [IpAddr::V4(gateway_v4(TUNNEL)), IpAddr::V6(gateway_v6(TUNNEL))] {
            client.add_default_route(gateway, Self::LINK, 1000)?;
        }
        Ok(())
    }

    /// Removes the client's end.
    pub fn tear_down(&self) -> anyhow::Result<()> {
        Ok(self.bed.net.client.delete_link(Self::LINK)?)
    }
}

fn add_link(netns: &Netns) -> anyhow::Result<()> {
    match netns.add_wireguard(Tunnel::LINK) {
        Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(NotHere("this kernel has no WireGuard".to_owned()).into())
        }
        made => Ok(made?),
    }
}

fn add_addresses(netns: &Netns, v4: IpAddr, v6: IpAddr) -> anyhow::Result<()> {
    netns.add_address(Tunnel::LINK, v4, 24)?;
    netns.add_address(Tunnel::LINK, v6, 64)?;
    Ok(netns.set_up(Tunnel::LINK)?)
}

fn wg(netns: &Netns, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("wg");
    let Ok(done) = output(netns.enter(command.args(arguments))) else {
        return Err(NotHere("wg(8) is not installed".to_owned()).into());
    };
    ensure!(done.code == 0, "wg {arguments:?}: {done:?}");
    Ok(done.stdout)
}
