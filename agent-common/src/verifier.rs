//! What keeps the kernel's verifier from walking the same instructions again and again.
//!
//! It walks every way through a program. Where two ways meet, it drops the second if all that it knows there was covered by the first. A
//! number that each way sets to another constant, and that decides something later, prevents this. So the ways multiply.
//!
//! **Invariant:** the value stays the same. Only the knowledge about it is lost.

/// The same byte, of which the compiler and the verifier know nothing: it is written to the stack next to another one, and read with it.
/// The verifier follows only what is read as it was written (up to Linux 6.18), but it follows zero in any case.
#[expect(unsafe_code, reason = "volatile accesses")]
#[inline(always)]
pub fn forget(byte: u8) -> u8 {
    let mut pair = 0_u16;
    let first = (&raw mut pair).cast::<u8>();
    let second = first.wrapping_add(1);
    // SAFETY: within the pair.
    unsafe { first.write_volatile(1) };
    // SAFETY: within the pair.
    unsafe { second.write_volatile(byte.wrapping_add(1)) };
    // SAFETY: it was initialized.
    let pair = unsafe { (&raw const pair).read_volatile() };
    pair.to_ne_bytes()[1].wrapping_sub(1)
}

/// The same word, likewise.
#[expect(unsafe_code, reason = "volatile accesses")]
#[inline(always)]
pub fn forget_word(word: u32) -> u32 {
    const NOT_ZERO: u32 = 0x5555_5555;
    let mut pair = 0_u64;
    let first = (&raw mut pair).cast::<u32>();
    let second = first.wrapping_add(1);
    // SAFETY: within the pair.
    unsafe { first.write_volatile(1) };
    // SAFETY: within the pair.
    unsafe { second.write_volatile(word ^ NOT_ZERO) };
    // SAFETY: it was initialized.
    let pair = unsafe { (&raw const pair).read_volatile() };
    let [a, b, c, d] = pair.to_ne_bytes().as_chunks::<4>().0[1];
    u32::from_ne_bytes([a, b, c, d]) ^ NOT_ZERO
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
