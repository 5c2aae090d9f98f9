//! Holds the lock of a socket: the kernel takes it, and then waits for memory that nobody fills (`userfaultfd`, which needs a privilege).

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr, thread,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use crate::sys::set_socket_option;

/// `UFFDIO_API` and `UFFDIO_REGISTER` (linux/userfaultfd.h).
const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const VERSION: u64 = 0xaa;
const MISSING: u64 = 1;
const PAGE: usize = 4096;

/// Holds the lock of a connected UDP socket as long as this process lives. Returns when it is held.
pub fn hold(socket: &Socket) -> io::Result<()> {
    let check = |code: i64| if code < 0 { Err(io::Error::last_os_error()) } else { Ok(code) };
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
    // SAFETY: the call has just made this descriptor.
    let faults = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    let mut api = [VERSION, 0, 0];
    // SAFETY: the kernel reads and writes a `struct uffdio_api`, which has three words.
    check(unsafe { libc::ioctl(faults.as_raw_fd(), API, api.as_mut_ptr()) }.into())?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of which nothing is read or written here.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let page = page as usize;
    let mut range = [page as u64, PAGE as u64, MISSING, 0];
    // SAFETY: the kernel reads and writes a `struct uffdio_register`, which has four words.
    check(unsafe { libc::ioctl(faults.as_raw_fd(), REGISTER, range.as_mut_ptr()) }.into())?;
    // Without it, the kernel copies a datagram without the lock.
    set_socket_option(socket, libc::SOL_UDP, libc::UDP_CORK, &1_i32.to_ne_bytes())?;
    let own = socket.try_clone()?;
    thread::spawn(move || {
        // SAFETY: the page stays mapped. Only the kernel reads it.
        unsafe { libc::send(own.as_raw_fd(), page as *const libc::c_void, PAGE / 4, 0) };
    });
    poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&faults), PollFlags::POLLIN)], PollTimeout::NONE)?;
    std::mem::forget(faults);
    Ok(())
}
