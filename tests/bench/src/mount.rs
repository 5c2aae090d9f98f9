//! Mount points of file systems, and unique names on them.
//!
//! **Invariant:** it only reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

/// The mount point of a file system of this type; the first of several.
pub(crate) fn point(file_system: &str) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    find(&mounts, file_system).with_context(|| format!("no {file_system} is mounted"))
}

/// A unique name below `directory`.
pub(crate) fn own_name(directory: &Path) -> PathBuf {
    directory.join(format!("steer-bench-{}", process::id()))
}

fn find(mounts: &str, file_system: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (source.split(' ').next() == Some(file_system)).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_type() {
        let mounts = "22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find(mounts, "bpf"), None);
    }
}
