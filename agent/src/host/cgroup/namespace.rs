//! The cgroup namespace, in which paths of cgroups are relative.

use std::{fs::File, io};

use nix::sched::{CloneFlags, setns};

/// Enters the cgroup namespace of process 1. In a container that has the processes of its host, and is not privileged, this is how paths
/// of cgroups become those of the host. Only for a process without other threads. Needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.
pub fn enter_that_of_the_host() -> io::Result<()> {
    setns(File::open("/proc/1/ns/cgroup")?, CloneFlags::CLONE_NEWCGROUP)?;
    Ok(())
}
