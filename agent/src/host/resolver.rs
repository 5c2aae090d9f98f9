//! Finds DNS lookups of this machine that do not go to a server behind the uplink.
//!
//! **Invariant:** only reads. A file that is missing or cannot be read is treated as empty.

use std::{fmt, fs, net::IpAddr, path::Path};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";
const NSCD_SOCKET: &str = "/run/nscd/socket";

/// A way in which another process looks up names for a program. The program's policy does not apply to that process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detour {
    /// resolv.conf names an address of this host.
    LocalServer(IpAddr),
    /// nsswitch.conf names a module that asks systemd-resolved.
    Resolved,
    /// The name service cache daemon runs.
    Nscd,
}

impl Detour {
    /// Whether it affects programs whose policy has these resolvers. A resolver replaces every server of its family.
    pub fn concerns(&self, resolvers: &[IpAddr]) -> bool {
        match self {
            Self::LocalServer(server) => !resolvers.iter().any(|own| own.is_ipv4() == server.is_ipv4()),
            Self::Resolved | Self::Nscd => true,
        }
    }

    /// Whether a policy's own resolvers replace it.
    pub fn ends_with_dns(&self) -> bool {
        matches!(self, Self::LocalServer(_))
    }
}

impl Detour {
    /// As displayed, for policies that reach this host. There, a server of this host answers.
    pub fn from_this_host(&self) -> String {
        match self {
            Self::LocalServer(address) => format!(
                "{RESOLV_CONF} names {address}, an address of this host, and `local` has \"host\": it answers, but asks by this \
                 host's own routes, and not by the uplink; set a resolver behind the uplink by `dns` in the policy or by --dns"
            ),
            Self::Resolved | Self::Nscd => self.to_string(),
        }
    }
}

impl fmt::Display for Detour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalServer(address) => write!(
                formatter,
                "{RESOLV_CONF} names {address}, an address of this host: steered programs get no answer from it, and \
                 programs with CAP_NET_RAW get an answer that did not use the uplink; set a resolver behind the uplink by \
                 `dns` in the policy or by --dns"
            ),
            Self::Resolved => write!(
                formatter,
                "{NSSWITCH_CONF} has `resolve` for hosts: systemd-resolved looks up names, and not by the uplink; remove \
                 `resolve` from that line"
            ),
            Self::Nscd => write!(
                formatter,
                "nscd runs ({NSCD_SOCKET}): it looks up names, and not by the uplink; disable its hosts cache by \
                 `enable-cache hosts no` in /etc/nscd.conf"
            ),
        }
    }
}

/// Finds them on this machine, in the namespaces of the calling process.
pub fn detours() -> Vec<Detour> {
    let read = |path| fs::read(path).unwrap_or_default();
    let own = own_addresses();
    let mut detours = local_servers(&read(RESOLV_CONF), &own);
    if asks_resolved(&String::from_utf8_lossy(&read(NSSWITCH_CONF))) {
        detours.push(Detour::Resolved);
    }
    if Path::new(NSCD_SOCKET).exists() {
        detours.push(Detour::Nscd);
    }
    detours
}

/// The addresses of this host.
pub fn own_addresses() -> Vec<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect()
}

/// The broadcast addresses of this host's networks.
pub fn broadcasts() -> Vec<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.broadcast);
    addresses.filter_map(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))).collect()
}

fn local_servers(resolv_conf: &[u8], own: &[IpAddr]) -> Vec<Detour> {
    let servers: Vec<IpAddr> = resolv_conf::Config::parse(resolv_conf)
        .map(|config| config.nameservers.into_iter().map(IpAddr::from).collect())
        .unwrap_or_default();
    let is_local = |server: &IpAddr| server.is_loopback() || server.is_unspecified() || own.contains(server);
    servers.into_iter().filter(is_local).map(Detour::LocalServer).collect()
}

fn asks_resolved(nsswitch_conf: &str) -> bool {
    let lines = nsswitch_conf.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut hosts = lines.filter_map(|line| line.trim().strip_prefix("hosts:"));
    hosts.next_back().is_some_and(|modules| modules.split_whitespace().any(|module| module == "resolve"))
}

#[cfg(test)]
mod tests {
    use super::{Detour, asks_resolved, local_servers};

    #[test]
    fn servers_on_this_host() {
        let own = ["192.168.1.1".parse().expect("an address")];
        let text =
            b"# stub\nnameserver 127.0.0.53\nnameserver 192.168.1.1\nnameserver 9.9.9.9\noptions edns0 trust-ad\n";
        let found = local_servers(text, &own);
        let want = ["127.0.0.53", "192.168.1.1"].map(|server| Detour::LocalServer(server.parse().expect("an address")));
        assert_eq!(found, want);
        assert!(local_servers(b"nameserver 9.9.9.9", &own).is_empty());
        assert!(local_servers(b"", &own).is_empty());
    }

    #[test]
    fn modules_for_hosts() {
        assert!(asks_resolved("passwd: files\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n"));
        assert!(!asks_resolved("hosts: files dns # resolve\n"));
        assert!(!asks_resolved("# hosts: resolve\nnetworks: files resolve\n"));
        assert!(!asks_resolved(""));
    }
}
