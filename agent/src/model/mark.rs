//! The bits of socket marks that steer uses.
//!
//! The highest bit of the mask says that steer marked a socket. The others number the policies, from 1.
//!
//! **Invariant:** a number has one mark, and bits outside of the mask have no meaning here.

/// A mask of contiguous bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkMask(u32);

impl MarkMask {
    /// The mask with these bits, which are contiguous.
    pub const fn new(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The bit that every mark of steer has.
    pub const fn flag(self) -> u32 {
        match self.0.checked_ilog2() {
            Some(bit) => 1 << bit,
            None => 0,
        }
    }

    /// The numbers of policies: at most 255.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (1..=u8::MAX).filter(move |&number| self.mark(number).is_some())
    }

    /// The mark of a number. `None`: the mask has no such number; the first is 1.
    pub fn mark(self, number: u8) -> Option<u32> {
        let shifted = u64::from(number) << self.shift();
        let is_mark = number > 0 && shifted < u64::from(self.flag());
        u32::try_from(shifted).ok().filter(|_| is_mark).map(|shifted| self.flag() | shifted)
    }

    /// The number in a mark. `None`: steer did not set it.
    pub fn number(self, mark: u32) -> Option<u8> {
        let number = (mark & self.0 & !self.flag()) >> self.shift();
        u8::try_from(number).ok().filter(|number| mark & self.flag() != 0 && *number > 0)
    }

    const fn shift(self) -> u32 {
        if self.0 == 0 { 0 } else { self.0.trailing_zeros() }
    }
}

#[cfg(test)]
mod tests {
    use super::MarkMask;

    #[test]
    fn numbers_and_marks() {
        let mask = MarkMask::new(0xff00_0000);
        assert_eq!((mask.flag(), mask.numbers().count()), (0x8000_0000, 127));
        assert_eq!((mask.mark(1), mask.mark(127), mask.mark(128)), (Some(0x8100_0000), Some(0xff00_0000), None));
        assert_eq!(mask.number(0x8100_0007), Some(1));
        assert_eq!([0, 7, 0x8000_0000, 0x0100_0000].map(|mark| MarkMask::new(0xff00_0000).number(mark)), [None; 4]);
        let middle = MarkMask::new(0x00fe_0000);
        assert_eq!((middle.flag(), middle.mark(1), middle.mark(63)), (0x80_0000, Some(0x82_0000), Some(0xfe_0000)));
        assert_eq!((middle.mark(0), middle.mark(64), middle.numbers().count()), (None, None, 63));
        assert_eq!(MarkMask::new(0xff80_0000).numbers().count(), 255);
        let none = MarkMask::new(0);
        assert_eq!((none.numbers().count(), none.number(u32::MAX)), (0, None));
    }
}
