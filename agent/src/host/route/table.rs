//! Numbers of routing tables.
//!
//! A number says whose the table is and what for, so that it can be removed without memory:
//! `0x73` in the highest byte, 12 bits for the instance, one bit for tables of bound uplinks, 11 bits that count.
//!
//! **Invariant:** two instances, and the two kinds of tables, never have the same number.

const OURS: u32 = 0x73;
const BOUND: u32 = 0x800;

/// Which steer a table belongs to. Two with different pin directories may share a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(u16);

impl Instance {
    /// Only the 12 lowest bits count.
    pub const fn new(number: u16) -> Self {
        Self(number & 0xfff)
    }

    /// The table of a policy of the route method.
    pub(super) fn marked(self, number: u8) -> u32 {
        self.first() | u32::from(number)
    }

    /// A table of a bound uplink.
    pub(super) fn bound(self, position: u32) -> u32 {
        self.first() | BOUND | position & (BOUND - 1)
    }

    /// Whether the table belongs to this instance.
    pub(super) fn has(self, table: u32) -> bool {
        table & !0xfff == self.first()
    }

    fn first(self) -> u32 {
        OURS << 24 | u32::from(self.0) << 12
    }
}

/// Whether the table belongs to any instance.
pub(super) fn is_ours(table: u32) -> bool {
    table >> 24 == OURS
}

/// Whether it is the table of a policy of the route method, of any instance.
pub(super) fn is_marked(table: u32) -> bool {
    is_ours(table) && table & BOUND == 0
}

/// Whether it is the table of a bound uplink, of any instance.
pub(super) fn is_bound(table: u32) -> bool {
    is_ours(table) && table & BOUND != 0
}

#[cfg(test)]
mod tests {
    use super::{Instance, is_bound, is_marked};

    #[test]
    fn numbers() {
        let (first, second) = (Instance::new(0), Instance::new(0xfff));
        assert_eq!((first.marked(7), second.bound(2)), (0x7300_0007, 0x73ff_f802));
        assert!(first.has(first.bound(0)) && !first.has(second.marked(1)) && !second.has(first.marked(1)));
        assert!(is_marked(first.marked(255)) && !is_bound(first.marked(255)) && is_bound(second.bound(0)));
        assert!(!is_marked(254) && !is_bound(51820));
    }
}
