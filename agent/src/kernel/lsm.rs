//! Whether the kernel runs programs on its security hooks. If `bpf` is not among the active security modules, such a
//! program can be loaded and attached, but never runs.
//!
//! **Invariant:** steer reports that such a program runs only if the kernel lists `bpf` as active.

use std::{fs, io, os::fd::AsRawFd as _, path::Path};

use steer_common::program;
use thiserror::Error;

use super::Pins;
use crate::host::mount::private_mount;

/// Number of the system call on every architecture (Linux 6.8).
const SYS_LSM_LIST_MODULES: libc::c_long = 461;
const LSM_ID_BPF: u64 = 109;
/// A kernel with io_uring has this since Linux 6.6. A ring sets socket options since 6.7.
const IO_URING: &str = "/proc/sys/kernel/io_uring_disabled";
const SECURITYFS: &str = "/sys/kernel/security";
/// File with the names of the active modules, separated by commas.
const LIST: &str = "lsm";

/// Why no security program refuses what the other programs do not see: sockets past the IP stack, and socket options that 32 bit
/// system calls set.
#[derive(Debug, Error)]
pub enum Unguarded {
    /// The kernel has no such hook.
    #[error("Linux {0} is older than 6.0")]
    Old(String),
    /// The kernel does not run the program.
    #[error("`bpf` is not among the active security modules (see the kernel's `lsm=` parameter)")]
    Inactive,
    /// The list of active modules cannot be read.
    #[error("whether `bpf` is among the active security modules cannot be read: {0}")]
    Unknown(io::Error),
    /// A program of a security hook is not pinned. A daemon that runs has tried to load it.
    #[error("the programs on the kernel's security hooks are not loaded (`steer doctor` says why)")]
    NotLoaded,
}

/// The security hook of a program.
pub(super) fn hook_of(name: &str) -> &'static str {
    match name {
        program::COMPAT_OPTION => "socket_setsockopt",
        program::COMPAT_RING => "uring_cmd",
        _ => "socket_create",
    }
}

/// The first version with the hooks.
const FIRST: (u32, u32) = (6, 0);

/// Why strict policies do not refuse sockets past the IP stack; `None`: they do.
pub fn unguarded(pins: &Pins) -> Option<Unguarded> {
    unguarded_by_kernel().or_else(|| {
        let has_rings = Path::new(IO_URING).exists();
        let programs = [(program::FAMILY, true), (program::COMPAT_OPTION, true), (program::COMPAT_RING, has_rings)];
        let is_missing = programs.into_iter().any(|(name, needed)| needed && !pins.program(name).exists());
        is_missing.then_some(Unguarded::NotLoaded)
    })
}

/// As [`unguarded`], but checks only the kernel.
pub fn unguarded_by_kernel() -> Option<Unguarded> {
    let release = release();
    if version(&release).is_some_and(|version| version < FIRST) {
        return Some(Unguarded::Old(release));
    }
    match bpf_is_active() {
        Ok(true) => None,
        Ok(false) => Some(Unguarded::Inactive),
        Err(error) => Some(Unguarded::Unknown(error)),
    }
}

/// The release of the running kernel; empty if it cannot be read.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Major and minor number of a release, as in `6.1.0-18-amd64`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether `bpf` is among the active security modules.
pub(super) fn bpf_is_active() -> io::Result<bool> {
    // Try the file first: a service manager's system call filter may not know the system call yet.
    match fs::read_to_string(format!("{SECURITYFS}/{LIST}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match list_modules() {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => read_list().map(|list| names_bpf(&list)),
            ids => Ok(ids?.contains(&LSM_ID_BPF)),
        },
        list => list.map(|list| names_bpf(&list)),
    }
}

/// Ids of the active security modules (Linux 6.8).
fn list_modules() -> io::Result<Vec<u64>> {
    let mut ids = [0_u64; 64];
    let mut bytes = u32::try_from(size_of_val(&ids)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `bytes` bytes into the array, and the length into `bytes`.
    let count = unsafe { libc::syscall(SYS_LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut bytes, 0) };
    match usize::try_from(count) {
        Ok(count) => Ok(ids.into_iter().take(count).collect()),
        Err(_negative) => Err(io::Error::last_os_error()),
    }
}

/// The names of the active modules, separated by commas, if securityfs is not mounted.
fn read_list() -> io::Result<String> {
    let mount = private_mount(c"securityfs")?;
    fs::read_to_string(Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join(LIST))
}

fn names_bpf(list: &str) -> bool {
    list.trim().split(',').any(|name| name == "bpf")
}

#[cfg(test)]
mod tests {
    use super::{names_bpf, version};

    #[test]
    fn versions() {
        for (release, want) in [("6.1.0-18-amd64", Some((6, 1))), ("5.10.223", Some((5, 10))), ("unknown", None)] {
            assert_eq!(version(release), want, "{release}");
        }
    }

    #[test]
    fn finds_bpf_in_the_list() {
        let cases =
            [("lockdown,capability,landlock,bpf", true), ("bpf\n", true), ("capability,bpfilter", false), ("", false)];
        for (list, named) in cases {
            assert_eq!(names_bpf(list), named, "{list:?}");
        }
    }
}
