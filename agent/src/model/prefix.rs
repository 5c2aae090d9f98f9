//! IP prefixes, as in `192.168.3.0/24`.
//!
//! **Invariant:** the bits behind the length are zero, and no prefix is IPv4-mapped.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of IP addresses with the same first bits.
///
/// The order is: IPv4 first, then by address, then the shorter prefix. So a prefix comes directly before those that it
/// covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

#[expect(clippy::len_without_is_empty, reason = "the length of a prefix is the field's term; it is no container")]
impl Prefix {
    /// All IPv4 addresses.
    pub const ALL_IPV4: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: 0 };
    /// All IPv6 addresses.
    pub const ALL_IPV6: Self = Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), len: 0 };

    /// The prefix of this length that contains `address`. `None`: its family has no such length.
    pub fn of(address: IpAddr, len: u8) -> Option<Self> {
        if len > width(address) {
            return None;
        }
        let (address, len) = match address {
            IpAddr::V6(mapped) if len >= MAPPED => match mapped.to_ipv4_mapped() {
                Some(address) => (IpAddr::V4(address), len - MAPPED),
                None => (address, len),
            },
            address => (address, len),
        };
        Some(Self { address: masked(address, len), len })
    }

    /// The prefix of this address alone.
    pub fn host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, len: width(address) }
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits all its addresses share.
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether the prefix is of IPv4.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether the address is in the prefix. An IPv4-mapped address is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.is_ipv4() && masked(address, self.len) == self.address
    }

    /// Whether all addresses of `other` are in the prefix. A prefix covers itself.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }
}

/// The length of the prefix of all IPv4-mapped addresses.
const MAPPED: u8 = 96;

const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address without the bits behind the length.
fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Parses `ADDRESS/LENGTH`, or `ADDRESS` for one address.
    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected a prefix such as 192.168.3.0/24 or 2001:db8::/32, or an address";
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_invalid| EXPECTED.to_owned())?;
        let Some(len) = len else { return Ok(Self::host(address)) };
        let width = width(address);
        let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
        let len = len.parse().ok().filter(|len| digits && *len <= width);
        let len = len.ok_or_else(|| format!("expected a prefix length of 0 to {width}"))?;
        if masked(address, len) != address {
            let first = masked(address, len);
            return Err(format!(
                "expected an address without bits behind the prefix length: write {first}/{len} for the prefix, or {address} \
                 for the address"
            ));
        }
        Self::of(address, len).ok_or_else(|| EXPECTED.to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::Prefix;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn text() {
        for (text, shown) in [
            ("192.168.3.0/24", "192.168.3.0/24"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ] {
            assert_eq!(prefix(text).to_string(), shown);
            assert_eq!(prefix(shown), prefix(text));
        }
    }

    #[test]
    fn errors_say_what_is_expected() {
        for (text, hint) in [
            ("", "expected a prefix"),
            ("eth0", "expected a prefix"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/8/8", "0 to 32"),
            ("2001:db8::/129", "0 to 128"),
            ("192.168.3.1/24", "write 192.168.3.0/24 for the prefix, or 192.168.3.1 for the address"),
            ("fe80::1%eth0", "expected a prefix"),
        ] {
            let error = text.parse::<Prefix>().expect_err(text);
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn contains_and_covers() {
        let (wide, narrow, six) = (prefix("192.168.0.0/16"), prefix("192.168.3.0/24"), prefix("fe80::/64"));
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(wide.contains(address("192.168.255.255")) && !narrow.contains(address("192.168.4.0")));
        assert!(narrow.contains(address("::ffff:192.168.3.7")), "a mapped address");
        assert!(wide.covers(&narrow) && wide.covers(&wide) && !narrow.covers(&wide));
        assert!(six.contains(address("fe80::1")) && !six.contains(address("fe80:0:0:1::")));
        assert!(!Prefix::ALL_IPV4.covers(&six) && !Prefix::ALL_IPV6.covers(&wide), "another family");
        assert!(Prefix::ALL_IPV4.covers(&wide) && Prefix::ALL_IPV6.covers(&six));
        assert!(Prefix::ALL_IPV6.contains(address("::")) && prefix("::1").contains(address("::1")));
    }

    #[test]
    fn a_prefix_comes_before_what_it_covers() {
        let mut sorted = ["::/0", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "10.0.0.0/16"].map(prefix);
        sorted.sort();
        assert_eq!(sorted.map(|one| one.to_string()).join(" "), "0.0.0.0/0 10.0.0.0/8 10.0.0.0/16 10.1.0.0/16 ::/0");
    }
}
