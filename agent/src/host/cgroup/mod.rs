//! Cgroups: finds the hierarchy, reads and watches its cgroups, and creates scopes.
//!
//! **Invariant:** changes only cgroups that `scope` has made. Paths are relative to the root of the cgroup2 mount, whatever
//! the mount point.

mod hierarchy;
mod listing;
pub mod namespace;
pub mod scope;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::model::{
    cgroup_path::{CgroupPath, InvalidPath},
    quote::shown,
};

pub use hierarchy::{Cgroup, Found, Hierarchy};
pub use listing::{Listing, Skipped};
pub use watch::{Directory, Report, Reports, Watch, watch};

/// The directory that is missing, unless only this process has the mount.
fn looked_for(file: &Path) -> String {
    if file.starts_with("/proc/self/fd") { String::new() } else { format!(" (looked for {})", shown(file)) }
}

/// What can go wrong with cgroups.
#[derive(Debug, Error)]
pub enum Error {
    /// No cgroup2 hierarchy.
    #[error(
        "no cgroup2 hierarchy: none is mounted, and mounting one failed: {0} (mount one with `mount -t cgroup2 none /sys/fs/cgroup`)"
    )]
    NoHierarchy(#[source] io::Error),
    /// A cgroup that does not exist.
    #[error("there is no cgroup {path}{}", looked_for(.file))]
    Missing {
        /// Its path.
        path: CgroupPath,
        /// The missing directory.
        file: PathBuf,
    },
    /// The calling process is not part of the unit that it named.
    #[error(
        "this process is in {own}, which is not in a cgroup of {unit}: use --unit only in a command of the unit itself, such as ExecStartPre=+"
    )]
    NotInUnit {
        /// Where it is.
        own: CgroupPath,
        /// The unit.
        unit: String,
    },
    /// Not a path below the hierarchy.
    #[error(transparent)]
    NotAPath(#[from] InvalidPath),
    /// A file operation.
    #[error("{action} {file}: {source}", file = shown(file))]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A cgroup below a threaded one.
    #[error(
        "enter {file}: the calling process is in a threaded cgroup (cgroup.type), which cannot have cgroups with processes below it; start the command from another cgroup",
        file = shown(file)
    )]
    Threaded {
        /// Its list of processes.
        file: PathBuf,
    },
    /// No cgroup for a scope.
    #[error(
        "no cgroup above {own} can be changed by root alone; a user could move the command out of a cgroup made there"
    )]
    NotRoots {
        /// Where the process is.
        own: CgroupPath,
    },
    /// The calling process is not where it has just moved to.
    #[error("another process moved this one to {own} at once")]
    MovedAway {
        /// Where it is.
        own: CgroupPath,
    },
    /// The inotify instance failed.
    #[error("watch cgroups: {0}{hint}", hint = watch_hint(.0))]
    Watch(#[source] io::Error),
}

fn watch_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => " (raise fs.inotify.max_user_watches)",
        Some(libc::EMFILE) => " (raise fs.inotify.max_user_instances)",
        _ => "",
    }
}
