//! A prefix of addresses, as `192.168.3.0/24`.
//!
//! **Invariant:** the bits after the length are zero, and an IPv4-mapped IPv6 prefix is an IPv4 one. So equal prefixes are equal
//! values.

use std::{fmt, net::IpAddr, str::FromStr};

/// The addresses whose first bits are those of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// The bits of an IPv4-mapped address before the IPv4 address.
const MAPPED_BITS: u8 = 96;

impl Prefix {
    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits are fixed.
    #[expect(clippy::len_without_is_empty, reason = "the length of a prefix in bits")]
    pub fn len(self) -> u8 {
        self.length
    }

    /// Whether the address is one of these.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == self.address
    }

    /// Whether every address of `other` is one of these.
    pub fn covers(self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }
}

/// How many bits an address of this family has.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with zero after its first bits.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let Ok(mut address) = address.parse::<IpAddr>() else {
            return Err(format!(
                "{text:?} is not an address or a prefix; expected one like \"192.168.3.0/24\" or \"2001:db8::1\""
            ));
        };
        let most = bits(address);
        let number = length.map_or(Some(most), |length| {
            length.parse().ok().filter(|number| *number <= most && length.bytes().all(|byte| byte.is_ascii_digit()))
        });
        let Some(mut length) = number else {
            return Err(format!("{text:?} has no length of a prefix; expected 0 to {most} after the slash"));
        };
        if let (true, IpAddr::V4(v4)) = (length >= MAPPED_BITS, address.to_canonical())
            && address.is_ipv6()
        {
            (address, length) = (IpAddr::V4(v4), length - MAPPED_BITS);
        }
        let prefix = Self { address: masked(address, length), length };
        if prefix.address == address {
            Ok(prefix)
        } else {
            Err(format!("{text:?} has host bits; expected \"{prefix}\""))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.address)?;
        if self.length == bits(self.address) { Ok(()) } else { write!(formatter, "/{}", self.length) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::Prefix;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect(text)
    }

    #[test]
    fn prefixes_are_written_as_they_are_read() {
        for (text, written) in [
            ("192.168.3.0/24", "192.168.3.0/24"),
            ("192.168.3.7", "192.168.3.7"),
            ("192.168.3.7/32", "192.168.3.7"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("2001:db8::1/128", "2001:db8::1"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(prefix(text).to_string(), written, "{text}");
            assert_eq!(prefix(written), prefix(text), "{text}");
        }
    }

    #[test]
    fn mistakes_say_what_is_expected() {
        for (text, want) in [
            ("192.168.3.7/24", "has host bits; expected \"192.168.3.0/24\""),
            ("2001:db8::1/64", "has host bits; expected \"2001:db8::/64\""),
            ("::ffff:10.0.0.1/104", "has host bits; expected \"10.0.0.0/8\""),
            ("10.0.0.0/33", "expected 0 to 32"),
            ("10.0.0.0/", "expected 0 to 32"),
            ("10.0.0.0/+8", "expected 0 to 32"),
            ("::/129", "expected 0 to 128"),
            ("10/8", "is not an address or a prefix"),
            ("", "is not an address or a prefix"),
            ("eth0", "is not an address or a prefix"),
        ] {
            let problem = text.parse::<Prefix>().expect_err(text);
            assert!(problem.contains(want), "{text}: {problem}");
        }
    }

    #[test]
    fn what_is_inside() {
        let (wide, narrow) = (prefix("192.168.0.0/16"), prefix("192.168.3.0/24"));
        assert!(wide.covers(&narrow) && wide.covers(&wide) && !narrow.covers(&wide));
        assert!(!prefix("::/0").covers(&narrow) && prefix("0.0.0.0/0").covers(&narrow));
        let contains = |prefix: Prefix, text: &str| prefix.contains(text.parse::<IpAddr>().expect(text));
        assert!(contains(narrow, "192.168.3.255") && contains(narrow, "::ffff:192.168.3.1"));
        assert!(!contains(narrow, "192.168.4.0") && !contains(narrow, "2001:db8::1"));
        assert_eq!((narrow.address().to_string().as_str(), narrow.len()), ("192.168.3.0", 24));
    }
}
