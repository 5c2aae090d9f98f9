//! The cgroups of a measurement: a directory below the root of the cgroup2 hierarchy, with one cgroup for each variant.
//!
//! **Invariant:** every name contains the benchmark's PID, and all cgroups are removed in reverse order, also after a
//! failure.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::mount;

/// Removed on drop.
pub(crate) struct Cgroups {
    /// In order of creation; the first is the base of all others.
    made: Vec<PathBuf>,
}

impl Cgroups {
    pub(crate) fn new() -> Result<Self> {
        let mut cgroups = Self { made: Vec::new() };
        cgroups.make(mount::own_name(&mount::point("cgroup2")?))?;
        Ok(cgroups)
    }

    /// The cgroup of the measurement, with all others below it.
    pub(crate) fn base(&self) -> &Path {
        &self.made[0]
    }

    /// Makes a cgroup and its missing parents; `path` is relative to the base.
    pub(crate) fn add(&mut self, path: &str) -> Result<PathBuf> {
        let mut cgroup = self.base().to_owned();
        for part in path.split('/') {
            cgroup.push(part);
            if !self.made.contains(&cgroup) {
                self.make(cgroup.clone())?;
            }
        }
        Ok(cgroup)
    }

    fn make(&mut self, cgroup: PathBuf) -> Result<()> {
        fs::create_dir(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        self.made.push(cgroup);
        Ok(())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for cgroup in self.made.iter().rev() {
            if let Err(error) = fs::remove_dir(cgroup) {
                eprintln!("steer-bench: remove {}: {error}", cgroup.display());
            }
        }
    }
}
