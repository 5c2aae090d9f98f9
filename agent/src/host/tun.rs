//! The processes at the other ends of TUN and TAP devices, such as slirp4netns and pasta.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::MetadataExt as _,
    },
};

use nix::{
    errno::Errno,
    sys::stat::{fstat, makedev},
};

use super::pidfd::Pidfd;

/// Numbers of the device `/dev/net/tun`. Its path can be another one in the mount namespace of the process.
const DEVICE: (u64, u64) = (10, 200);
/// `_IO('T', 227)` of linux/if_tun.h: the network namespace of the device (Linux 5.6).
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// The processes that hold devices of the network namespace with this inode. Leaves out processes that cannot be read.
pub(crate) fn holders(netns_inode: u64) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| holds(pid, netns_inode).unwrap_or(false)).collect()
}

fn holds(pid: u32, netns_inode: u64) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        if !fs::metadata(entry.path()).is_ok_and(|file| file.rdev() == makedev(DEVICE.0, DEVICE.1)) {
            continue;
        }
        let Some(fd) = entry.file_name().to_str().and_then(|fd| fd.parse::<RawFd>().ok()) else { continue };
        let device = Pidfd::open(pid)?.copy(fd)?;
        // A descriptor without a device has no namespace.
        if netns(&device).is_ok_and(|inode| inode == netns_inode) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The inode of the network namespace of a device. Needs CAP_NET_ADMIN there.
fn netns(device: impl AsFd) -> nix::Result<u64> {
    // SAFETY: this request takes no argument.
    let fd = Errno::result(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), TUNGETDEVNETNS) })?;
    // SAFETY: nothing else owns a descriptor that the kernel has just created.
    let netns = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fstat(netns)?.st_ino)
}
