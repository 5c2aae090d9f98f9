//! What a policy lets pass on links other than its uplink.

use crate::address::AddressWords;

/// Key of [`PASSES`](crate::map::PASSES), whose prefixes are [`PASS_KEY_BITS`] longer than those of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct PassKey {
    /// The policy slot, or [`OWN`].
    pub slot: u32,
    /// Index of the link by which the packet leaves or came in; 0 is any. [`REFUSED`] is none: its entries say which destinations
    /// an exception refuses.
    pub ifindex: u32,
    /// The address at the other end. IPv4 is mapped: its prefixes are 96 bits longer.
    pub address: AddressWords,
}

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
