//! Lists cgroups, and processes in them.
//!
//! **Invariant:** what users make below a cgroup cannot make a listing fail: a cgroup that cannot be reached is left out.

use std::{ffi::OsString, fs, io, os::unix::fs::DirEntryExt as _};

use super::{Error, Found, Hierarchy, hierarchy::is_leaf};
use crate::model::{cgroup_path::CgroupPath, quote::shown};

/// The longest path that a system call accepts, with the NUL (linux/limits.h).
const PATH_MAX: usize = 4096;
/// The deepest cgroup that is followed.
const LEVELS: usize = 128;
/// For the name of a file of a cgroup.
const FILE_BYTES: usize = 64;

/// The child cgroups of a cgroup.
#[derive(Debug, Default)]
pub struct Listing {
    /// Those that can be reached, by path.
    pub found: Vec<Found>,
    /// Why some others cannot; at most one of each kind.
    pub skipped: Vec<Skipped>,
}

/// Why a cgroup, and those below it, cannot be reached.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Skipped {
    /// A policy is text.
    #[error("the name of {} in it is not UTF-8, so no policy can name it", shown(.0))]
    Name(OsString),
    /// A user who may create cgroups can nest them deeper than the kernel's own files can name. The work for a cgroup grows with
    /// its depth.
    #[error(
        "cgroups in it are nested more than {LEVELS} levels deep, or have paths of {PATH_MAX} bytes, so they get no policy of their own"
    )]
    Path,
}

impl Hierarchy {
    /// Whether a cgroup is followed: it is not too deep, and system calls accept the paths of its files.
    pub fn is_reachable(&self, path: &CgroupPath) -> bool {
        path.parts().count() <= LEVELS && self.root_bytes() + path.as_str().len() + FILE_BYTES < PATH_MAX
    }

    /// Lists the child cgroups of a cgroup; none if it is gone.
    pub fn list(&self, path: &CgroupPath) -> Result<Listing, Error> {
        let file = self.directory(path);
        let failed = |source| Error::File { action: "list", file: file.clone(), source };
        let entries = match fs::read_dir(&file) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(Listing::default()),
            Err(source) => return Err(failed(source)),
        };
        let mut listing = Listing::default();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if is_gone(&error) => break,
                Err(source) => return Err(failed(source)),
            };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().into_string().map(|name| path.child(&name)) {
                Ok(path) if self.is_reachable(&path) => listing.found.push(Found { path, id: entry.ino() }),
                Ok(_) => listing.skip(Skipped::Path),
                Err(name) => listing.skip(Skipped::Name(name)),
            }
        }
        listing.found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listing)
    }

    /// The child cgroups of a cgroup that can be reached; none if it is gone.
    pub fn children(&self, path: &CgroupPath) -> Result<Vec<Found>, Error> {
        self.list(path).map(|listing| listing.found)
    }

    /// All cgroups below a cgroup that can be reached, parents before children.
    pub fn descendants(&self, path: &CgroupPath) -> Result<Vec<Found>, Error> {
        let below = |path: &CgroupPath| {
            // A cgroup without children need not be listed.
            let has_children = fs::metadata(self.directory(path)).is_ok_and(|metadata| !is_leaf(&metadata));
            let children = if has_children { self.children(path)? } else { Vec::new() };
            Ok::<_, Error>(children.into_iter().rev())
        };
        let mut found = Vec::new();
        let mut waiting: Vec<_> = below(path)?.collect();
        while let Some(next) = waiting.pop() {
            waiting.extend(below(&next.path)?);
            found.push(next);
        }
        Ok(found)
    }

    /// A cgroup, and those below it up to the next ones that `is_other` says are apart.
    pub fn part(&self, top: Found, is_other: impl Fn(u64) -> bool) -> Result<Vec<Found>, Error> {
        let mut part = vec![top];
        let mut visited = 0;
        while let Some(found) = part.get(visited) {
            let children = self.children(&found.path)?;
            part.extend(children.into_iter().filter(|child| !is_other(child.id)));
            visited += 1;
        }
        Ok(part)
    }

    /// The processes in a cgroup, without those below it; none if it cannot be read, as a threaded cgroup.
    pub fn members(&self, path: &CgroupPath) -> Vec<u32> {
        let text = fs::read_to_string(self.directory(path).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The processes in a cgroup and below it; leaves out cgroups that cannot be read.
    pub fn processes(&self, path: &CgroupPath) -> Vec<u32> {
        let below = self.descendants(path).unwrap_or_default().into_iter().map(|found| found.path);
        std::iter::once(path.clone()).chain(below).flat_map(|path| self.members(&path)).collect()
    }
}

impl Listing {
    fn skip(&mut self, skipped: Skipped) {
        let is_same = |other: &Skipped| std::mem::discriminant(other) == std::mem::discriminant(&skipped);
        if !self.skipped.iter().any(is_same) {
            self.skipped.push(skipped);
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
