//! What the cgroups of a policy send and receive, for policies that ask for it.

/// Entries of [`map::ACCOUNT`](crate::map::ACCOUNT).
pub const ENTRIES: u32 = 65_536;

/// Key of [`map::ACCOUNT`](crate::map::ACCOUNT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct AccountKey {
    /// The policy slot.
    pub slot: u32,
    /// Index of the link.
    pub ifindex: u32,
}

/// One CPU's counts of the packets of a policy by one link. Bytes are those of IP packets. A packet that the kernel or the link divides
/// later counts as all of its parts, with the bytes of one header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AccountRecord {
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
    /// Packets that came in.
    pub received_packets: u64,
}

const _: () = assert!(size_of::<AccountKey>() == 8);
const _: () = assert!(size_of::<AccountRecord>() == 32);

// SAFETY: `repr(C)`, `Copy`, only integers of one size, so no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AccountKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AccountRecord {}
