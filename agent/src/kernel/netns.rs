//! The identity of a network namespace, also on kernels without `SO_NETNS_COOKIE` (before Linux 5.14). There a program
//! reads it from a socket that a child process makes for this purpose.
//!
//! **Invariant:** nothing is left behind. Program, map and link end with the call. The cgroup is a scope: if this process
//! is killed before it removes the scope, a later command does.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::{
    EbpfLoader, include_bytes_aligned,
    maps::{Array, MapError},
    programs::{CgroupSock, ProgramError},
};
use aya_obj::generated::bpf_attach_type;
use steer_common::netns;

use super::{Error, bpf, map_error, object};
use crate::host::{
    cgroup::{
        Cgroup, Hierarchy,
        scope::{self, Scope},
    },
    netns::own_cookie,
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netns-cookie"));

/// The cookie of the calling thread's network namespace, as the programs see it.
pub fn netns_cookie() -> Result<u64, Error> {
    match own_cookie()? {
        Some(cookie) => Ok(cookie),
        None => observe(&Hierarchy::find()?),
    }
}

/// Reads it from a socket made in a separate cgroup below the caller's.
fn observe(hierarchy: &Hierarchy) -> Result<u64, Error> {
    let scope = Scope::create(hierarchy, &hierarchy.own()?)?;
    let observed = observe_in(hierarchy, &scope.cgroup);
    match (observed, scope::remove(hierarchy, &scope.cgroup.path)) {
        (observed, Ok(_)) => observed,
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(first), Err(second)) => Err(Error::Several(vec![first, second.into()])),
    }
}

fn observe_in(hierarchy: &Hierarchy, cgroup: &Cgroup) -> Result<u64, Error> {
    let _raised = object::Memlock::raise();
    let mut object = EbpfLoader::new().load(OBJECT)?;
    let program: &mut CgroupSock = object
        .program_mut(netns::PROGRAM)
        .ok_or_else(|| ProgramError::InvalidName { name: netns::PROGRAM.to_owned() })
        .and_then(TryInto::try_into)
        .map_err(failed)?;
    program.load().map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd();
    let link = bpf::link_create(fd, cgroup.fd(), bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE)
        .map_err(|source| Error::Netns { action: "attach the program", source })?;
    let procs = hierarchy.directory(&cgroup.path).join("cgroup.procs");
    fs::File::options()
        .write(true)
        .open(procs)
        .and_then(|procs| make_socket(procs.as_raw_fd()))
        .map_err(|source| Error::Netns { action: "make a socket in a cgroup", source })?;
    drop(link);
    let read = |error| map_error("read", netns::MAP, error);
    let map = object.map(netns::MAP).ok_or_else(|| read(MapError::InvalidName { name: netns::MAP.to_owned() }))?;
    match Array::<_, u64>::try_from(map).map_err(read)?.get(&0, 0).map_err(read)? {
        0 => Err(Error::Netns { action: "read its result", source: io::Error::other("the program did not run") }),
        cookie => Ok(cookie),
    }
}

fn failed(source: ProgramError) -> Error {
    Error::Program { name: netns::PROGRAM, source }
}

/// Makes an IPv4 socket in a child process that joins the cgroup of this open `cgroup.procs`.
fn make_socket(procs: RawFd) -> io::Result<()> {
    // SAFETY: the child makes only async-signal-safe calls, and does not return.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => join_and_make_socket(procs),
        child => child,
    };
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 {
        return Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)));
    }
    Ok(())
}

/// Runs in the child; makes only async-signal-safe calls. The exit status is the errno of joining. It does not matter
/// whether the socket is made: the program runs in both cases.
fn join_and_make_socket(procs: RawFd) -> ! {
    // SAFETY: writes one byte with static lifetime to an open file.
    let joined = unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) };
    // Only reads errno; nothing is allocated.
    let errno = if joined == 1 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) };
    // SAFETY: no pointers.
    unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: no pointers; runs no handlers and no destructors.
    unsafe { libc::_exit(errno) }
}
