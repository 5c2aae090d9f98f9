//! Policy rules and routes of the route method, in one network namespace, for IPv4 and IPv6.
//!
//! A policy of the route method leaves its sockets unbound and marks them. These rules lead marked packets to a table that
//! mirrors the routes of the uplink, with exceptions:
//!
//! ```text
//! 0       fwmark FLAG/FLAG goto 40000        behind `0: lookup local`
//! 40000   nop                                without it the goto would be skipped
//! 40000+n fwmark MARK/MASK lookup TABLE      for policy number n
//! 40999   fwmark FLAG/FLAG unreachable       whatever no table has a route for
//! ```
//!
//! Unmarked packets pass only the first rule. FLAG is the highest bit of the mask; each mark has it.
//!
//! A policy that binds its sockets needs one rule, for IPv6: `0: oif UPLINK lookup TABLE`. It covers what the kernel sends
//! for a bound connection without a socket of its own, such as the acknowledgement in TIME_WAIT: the binding is then only a
//! preference, and a better route by another link would win.
//!
//! [`State::read`] reads the kernel, [`plan`] says what has to be there, [`write`] makes the difference, [`remove`] needs
//! no memory, and [`Watch`] reports when to do it again.
//!
//! **Invariant:** once the goto is there, no packet with the flag goes on to the rules behind it, at any moment of a change.
//! Nothing of another instance is changed.

mod contents;
mod entry;
mod hop;
mod netlink;
mod passes;
mod plan;
mod rule;
mod state;
mod table;
mod watch;
mod write;

use std::net::IpAddr;

use crate::model::prefix::Prefix;

pub use plan::{Invalid, Plan, plan};
pub use state::State;
pub use table::Instance;
pub use watch::{Notified, Watch};
pub use write::{Changes, Failed, Step, remove, steps, write};

/// The bits of the mark that belong to steer. The highest is the flag, the others hold the number of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask(u32);

impl Mask {
    /// `None`: the bits are not adjacent, or fewer than two.
    pub fn new(bits: u32) -> Option<Self> {
        let shifted = bits.checked_shr(bits.trailing_zeros())?;
        (bits.count_ones() >= 2 && shifted.count_ones() == shifted.trailing_ones()).then_some(Self(bits))
    }

    /// All bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The bit that every mark has.
    pub const fn flag(self) -> u32 {
        1 << self.0.ilog2()
    }

    /// The mark of policy number `number`. `None`: there is no such number; the first is 1.
    pub fn mark(self, number: u8) -> Option<u32> {
        let mark = u32::from(number) << self.0.trailing_zeros();
        let fits = u64::from(number) << self.0.trailing_zeros() < u64::from(self.flag());
        (number > 0 && fits).then_some(mark | self.flag())
    }

    /// The numbers of policies.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (1..=u8::MAX).filter(move |&number| self.mark(number).is_some())
    }
}

/// What has to be there for one instance.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The bits for marks.
    pub mask: Mask,
    /// Which steer.
    pub instance: Instance,
    /// The policies of the route method.
    pub marked: Vec<Marked>,
    /// The uplinks of policies that bind and must not leak.
    pub bound: Vec<u32>,
}

/// A policy of the route method.
#[derive(Clone, Debug)]
pub struct Marked {
    /// Its number, which its mark and its table have.
    pub number: u8,
    /// The index of its uplink; `None`: missing.
    pub uplink: Option<u32>,
    /// What is reached directly.
    pub local: Local,
    /// Addresses that only the uplink leads to.
    pub resolvers: Vec<IpAddr>,
    /// Destinations that go elsewhere. Of those that contain a destination, and of the networks of this host, the longest
    /// prefix counts; of equal ones an exception, and of two exceptions the last.
    pub exceptions: Vec<Exception>,
}

/// What a policy reaches without its uplink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local {
    /// The networks that this host is connected to.
    pub lan: bool,
    /// Discovery of services in these networks, by multicast and broadcast.
    pub discovery: bool,
}

/// Destinations that do not go by the uplink.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// The destinations.
    pub to: Prefix,
    /// Where they go.
    pub by: By,
}

/// Where an exception goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By the link of this index; `None`: it is missing.
    Link(Option<u32>),
    /// Where the main table leads to.
    Main,
    /// Nowhere.
    Refuse,
}

/// What the program on a policy's packets decides about a link that is not the uplink.
///
/// The longest prefix of the packet's link counts, then the longest of link 0. Without any, the packet is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pass {
    /// The index of the link; 0: any.
    pub ifindex: u32,
    /// The destinations.
    pub prefix: Prefix,
    /// Whether they may leave by the link.
    pub allow: bool,
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn marks() {
        for bits in [0, 1, 0x8000_0000, 0x5, 0x8000_0001] {
            assert_eq!(Mask::new(bits), None, "{bits:#x}");
        }
        let mask = Mask::new(0x00fe_0000).expect("a mask");
        assert_eq!((mask.flag(), mask.mark(1), mask.mark(63)), (0x80_0000, Some(0x82_0000), Some(0xfe_0000)));
        assert_eq!((mask.mark(0), mask.mark(64), mask.numbers().count()), (None, None, 63));
        let highest = Mask::new(0xff80_0000).expect("a mask");
        assert_eq!((highest.flag(), highest.mark(255), highest.numbers().count()), (1 << 31, Some(0xff80_0000), 255));
        assert_eq!(Mask::new(u32::MAX).and_then(|mask| mask.mark(9)), Some(0x8000_0009));
    }
}
