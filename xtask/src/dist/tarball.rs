//! The tarball for any system: the tree of the Debian package, and a script that installs it.
//!
//! **Invariant**: it has nothing below `/etc`. The script creates a configuration only where there is none.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{arch::Arch, archive, recreate};
use crate::cargo;

const SCRIPT: &str = "packaging/install.sh";

/// The name without its suffixes, which is also that of its only directory.
pub(super) fn name(arch: Arch) -> String {
    format!("steer-{}-{}-linux", super::VERSION, arch.machine())
}

/// Packs the tree of a package.
pub(super) fn of(arch: Arch, tree: &Path, directory: &Path) -> Result<PathBuf> {
    let (name, place) = (name(arch), directory.join(".tarball"));
    recreate(&place)?;
    let top = place.join(&name);
    super::copy(tree, &top)?;
    let (etc, share) = (top.join("etc"), top.join("usr/share/steer"));
    fs::rename(etc.join("steer"), &share).with_context(|| format!("move {} to {}", etc.display(), share.display()))?;
    fs::remove_dir(&etc).with_context(|| format!("{} has files that the tarball would replace", etc.display()))?;
    let script = top.join("install.sh");
    fs::copy(cargo::root().join(SCRIPT), &script).with_context(|| format!("copy {SCRIPT}"))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("make install.sh executable")?;
    let tarball = directory.join(format!("{name}.tar"));
    archive::tar(&tarball, &place, &name)?;
    fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    archive::gzip(&tarball)
}
