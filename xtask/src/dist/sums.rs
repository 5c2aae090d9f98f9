//! The checksums of everything, in the format of sha256sum(1), for a signature beside it.
//!
//! **Invariant**: every artefact has a line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::archive;

pub(super) fn write(artefacts: &[PathBuf], directory: &Path) -> Result<PathBuf> {
    let mut lines = Vec::new();
    for artefact in artefacts {
        let name = artefact.file_name().context("an artefact has no name")?.to_string_lossy();
        lines.push(format!("{}  {name}\n", archive::sha256(artefact)?));
    }
    lines.sort_by(|left, right| left[64..].cmp(&right[64..]));
    let file = directory.join("SHA256SUMS");
    fs::write(&file, lines.concat()).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
