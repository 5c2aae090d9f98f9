//! An architecture whose 32 bit system calls are not known here.

use std::{io, os::fd::RawFd};

use super::Argument;

pub(super) const SOCKET: u32 = 0;
pub(super) const SETSOCKOPT: u32 = 0;

pub(super) fn call(_: u32, _: &mut [Argument<'_>]) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

pub(super) fn socketcall(_: RawFd, _: i32, _: i32, _: &[u8]) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}
