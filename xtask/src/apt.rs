//! Debian packages: which are installed, and installing more.
//!
//! **Invariant**: packages are only added. The package lists are refreshed at most once, and only if they lack a package or are
//! too old to download from.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, toolchain};

/// Whether dpkg has the package installed. `false` also where dpkg is missing.
pub(crate) fn is_installed(package: &str) -> bool {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// Installs packages without recommended ones. The error says why the installation failed.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    ensure!(toolchain::program("apt-get").is_some(), "there is no apt-get");
    ensure!(nix::unistd::geteuid().is_root(), "apt-get needs root");

    let mut refreshed = false;
    if !packages.iter().all(|package| is_known(package)) {
        refresh()?;
        refreshed = true;
    }
    let unknown: Vec<_> = packages.iter().copied().filter(|package| !is_known(package)).collect();
    ensure!(unknown.is_empty(), "apt has no package {}", unknown.join(", "));

    eprintln!("setup: installing the packages {}", packages.join(" "));
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    match cargo::check(&mut install) {
        Err(_) if !refreshed => {
            refresh()?;
            cargo::check(&mut install)
        }
        outcome => outcome,
    }
}

/// Installs packages without starting their services.
pub(crate) fn install_without_services(packages: &[&str]) -> Result<()> {
    let _policy = StartPolicy::nothing()?;
    install(packages)
}

/// Debian's policy script, which forbids packages to start a service. Dropping this removes it.
struct StartPolicy {
    ours: bool,
}

impl StartPolicy {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    /// Forbids all services to start. An existing policy is kept.
    fn nothing() -> Result<Self> {
        let mut create = fs::File::options();
        let created = create.write(true).create_new(true).mode(0o755).open(Self::FILE);
        let ours = match created {
            Ok(mut file) => {
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context("forbid services to start: write /usr/sbin/policy-rc.d"),
        };
        Ok(Self { ours })
    }
}

impl Drop for StartPolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::FILE)
        {
            eprintln!("setup: remove {}, or no package will start a service: {error}", Self::FILE);
        }
    }
}

/// Unpacks a package below `place` without installing it, for a tool whose package would start a service.
pub(crate) fn unpack(package: &str, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    if !is_known(package) {
        refresh()?;
    }
    eprintln!("setup: unpacking the package {package} to {}", place.display());
    // Downloads as the calling user, into the current directory.
    let mut download = apt_get();
    download.args(["download", package, "-o", "APT::Sandbox::User=root"]).current_dir(place);
    cargo::check(&mut download)?;
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            cargo::check(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(place))?;
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn is_known(package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", package]).stdout(Stdio::null()).stderr(Stdio::null());
    show.status().is_ok_and(|status| status.success())
}

fn refresh() -> Result<()> {
    eprintln!("setup: refreshing apt's package lists");
    cargo::check(apt_get().arg("update"))
}

/// A non-interactive apt-get that prints only errors.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    command
}
