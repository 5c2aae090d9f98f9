//! What the tests with containerd need: its programs, newer than the oldest Debian release has them, unpacked and not
//! installed, and packages that start no service.
//!
//! **Invariant**: what cannot be had is told once and fails nothing: the tests say that it is not there.

use std::path::PathBuf;

use anyhow::Result;

use crate::{apt, cargo, vm};

/// Debian's suite whose containerd can ask plugins. Its programs run with the libraries of the release before, too.
const SUITE: &str = "trixie";
/// What starts containers and gives them networks, and what is in their images.
const PACKAGES: [&str; 4] = ["runc", "containernetworking-plugins", "busybox-static", "jq"];

/// The directory of containerd's programs.
pub(crate) fn programs() -> Result<PathBuf> {
    let missing: Vec<_> = PACKAGES.into_iter().filter(|package| !apt::is_installed(package)).collect();
    if !missing.is_empty()
        && let Err(error) = apt::install(&missing)
    {
        eprintln!("setup: {} cannot be had: {error:#}", missing.join(", "));
    }
    let place = cargo::target_directory()?.join("containerd");
    let programs = place.join("usr/bin");
    if !programs.join("containerd").exists()
        && let Err(error) = vm::unpack_package(SUITE, "containerd", &place.join("apt"), &place)
    {
        eprintln!("setup: containerd cannot be had: {error:#}");
    }
    Ok(programs)
}
