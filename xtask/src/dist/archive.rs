//! Archives whose bytes depend on nothing but the names, the modes and the contents of the files.
//!
//! **Invariant**: every entry belongs to root and has the time of the commit.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::epoch;
use crate::cargo;

/// Packs an entry of a directory, or `.` for its contents.
pub(super) fn tar(archive: &Path, directory: &Path, entry: &str) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--mtime=@{}", epoch()?)).arg("--file").arg(archive).arg("--directory").arg(directory).arg(entry);
    cargo::check(&mut tar)
}

/// Compresses a file beside itself, and removes it. Returns the new path.
pub(super) fn gzip(file: &Path) -> Result<PathBuf> {
    cargo::check(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(file))?;
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    Ok(name.into())
}

/// The SHA-256 of a file, in hexadecimal.
pub(super) fn sha256(file: &Path) -> Result<String> {
    let input = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let output = Command::new("sha256sum").stdin(input).output().context("start sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed for {}", file.display());
    let text = String::from_utf8(output.stdout).context("read the output of sha256sum")?;
    Ok(text.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}
