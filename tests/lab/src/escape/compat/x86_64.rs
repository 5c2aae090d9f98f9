//! 32 bit system calls of i386, which a 64 bit program can make itself, by `int 0x80`.
//!
//! **Invariant:** what such a call points to is below 4 GiB.

use std::{io, os::fd::RawFd};

use super::Argument;

pub(super) const SOCKET: u32 = 359;
pub(super) const SETSOCKOPT: u32 = 366;
const SOCKETCALL: u32 = 102;
/// Number of `setsockopt` in `socketcall`.
const SYS_SETSOCKOPT: u32 = 14;

pub(super) fn call(number: u32, arguments: &mut [Argument<'_>]) -> io::Result<i32> {
    let mut words = [0; 5];
    for (word, argument) in words.iter_mut().zip(&*arguments) {
        *word = match argument {
            Argument::Number(number) => *number,
            Argument::Descriptor(fd) => fd.cast_unsigned(),
            Argument::Memory(bytes) => low_copy(bytes)?,
        };
    }
    let result = enter(number, words)?;
    for (word, argument) in words.into_iter().zip(arguments) {
        if let Argument::Memory(bytes) = argument {
            let from = std::ptr::with_exposed_provenance(word as usize);
            // SAFETY: the copy has as many bytes, and is never unmapped.
            unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        }
    }
    Ok(result)
}

/// `setsockopt` by `socketcall`, which takes its arguments in memory.
pub(super) fn socketcall(fd: RawFd, level: i32, name: i32, value: &[u8]) -> io::Result<i32> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let words = [fd.cast_unsigned(), level.cast_unsigned(), name.cast_unsigned(), low_copy(value)?, length]
        .map(u32::to_ne_bytes);
    call(SOCKETCALL, &mut [Argument::Number(SYS_SETSOCKOPT), Argument::Memory(&mut words.concat())])
}

/// Copies bytes to memory below 4 GiB that is never unmapped. Returns its address.
fn low_copy(bytes: &[u8]) -> io::Result<u32> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT);
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes.len().max(1), protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has at least this many bytes, and nothing else uses it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast(), bytes.len()) };
    u32::try_from(memory.expose_provenance()).map_err(io::Error::other)
}

fn enter(number: u32, arguments: [u32; 5]) -> io::Result<i32> {
    let mut result = u64::from(number);
    // SAFETY: the callers pass addresses of memory that lives long enough. The kernel saves all registers but the named ones.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx", "int 0x80", "xchg {first}, rbx",
            first = inout(reg) u64::from(arguments[0]) => _,
            inout("rax") result,
            in("rcx") u64::from(arguments[1]), in("rdx") u64::from(arguments[2]),
            in("rsi") u64::from(arguments[3]), in("rdi") u64::from(arguments[4]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // The lower half of the register.
    let result = i32::from_ne_bytes([0, 1, 2, 3].map(|byte| result.to_le_bytes()[byte]));
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
