//! Uplink groups: several links for one policy.
//!
//! **Invariant:** pure, as all of the model.

pub mod probe;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}
