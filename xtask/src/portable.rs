//! Whether the agent compiles for the other processor and for the C library of static programs: types of C differ in both.
//!
//! **Invariant**: only what a check needs is built. The kernel side is the same for all targets, and clippy has built it before.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    cargo,
    dist::arch::{self, Arch},
    toolchain,
};

/// One target differs from this machine's in both: what compiles for the two compiles for all four that `cargo xtask dist` could need.
pub(crate) fn arch() -> Arch {
    Arch::ALL.into_iter().find(|arch| !arch.is_host()).expect("there are two")
}

/// Debian's packages of the C compiler for it.
pub(crate) const C_COMPILER: &[&str] = if cfg!(target_arch = "aarch64") {
    &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"]
} else {
    &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]
};

/// The command that checks it; or why this machine cannot.
pub(crate) fn check() -> Result<std::result::Result<Command, &'static str>> {
    let arch = arch();
    if !installed_targets().iter().any(|name| name == arch.target()) {
        return Ok(Err("rustup has not installed its target"));
    }
    if toolchain::program(arch.c_compiler()).is_none() {
        return Ok(Err("its C compiler is not installed"));
    }
    let mut check = cargo::cargo(["check", "--package", "steer", "--package", "steer-lab", "--bins"]);
    arch.prepare(&mut check);
    check.args(["--target", arch.target()]).env(toolchain::BUILT, no_kernel_side()?);
    Ok(Ok(check))
}

/// A directory with empty objects, for builds that load none.
pub(crate) fn no_kernel_side() -> Result<PathBuf> {
    let empty = cargo::target_directory()?.join("no-kernel-side");
    fs::create_dir_all(&empty).with_context(|| format!("create {}", empty.display()))?;
    for object in toolchain::OBJECTS.map(|name| empty.join(name)) {
        // A new one would have the agent compiled again.
        if !object.exists() {
            fs::write(&object, "").with_context(|| format!("write {}", object.display()))?;
        }
    }
    Ok(empty)
}

/// Whether rustup has the targets of static programs.
pub(crate) fn has_targets() -> bool {
    let installed = installed_targets();
    arch::targets().all(|target| installed.iter().any(|name| name == target))
}

/// Installs the targets of static programs.
pub(crate) fn install_targets() -> Result<()> {
    cargo::check(
        Command::new("rustup").args(["--quiet", "target", "add"]).args(arch::targets()).current_dir(cargo::root()),
    )
}

/// The targets of the toolchain that builds the host's side.
fn installed_targets() -> Vec<String> {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).current_dir(cargo::root()).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    listed.lines().map(str::to_owned).collect()
}
