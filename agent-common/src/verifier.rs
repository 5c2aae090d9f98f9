//! What keeps the kernel's verifier from walking the same instructions again and again.
//!
//! It walks every way through a program. Where two ways meet, it drops the second if all that it knows there was covered by the first. A
//! number that each way sets to another constant, and that decides something later, prevents this. So the ways multiply.
//!
//! **Invariant:** the value stays the same. Only the knowledge about it is lost.

/// The same byte, of which the compiler and the verifier know nothing: it is written to the stack as the second half of a word, and
/// read alone. The verifier follows only what is read as it was written, or the first part of it (up to Linux 7.3), and words that are
/// zero. The CPU need not wait for the stack: it forwards a read that lies within one write.
#[expect(unsafe_code, reason = "volatile accesses")]
#[inline(always)]
pub fn forget(byte: u8) -> u8 {
    let mut pair = 0_u16;
    // SAFETY: a local variable.
    unsafe { (&raw mut pair).write_volatile(u16::from_ne_bytes([1, byte])) };
    // SAFETY: within the pair, which is initialized.
    unsafe { (&raw const pair).cast::<u8>().wrapping_add(1).read_volatile() }
}

/// The same word, likewise.
#[expect(unsafe_code, reason = "volatile accesses")]
#[inline(always)]
pub fn forget_word(word: u32) -> u32 {
    let [a, b, c, d] = word.to_ne_bytes();
    let mut pair = 0_u64;
    // SAFETY: a local variable.
    unsafe { (&raw mut pair).write_volatile(u64::from_ne_bytes([1, 0, 0, 0, a, b, c, d])) };
    // SAFETY: within the pair, which is initialized.
    unsafe { (&raw const pair).cast::<u32>().wrapping_add(1).read_volatile() }
}

#[cfg(test)]
mod tests {
    use super::{forget, forget_word};

    #[test]
    fn the_value_stays() {
        assert!((0..=u8::MAX).all(|byte| forget(byte) == byte));
        assert!([0, 1, 0x5555_5555, u32::MAX].into_iter().all(|word| forget_word(word) == word));
    }
}
