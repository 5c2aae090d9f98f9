//! The needs of the tests with containerd: its programs, in a newer version than that of the oldest Debian release, unpacked and
//! not installed, and packages that start no service.
//!
//! **Invariant**: what cannot be installed is reported once and is no error: the tests that need it report it as missing.

use std::path::PathBuf;

use anyhow::Result;

use crate::{apt, cargo, vm};

/// The Debian suite whose containerd supports plugins. Its programs also run with the libraries of the previous release.
const SUITE: &str = "trixie";
/// Packages that start containers and set up their networks, and packages for the images.
pub(crate) const PACKAGES: [&str; 4] = ["runc", "containernetworking-plugins", "busybox-static", "jq"];

/// The directory of containerd's programs.
pub(crate) fn programs() -> Result<PathBuf> {
    let missing: Vec<_> = PACKAGES.into_iter().filter(|package| !apt::is_installed(package)).collect();
    if !missing.is_empty()
        && let Err(error) = apt::install(&missing)
    {
        eprintln!("setup: {} cannot be installed: {error:#}", missing.join(", "));
    }
    let place = cargo::target_directory()?.join("containerd");
    let programs = place.join("usr/bin");
    if !programs.join("containerd").exists()
        && let Err(error) = vm::unpack_package(SUITE, "containerd", &place.join("apt"), &place)
    {
        eprintln!("setup: cannot unpack containerd: {error:#}");
    }
    Ok(programs)
}
