//! Groups of uplinks: which members there are, how healthy they are, and which of them sockets get.
//!
//! **Invariant:** pure: no I/O, and no clock. Times are nanoseconds since boot (`CLOCK_BOOTTIME`), and the caller passes them.

pub mod choice;
pub mod health;
pub mod probe;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}
