//! The recipe for Arch Linux, which makes a package from the tarball.
//!
//! **Invariant**: it names the checksums of the tarballs beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{VERSION, arch::Arch, archive, tarball};
use crate::cargo;

/// Writes the recipe beside the tarballs. Where one is missing, makepkg refuses its processor.
pub(super) fn write(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut text = read("PKGBUILD")?.replace("@VERSION@", VERSION);
    for arch in Arch::ALL {
        let tarball = directory.join(format!("{}.tar.gz", tarball::name(arch)));
        let sum = if tarball.exists() { archive::sha256(&tarball)? } else { "not packed".to_owned() };
        text = text.replace(&format!("@SHA256_{}@", arch.machine().to_uppercase()), &sum);
    }
    let mut written = Vec::new();
    for (name, text) in [("PKGBUILD", text), ("steer.install", read("steer.install")?)] {
        let file = directory.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        written.push(file);
    }
    Ok(written)
}

fn read(name: &str) -> Result<String> {
    let file = cargo::root().join("packaging").join(name);
    fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
}
