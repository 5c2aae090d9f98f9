//! The rpm, for Fedora, RHEL, openSUSE and their relatives.
//!
//! **Invariant**: rpm keeps a changed configuration. A service is enabled only by the system's presets, as these systems want it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{VERSION, arch::Arch, epoch, recreate};
use crate::cargo;

/// The parts of the specification that do not depend on the files.
const SPEC: &str = "packaging/steer.spec";

/// Packs the tree of the tarball, and the configuration.
pub(super) fn of(arch: Arch, tree: &Path, directory: &Path) -> Result<PathBuf> {
    let place = directory.join(".rpm");
    recreate(&place)?;
    let mut spec = fs::read_to_string(cargo::root().join(SPEC)).with_context(|| format!("read {SPEC}"))?;
    spec = spec.replace("@VERSION@", VERSION);
    spec.push_str("\n%files\n%config(noreplace) /etc/steer/steer.toml\n");
    let files = super::files(tree)?;
    // rpm removes only the directories of a package that are in its list.
    let own: BTreeSet<_> = files.iter().flat_map(|file| file.ancestors().skip(1)).filter(|path| is_own(path)).collect();
    let own = own.iter().map(|directory| format!("%dir /{}\n", directory.display()));
    let others = files.iter().filter(|file| !file.starts_with("etc")).map(|file| format!("/{}\n", file.display()));
    spec.extend(own.chain(others));
    let file = place.join("steer.spec");
    fs::write(&file, spec).with_context(|| format!("write {}", file.display()))?;
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--nodeps", "--target", &format!("{}-linux", arch.machine())]);
    for (name, value) in [
        ("_topdir", place.as_os_str()),
        ("_rpmdir", directory.as_os_str()),
        ("_dbpath", place.join("db").as_os_str()),
        ("steer_tree", tree.as_os_str()),
    ] {
        rpmbuild.arg("--define").arg(format!("{name} {}", value.to_string_lossy()));
    }
    rpmbuild.arg(&file).env("SOURCE_DATE_EPOCH", epoch()?.to_string()).stdout(Stdio::null());
    cargo::check(&mut rpmbuild)?;
    fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    Ok(directory.join(format!("steer-{VERSION}-1.{}.rpm", arch.machine())))
}

/// Whether a directory, or one that it is in, is called as the project.
fn is_own(directory: &Path) -> bool {
    directory.components().any(|part| part.as_os_str() == "steer")
}
