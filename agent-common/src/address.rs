//! Addresses as the kernel gives them to programs.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv6 address as the kernel gives it to programs: four words in network byte order. IPv4 is mapped (`::ffff:a.b.c.d`).
pub type AddressWords = [u32; 4];

/// An address as the kernel gives it to programs.
pub fn address_words(address: Ipv6Addr) -> AddressWords {
    let octets = address.octets();
    let (words, _) = octets.as_chunks::<4>();
    core::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}

/// The address in four words; a mapped one is IPv4.
pub fn ip_address(words: AddressWords) -> IpAddr {
    let mut octets = [0; 16];
    for (octets, word) in octets.chunks_mut(4).zip(words) {
        octets.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).to_canonical()
}

/// The third word of a mapped IPv4 address; the two before it are 0.
pub const MAPPED_WORD: u32 = 0xffff_u32.to_be();

/// Whether an address is one of IPv4.
#[inline(always)]
pub const fn is_mapped(address: &AddressWords) -> bool {
    address[0] | address[1] | (address[2] ^ MAPPED_WORD) == 0
}

/// Maps an IPv4 address, given as it is in memory.
pub const fn mapped(address: u32) -> AddressWords {
    [0, 0, MAPPED_WORD, address]
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::{address_words, ip_address};

    #[test]
    fn addresses_are_in_network_order() {
        let resolver = Ipv4Addr::new(10, 64, 0, 1);
        let words = address_words(resolver.to_ipv6_mapped());
        assert_eq!(words, [0, 0, 0xffff_u32.to_be(), 0x0a40_0001_u32.to_be()]);
        assert_eq!(ip_address(words), IpAddr::V4(resolver));
        let resolver = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
        assert_eq!(ip_address(address_words(resolver)), IpAddr::V6(resolver));
    }
}
