//! The targets of probes, as text.
//!
//! **Invariant:** [`Target::parse`] reads what a target displays as the same target.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{Host, Url};
use crate::model::uplink::Family;

/// The port of name servers.
pub const DNS_PORT: u16 = 53;

const GATEWAY: &str = "gateway";
const EXPECTED: &str = "expected \"gateway\", \"icmp:ADDRESS\", \"dns:ADDRESS\", \"tcp:ADDRESS:PORT\", \
                        \"http://HOST/PATH\" or \"https://HOST/PATH\"";

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The gateways of the member's default routes, by ICMP: one must answer. `gateway`.
    Gateway,
    /// An address, by ICMP. `icmp:192.0.2.1`.
    Icmp(IpAddr),
    /// A name server. `dns:192.0.2.1`, `dns:[2001:db8::1]:5353`.
    Dns(SocketAddr),
    /// A TCP port that accepts connections. `tcp:192.0.2.1:443`.
    Tcp(SocketAddr),
    /// An HTTP server. `http://192.0.2.1/path`, `https://host.example/ status=200 body=TEXT`.
    Http(Url),
}

impl Target {
    /// Reads a target. The error says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == GATEWAY {
            return Ok(Self::Gateway);
        }
        if let Some(url) = Url::parse(text) {
            return url.map(Self::Http);
        }
        let Some((kind, rest)) = text.split_once(':') else { return Err(EXPECTED.to_owned()) };
        match kind {
            "icmp" => Ok(Self::Icmp(one_host(address(rest).ok_or_else(|| {
                format!("{rest:?} is not an IP address; expected one like \"icmp:192.0.2.1\" or \"icmp:2001:db8::1\"")
            })?)?)),
            "dns" => {
                let socket = match address(rest) {
                    Some(address) => SocketAddr::new(address, DNS_PORT),
                    None => rest.parse().map_err(|_invalid| {
                        format!("expected \"dns:192.0.2.1\" or \"dns:[2001:db8::1]:{DNS_PORT}\", and not {rest:?}")
                    })?,
                };
                of_one_host(socket).map(Self::Dns)
            }
            "tcp" => {
                let socket = rest.parse().map_err(|_invalid| {
                    format!("expected \"tcp:192.0.2.1:443\" or \"tcp:[2001:db8::1]:443\", and not {rest:?}")
                })?;
                of_one_host(socket).map(Self::Tcp)
            }
            _ => Err(EXPECTED.to_owned()),
        }
    }

    /// Its family. `None`: both, each by itself.
    pub fn family(&self) -> Option<Family> {
        let address = match self {
            Self::Gateway => return None,
            Self::Icmp(address) => *address,
            Self::Dns(socket) | Self::Tcp(socket) => socket.ip(),
            Self::Http(url) => match url.host {
                Host::Address(address) => address,
                Host::Name(_) => return None,
            },
        };
        Some(if address.is_ipv4() { Family::V4 } else { Family::V6 })
    }

    /// Whether it can be asked in a family.
    pub fn is_for(&self, family: Family) -> bool {
        self.family().is_none_or(|own| own == family)
    }

    /// The name that has to be resolved.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Http(Url { host: Host::Name(name), .. }) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => formatter.write_str(GATEWAY),
            Self::Icmp(address) => write!(formatter, "icmp:{address}"),
            Self::Dns(socket) if socket.port() != DNS_PORT => write!(formatter, "dns:{socket}"),
            Self::Dns(socket) if socket.is_ipv6() => write!(formatter, "dns:[{}]", socket.ip()),
            Self::Dns(socket) => write!(formatter, "dns:{}", socket.ip()),
            Self::Tcp(socket) => write!(formatter, "tcp:{socket}"),
            Self::Http(url) => url.fmt(formatter),
        }
    }
}

/// An address, with or without brackets.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6),
        None => text.parse().ok(),
    }
}

fn of_one_host(socket: SocketAddr) -> Result<SocketAddr, String> {
    if socket.port() == 0 {
        return Err("0 is not a port; expected 1 to 65535".to_owned());
    }
    Ok(SocketAddr::new(one_host(socket.ip())?, socket.port()))
}

/// The address of one host behind a link.
pub(super) fn one_host(address: IpAddr) -> Result<IpAddr, String> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return Err(format!("{address} is this host, and says nothing about a line; expected an address behind it"));
    }
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(format!("{address} is not the address of one host"));
    }
    if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        return Err(format!(
            "{address} is link-local, and would be another host on each link; \"gateway\" asks the gateway"
        ));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::{Family, Target};

    #[test]
    fn what_is_displayed_is_read() {
        for (text, shown, family) in [
            ("gateway", "gateway", None),
            ("icmp:192.0.2.1", "icmp:192.0.2.1", Some(Family::V4)),
            ("icmp:[2001:db8::1]", "icmp:2001:db8::1", Some(Family::V6)),
            ("icmp:::ffff:192.0.2.1", "icmp:192.0.2.1", Some(Family::V4)),
            ("dns:192.0.2.1", "dns:192.0.2.1", Some(Family::V4)),
            ("dns:192.0.2.1:53", "dns:192.0.2.1", Some(Family::V4)),
            ("dns:192.0.2.1:5353", "dns:192.0.2.1:5353", Some(Family::V4)),
            ("dns:2001:db8::1", "dns:[2001:db8::1]", Some(Family::V6)),
            ("dns:[2001:db8::1]", "dns:[2001:db8::1]", Some(Family::V6)),
            ("dns:[2001:db8::1]:5353", "dns:[2001:db8::1]:5353", Some(Family::V6)),
            ("tcp:192.0.2.1:443", "tcp:192.0.2.1:443", Some(Family::V4)),
            ("tcp:[2001:db8::1]:443", "tcp:[2001:db8::1]:443", Some(Family::V6)),
            ("http://192.0.2.1", "http://192.0.2.1/", Some(Family::V4)),
            ("http://192.0.2.1:80/x?y=z", "http://192.0.2.1/x?y=z", Some(Family::V4)),
            ("HTTPS://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443/", Some(Family::V6)),
            ("https://Host.example/a", "https://host.example/a", None),
            ("http://192.0.2.1/ status=204", "http://192.0.2.1/ status=204", Some(Family::V4)),
            ("http://a.example/ status=200 body=a b = c", "http://a.example/ status=200 body=a b = c", None),
            ("http://a.example/ body=status=3", "http://a.example/ body=status=3", None),
        ] {
            let target = Target::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((target.to_string().as_str(), target.family()), (shown, family));
            assert_eq!(Target::parse(shown), Ok(target));
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        for (text, want) in [
            ("", "expected \"gateway\""),
            ("ping:192.0.2.1", "expected \"gateway\""),
            ("9.9.9.9", "expected \"gateway\""),
            ("ftp://192.0.2.1/", "expected \"gateway\""),
            ("icmp:host.example", "expected one like \"icmp:192.0.2.1\""),
            ("icmp:fe80::1", "link-local"),
            ("icmp:127.0.0.1", "is this host"),
            ("dns:192.0.2.1:", "expected \"dns:192.0.2.1\""),
            ("dns:[192.0.2.1]", "expected \"dns:192.0.2.1\""),
            ("dns:192.0.2.1:0", "0 is not a port"),
            ("tcp:192.0.2.1", "expected \"tcp:192.0.2.1:443\""),
            ("tcp:2001:db8::1:443", "expected \"tcp:192.0.2.1:443\""),
            ("tcp:224.0.0.1:443", "not the address of one host"),
            ("http://", "expected \"http://"),
            ("http://user@192.0.2.1/", "without a user"),
            ("http://::1/", "expected \"http://"),
            ("http://[::1]/", "is this host"),
            ("http://localhost/", "is this host"),
            ("http://bad_host/", "is no host name"),
            ("http://192.0.2.1:0/", "0 is not a port"),
            ("http://192.0.2.1/#x", "without a fragment"),
            ("http://192.0.2.1/ status=999", "status=200"),
            ("http://192.0.2.1/ status=302", "redirect"),
            ("http://192.0.2.1/ body=", "body=TEXT"),
            ("http://192.0.2.1/ maybe", "status=200"),
        ] {
            let error = Target::parse(text).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
