//! What a policy lets pass on links other than its uplink.

use crate::address::{AddressWords, is_mapped};

/// Key of [`PASSES`](crate::map::PASSES), whose prefixes are [`PASS_KEY_BITS`] longer than those of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PassKey {
    /// The policy slot, or [`OWN`], with [`IPV4`] for an IPv4 address: a short IPv6 prefix would hold the mapped ones, too.
    slot: u32,
    /// Index of the link by which the packet leaves or came in; 0 is any. [`REFUSED`] is none: its entries say which destinations
    /// an exception refuses.
    pub ifindex: u32,
    /// The address at the other end. IPv4 is mapped: its prefixes are 96 bits longer.
    pub address: AddressWords,
}

impl PassKey {
    /// A key, with an address or a prefix of one.
    #[inline(always)]
    pub fn new(slot: u32, ifindex: u32, address: AddressWords) -> Self {
        Self { slot: slot ^ u32::from(is_mapped(&address)) << IPV4.trailing_zeros(), ifindex, address }
    }

    /// The policy slot, or [`OWN`].
    pub const fn slot(&self) -> u32 {
        if self.slot | IPV4 == OWN { OWN } else { self.slot & !IPV4 }
    }
}

/// Flipped in the slot of a key with an IPv4 address. No policy has a slot with this bit.
const IPV4: u32 = 1 << 31;
/// The index of destinations that are refused. No link has it.
pub const REFUSED: u32 = u32::MAX;
/// The slot of the addresses of a host. The index is [`namespace`], and the value is the index of the address's link. No policy has this slot.
///
/// A namespace whose addresses are known has an entry for [`UNSPECIFIED`], too, with the value 0.
pub const OWN: u32 = u32::MAX;
/// No host has this address.
pub const UNSPECIFIED: AddressWords = [0; 4];
/// What stands for a network namespace in a key with the slot [`OWN`]: the lower half of its cookie. Cookies are given in order.
pub const fn namespace(cookie: u64) -> u32 {
    (cookie & 0xffff_ffff) as u32
}

/// Bits of the slot and of the index in a [`PassKey`].
pub const PASS_KEY_BITS: u32 = 64;
/// Bits of an address in a [`PassKey`].
pub const ADDRESS_BITS: u32 = 128;

/// Key of [`EXCEPTIONS`](crate::map::EXCEPTIONS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ExceptionKey {
    /// The policy slot.
    pub slot: u32,
    /// Significant bits of the address. IPv4 is mapped: its prefixes are 96 bits longer.
    pub bits: u32,
    /// The prefix.
    pub address: AddressWords,
}

/// The interface of an exception as written, UTF-8, padded with NUL; the words of exceptions without an interface included.
pub type ExceptionRecord = [u8; crate::record::INTERFACE_BYTES];

const _: () = assert!(size_of::<PassKey>() == 24);
const _: () = assert!(size_of::<ExceptionKey>() == 24);

// SAFETY: `repr(C)`, `Copy`, only integers of one size, so no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PassKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ExceptionKey {}

#[cfg(test)]
mod tests {
    use super::{OWN, PassKey};
    use crate::address::mapped;

    #[test]
    fn no_ipv6_prefix_holds_ipv4_addresses() {
        for slot in [0, 7, OWN] {
            let [v4, v6] = [mapped(1), [0; 4]].map(|address| PassKey::new(slot, 3, address));
            assert_ne!(v4.slot, v6.slot);
            assert_eq!([v4.slot(), v6.slot()], [slot; 2]);
        }
    }
}
