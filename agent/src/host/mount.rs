//! Mounts a file system for this process only, without a directory.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Mounts a file system of this kind (Linux 5.2). The mount ends with its file descriptor. Sets no options, because they
/// would apply to the one instance that all mounts share.
pub(crate) fn private_mount(kind: &CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    let checked = |result: libc::c_long| {
        if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
    };
    // SAFETY: the name is a C string that lives through the call.
    let context = checked(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: a new file descriptor.
    let context = unsafe { OwnedFd::from_raw_fd(context) };
    let (null, none) = (std::ptr::null::<libc::c_char>(), 0);
    // SAFETY: this command takes neither key nor value.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, none) })?;
    // SAFETY: no pointers.
    let mount = checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(mount) })
}
