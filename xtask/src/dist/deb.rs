//! The Debian package. Its tree is also that of the other packages.
//!
//! **Invariant**: only `package.metadata.deb` of the agent says where files are installed. dpkg asks before it changes a file below `/etc`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{Profile, epoch, program::Programs, recreate};
use crate::cargo;

/// Packs static programs, which depend on nothing.
pub(super) fn of(programs: &Programs, profile: Profile, directory: &Path) -> Result<PathBuf> {
    let place = directory.join(".deb");
    recreate(&place)?;
    let package =
        cargo_deb(&place, profile, &["--variant", "static", "--target", programs.arch.target(), "--no-strip"])?;
    let to = directory.join(package.file_name().context("the package has no name")?);
    fs::rename(&package, &to).with_context(|| format!("move {} to {}", package.display(), to.display()))?;
    fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    Ok(to)
}

/// Unpacks the files of a package.
pub(super) fn unpack(package: &Path, tree: &Path) -> Result<()> {
    cargo::check(Command::new("dpkg-deb").arg("--extract").arg(package).arg(tree))
}

/// Packs what is built already, into an empty directory.
pub(super) fn cargo_deb(directory: &Path, profile: Profile, options: &[&str]) -> Result<PathBuf> {
    let mut deb = cargo::cargo(["deb", "--quiet", "--no-build", "--package", "steer", "--profile"]);
    deb.arg(profile.name()).arg("--output").arg(directory).args(options).env("SOURCE_DATE_EPOCH", epoch()?.to_string());
    cargo::check(deb.stdout(Stdio::null()))?;
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut packages = entries.flatten().map(|entry| entry.path());
    packages
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("cargo deb left no package in {}", directory.display()))
}
