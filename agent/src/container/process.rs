//! A container, by one of its processes: its cgroup and its network namespace.

use std::{fs::File, os::fd::AsFd as _};

use super::{Container, Error};
use crate::{
    cgroup::{Cgroup, Hierarchy},
    cgroup_path::CgroupPath,
    datapath,
    interface::{self, Table},
};

/// Where a container is.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) cgroup: Cgroup,
    netns: File,
    /// Identity of its network namespace.
    pub(super) netns_cookie: u64,
}

impl Process {
    /// Looks at a container. Refuses what is no cgroup of a container: the root, and the one that this process is in, or one around it.
    pub(super) fn look_at(hierarchy: &Hierarchy, Container { pid, id, .. }: Container<'_>) -> Result<Self, Error> {
        let of_process = hierarchy.of_process(pid)?;
        if of_process.is_root() {
            return Err(Error::RootCgroup { pid });
        }
        let id = id.filter(|id| !id.is_empty());
        let named = |path: &CgroupPath| id.is_some_and(|id| path.name().contains(id));
        let path = of_process.self_and_ancestors().into_iter().find(named).unwrap_or(of_process);
        let own = hierarchy.own()?;
        if own.is_in(&path) {
            return Err(Error::RuntimesCgroup { path, own });
        }
        let file = format!("/proc/{pid}/ns/net");
        let netns = File::open(&file).map_err(|source| Error::Netns { file: file.clone(), source })?;
        let netns_cookie = interface::inside(netns.as_fd(), datapath::netns_cookie)
            .map_err(|source| Error::Netns { file, source })??;
        Ok(Self { cgroup: hierarchy.open(&path)?, netns, netns_cookie })
    }

    /// The links it has now.
    pub(super) fn links(&self) -> Result<Table, Error> {
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(interface::Error::Socket)?.block_on(interface::read())
        };
        let read = self.inside(read)?;
        Ok(read.map_err(datapath::Error::from)?)
    }

    /// Looks at things from inside its network namespace.
    pub(super) fn inside<T: Send>(&self, look: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let entered = interface::inside(self.netns.as_fd(), look);
        entered.map_err(|source| Error::Netns { file: "the container's network namespace".to_owned(), source })
    }
}
