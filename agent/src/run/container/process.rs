//! A container, by one of its processes: its cgroup and its network namespace.

use std::{fs::File, io, os::fd::AsFd as _};

use super::{Container, Error, Phase};
use crate::{
    apply::resolve::Namespace,
    host::{
        cgroup::{Cgroup, Hierarchy},
        link::{self, Table},
        netns,
        pidfd::Pidfd,
    },
    kernel,
    model::{mark::MarkMask, uplink::group::Group},
};

/// The location of a container.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    pidfd: Pidfd,
    pub(super) cgroup: Cgroup,
    netns: File,
    /// Identity of its network namespace.
    pub(super) netns_cookie: u64,
}

/// Whether the name of a cgroup contains the id of a container, and a runtime generated the id: 64 hexadecimal digits (Docker,
/// Podman, containerd's CRI, CRI-O). With an id that a user chose, the cgroup could hold more than the container.
fn is_named_by(name: &str, id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && name.contains(id)
}

impl Process {
    /// Finds a container. Refuses the root cgroup, and the cgroup of this process and its ancestors.
    ///
    /// The id of a process that the runtime has reported a while ago may be another process's now. So the name of its cgroup must
    /// contain the container's id.
    pub(super) fn look_at(hierarchy: &Hierarchy, Container { pid, id, phase }: Container<'_>) -> Result<Self, Error> {
        let pidfd = Pidfd::open(pid).map_err(|source| Error::Ended { pid, source: source.into() })?;
        let of_process = hierarchy.of_process(pid)?;
        if of_process.is_root() {
            return Err(Error::RootCgroup { pid });
        }
        let named = of_process.self_and_ancestors().into_iter().find(|path| is_named_by(path.name(), id));
        if phase != Phase::Starts && named.is_none() {
            return Err(Error::Stranger { pid, path: of_process, id: id.to_owned() });
        }
        let path = named.unwrap_or(of_process);
        let own = hierarchy.own()?;
        if own.is_in(&path) {
            return Err(Error::RuntimesCgroup { path, own });
        }
        let file = format!("/proc/{pid}/ns/net");
        let netns = File::open(&file).map_err(|source| Error::Netns { file: file.clone(), source })?;
        let netns_cookie =
            netns::inside(netns.as_fd(), kernel::netns_cookie).map_err(|source| Error::Netns { file, source })??;
        let process = Self { pid, pidfd, cgroup: hierarchy.open(&path)?, netns, netns_cookie };
        process.check_place(hierarchy)?;
        Ok(process)
    }

    /// Checks that it has not ended, and is still in the container's cgroup.
    pub(super) fn check_place(&self, hierarchy: &Hierarchy) -> Result<(), Error> {
        let pid = self.pid;
        let now = hierarchy.of_process(pid);
        // A process that has ended may have passed its id on.
        if self.pidfd.has_ended().map_err(|source| Error::Ended { pid, source })? {
            return Err(Error::Ended { pid, source: io::Error::from_raw_os_error(libc::ESRCH) });
        }
        let (now, path) = (now?, &self.cgroup.path);
        if now.is_in(path) && hierarchy.id(path)? == self.cgroup.id {
            return Ok(());
        }
        Err(Error::Moved { pid, path: path.clone(), now })
    }

    /// Its current links.
    pub(super) fn links(&self) -> Result<Table, Error> {
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(link::Error::Socket)?.block_on(link::read())
        };
        let read = self.inside(read)?;
        Ok(read.map_err(kernel::Error::from)?)
    }

    /// Its network namespace, with its current links.
    pub(super) fn namespace<'a>(&'a self, links: &'a Table, marks: MarkMask, groups: &'a [Group]) -> Namespace<'a> {
        Namespace { links, cookie: self.netns_cookie, marks, groups, inside: Some(self.netns.as_fd()) }
    }

    /// Runs a function inside its network namespace.
    pub(super) fn inside<T: Send>(&self, look: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let entered = netns::inside(self.netns.as_fd(), look);
        entered.map_err(|source| Error::Netns { file: "the container's network namespace".to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::is_named_by;

    #[test]
    fn the_cgroup_of_a_container_bears_its_id() {
        let id = "0a1b2c3d".repeat(8);
        for name in ["ID", "libpod-ID.scope", "cri-containerd-ID.scope", "kubepods-pod1.slice:cri-containerd:ID"] {
            assert!(is_named_by(&name.replace("ID", &id), &id), "{name}");
        }
        for (name, id) in [("container", id.as_str()), ("web", "web"), ("crun-web.scope", "web"), ("web", ""), ("", "")]
        {
            assert!(!is_named_by(name, id), "{name} {id}");
        }
    }
}
