//! A container, by one of its processes: its cgroup and its network namespace.

use std::{fs::File, os::fd::AsFd as _};

use super::Error;
use crate::{
    cgroup::{Cgroup, Hierarchy},
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
    /// Looks at a process by its id in this process's PID namespace. Refuses what is no cgroup of a container: the root, and those
    /// that this process or the runtime is in.
    pub(super) fn look_at(hierarchy: &Hierarchy, pid: u32, runtime: Option<u32>) -> Result<Self, Error> {
        let path = hierarchy.of_process(pid)?;
        if path.is_root() {
            return Err(Error::RootCgroup { pid });
        }
        let mut others = vec![hierarchy.own()?];
        if let Some(runtime) = runtime {
            others.push(hierarchy.of_process(runtime)?);
        }
        if let Some(other) = others.into_iter().find(|other| other.is_in(&path)) {
            return Err(Error::RuntimesCgroup { path, other });
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
