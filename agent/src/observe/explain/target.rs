//! The target to explain: a process or a cgroup.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use thiserror::Error;

use super::document::Process;
use crate::{
    host::{
        cgroup::{self, Hierarchy},
        meant, netns,
    },
    model::{cgroup_path::CgroupPath, quote::shown},
};

/// Why a target cannot be explained.
#[derive(Debug, Error)]
pub enum Error {
    /// The name has no cgroup.
    #[error(transparent)]
    Meant(#[from] meant::Error),
    /// No process has this id.
    #[error("there is no process {0}; `pgrep -a NAME` finds a process by its name")]
    NoProcess(String),
    /// The process has ended, but its parent has not waited for it.
    #[error("process {pid} ({comm}) has ended, so it makes no more sockets", comm = shown(comm))]
    Ended {
        /// Its id.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// A file below /proc cannot be read.
    #[error("read {file}: {source}")]
    File {
        /// The file.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The network namespace of the process cannot be entered.
    #[error("enter the network namespace of process {pid}: {source} (needs CAP_SYS_ADMIN)")]
    Netns {
        /// Its id.
        pid: u32,
        /// Why it failed.
        source: io::Error,
    },
    /// The cgroup cannot be found or read.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

/// The target to explain.
#[derive(Debug)]
pub struct Target {
    pub(super) process: Option<Process>,
    pub(super) cgroup: CgroupPath,
    netns: fs::File,
    pub(super) netns_inode: u64,
    pub(super) netns_is_own: bool,
    /// Whether the process is in another mount namespace than this one.
    pub(super) sees_other_files: bool,
}

impl Target {
    /// Finds the target that the user names.
    pub fn find(text: &str, hierarchy: &Hierarchy) -> Result<Self, Error> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::of_process(text, hierarchy);
        }
        let cgroup = meant::find(hierarchy, text)?.path;
        // A container is explained in its own network namespace.
        if text.starts_with("container:")
            && let Some(process) = hierarchy.processes(&cgroup).first()
        {
            return Self::of_process(&process.to_string(), hierarchy);
        }
        let (netns, netns_inode) = open_netns("self")?;
        Ok(Self { process: None, cgroup, netns, netns_inode, netns_is_own: true, sees_other_files: false })
    }

    fn of_process(text: &str, hierarchy: &Hierarchy) -> Result<Self, Error> {
        let gone = || Error::NoProcess(text.to_owned());
        let pid: u32 = text.parse().map_err(|_too_large| gone())?;
        let status = Status::read(pid).map_err(|error| if is_gone(&error) { gone() } else { error })?;
        let Status { comm, uid, has_ended } = status;
        if has_ended {
            return Err(Error::Ended { pid, comm });
        }
        let found = || {
            let cgroup = hierarchy.of_process(pid)?;
            let (own, netns) = (open_netns("self")?.1, open_netns(&pid.to_string())?);
            let sees_other_files = namespace("self", "mnt")? != namespace(&pid.to_string(), "mnt")?;
            Ok(Self {
                process: Some(Process { pid, comm, uid }),
                cgroup,
                netns_is_own: netns.1 == own,
                netns: netns.0,
                netns_inode: netns.1,
                sees_other_files,
            })
        };
        found().map_err(|error| if is_gone(&error) { gone() } else { error })
    }

    /// Runs `work` on a thread in the target's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match &self.process {
            Some(process) if !self.netns_is_own => {
                netns::inside(&self.netns, work).map_err(|source| Error::Netns { pid: process.pid, source })
            }
            _ => Ok(work()),
        }
    }
}

/// Whether the error means that the process has ended.
fn is_gone(error: &Error) -> bool {
    let (Error::File { source, .. } | Error::Cgroup(cgroup::Error::File { source, .. })) = error else { return false };
    source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH)
}

fn open_netns(process: &str) -> Result<(fs::File, u64), Error> {
    let file = format!("/proc/{process}/ns/net");
    let opened = fs::File::open(&file).and_then(|netns| netns.metadata().map(|metadata| (netns, metadata.ino())));
    opened.map_err(|source| Error::File { file, source })
}

fn namespace(process: &str, kind: &str) -> Result<u64, Error> {
    let file = format!("/proc/{process}/ns/{kind}");
    fs::metadata(&file).map(|metadata| metadata.ino()).map_err(|source| Error::File { file, source })
}

/// The status of a process in /proc.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    comm: String,
    uid: u32,
    has_ended: bool,
}

impl Status {
    fn read(pid: u32) -> Result<Self, Error> {
        let directory = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| {
            let file = directory.join(name);
            // A process name may contain any bytes.
            let text = fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            text.map_err(|source| Error::File { file: file.display().to_string(), source })
        };
        let comm = read("comm")?.trim_end_matches('\n').to_owned();
        Ok(Self::parse(comm, &read("status")?))
    }

    fn parse(comm: String, status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        // The fields are the real, effective, saved and file system user ids.
        let uid = field("Uid:").split_whitespace().nth(1).and_then(|uid| uid.parse().ok()).unwrap_or(u32::MAX);
        let has_ended = matches!(field("State:").trim().chars().next(), Some('Z' | 'X'));
        Self { comm, uid, has_ended }
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn statuses() {
        let parse = |state: &str| {
            Status::parse("x".to_owned(), &format!("Name:\tx\nState:\t{state}\nUid:\t1000\t65534\t0\t0\n"))
        };
        for (state, has_ended) in [("S (sleeping)", false), ("R (running)", false), ("Z (zombie)", true)] {
            assert_eq!(parse(state), Status { comm: "x".to_owned(), uid: 65534, has_ended }, "{state}");
        }
    }
}
