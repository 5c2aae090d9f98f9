//! `dns`: the name servers of a policy.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The word for the resolvers that the host has for the link of the uplink.
pub const LINK: &str = "link";

/// The name servers of a policy, at most one of each family, or those of the uplink's link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// The IPv4 server.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 server.
    pub v6: Option<Ipv6Addr>,
    /// Those that the host has for the link of the uplink. Then there are no others.
    pub link: bool,
}

impl Resolvers {
    /// No resolver: queries go to the server that the program asks.
    pub const NONE: Self = Self { v4: None, v6: None, link: false };

    /// Adds an address as written. The error says what is wrong with it.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        if self.link || text == LINK && !self.is_empty() {
            return Err(format!("{LINK:?} stands for all resolvers of the uplink; expected it alone"));
        }
        if text == LINK {
            self.link = true;
            return Ok(());
        }
        let Ok(address) = text.parse::<IpAddr>() else {
            return Err(format!("{text:?} is not an IP address; expected one like \"10.64.0.1\", or {LINK:?}"));
        };
        let address = address.to_canonical();
        if address.is_loopback() {
            return Err(format!(
                "{text} is this host, which a steered socket cannot reach; use a resolver behind the uplink"
            ));
        }
        // 0.0.0.0/8 is this network, and 240.0.0.0/4 with the broadcast address is for no host.
        let is_none = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240);
        if is_none || address.is_unspecified() || address.is_multicast() {
            return Err(format!("{text} is not the address of one host"));
        }
        let taken = match address {
            IpAddr::V4(address) => self.v4.replace(address).is_some(),
            IpAddr::V6(address) => self.v6.replace(address).is_some(),
        };
        if taken {
            return Err(format!("{text} is the second of its family; expected one IPv4 and one IPv6 resolver at most"));
        }
        Ok(())
    }

    /// As written.
    pub fn texts(&self) -> Vec<String> {
        let link = self.link.then(|| LINK.to_owned());
        link.into_iter().chain(self.iter().map(|address| address.to_string())).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none() && !self.link
    }

    /// The addresses as written, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl fmt::Display for Resolvers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.texts().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::Resolvers;

    #[test]
    fn one_of_each_family() {
        let mut resolvers = Resolvers::default();
        resolvers.add("2001:db8::53").expect("IPv6");
        resolvers.add("::ffff:10.64.0.1").expect("mapped IPv4");
        assert_eq!(resolvers.to_string(), "10.64.0.1, 2001:db8::53");
        assert!(resolvers.add("10.64.0.2").expect_err("two of IPv4").contains("second of its family"));
        for (text, want) in [
            ("dns.example", "not an IP address"),
            ("10.64.0.1:53", "not an IP address"),
            ("127.0.0.53", "this host"),
            ("::1", "this host"),
            ("::", "not the address of one host"),
            ("224.0.0.251", "not the address of one host"),
            ("0.0.0.8", "not the address of one host"),
            ("255.255.255.255", "not the address of one host"),
        ] {
            let problem = Resolvers::default().add(text).expect_err(text);
            assert!(problem.contains(want), "{text}: {problem}");
        }
        assert!(resolvers.add("link").expect_err("not alone").contains("expected it alone"));
        let mut link = Resolvers::default();
        link.add("link").expect("a word");
        assert!(!link.is_empty() && link.texts() == ["link"] && link.iter().count() == 0);
        assert!(link.add("10.0.0.1").is_err() && link.add("link").is_err());
    }
}
