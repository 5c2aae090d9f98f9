//! Debian's packages: which are installed, and installing more.
//!
//! **Invariant**: packages are only ever added; the package lists are refreshed at most once, and only when they lack
//! something or are too old to download from.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, toolchain};

/// Whether dpkg has the package installed; `false` also where there is no dpkg.
pub(crate) fn is_installed(package: &str) -> bool {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// Installs packages without what they merely recommend. The error is the reason why that cannot be done here.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    ensure!(toolchain::program("apt-get").is_some(), "there is no apt-get");
    ensure!(nix::unistd::geteuid().is_root(), "apt-get needs root");

    let mut refreshed = false;
    if !packages.iter().all(|package| is_known(package)) {
        refresh()?;
        refreshed = true;
    }
    let unknown: Vec<_> = packages.iter().copied().filter(|package| !is_known(package)).collect();
    ensure!(unknown.is_empty(), "apt knows no package {}", unknown.join(", "));

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

/// Installs packages whose services are not wanted: none of them is started, now.
pub(crate) fn install_without_services(packages: &[&str]) -> Result<()> {
    let _policy = StartPolicy::nothing()?;
    install(packages)
}

/// What Debian's packages ask before they start a service. Dropped, it is as before.
struct StartPolicy {
    ours: bool,
}

impl StartPolicy {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    /// Nothing may be started. Whoever has a policy of their own keeps it.
    fn nothing() -> Result<Self> {
        let mut create = fs::File::options();
        let created = create.write(true).create_new(true).mode(0o755).open(Self::FILE);
        let ours = match created {
            Ok(mut file) => {
                file.write_all(b"#!/bin/sh\nexit 101\n")?;
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context("forbid services to start, by /usr/sbin/policy-rc.d"),
        };
        Ok(Self { ours })
    }
}

impl Drop for StartPolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(Self::FILE)
        {
            eprintln!("setup: remove {} by hand, or no package starts a service: {error}", Self::FILE);
        }
    }
}

/// Unpacks a package below `place` without installing it: for a tool whose package would start a service.
pub(crate) fn unpack(package: &str, place: &Path) -> Result<()> {
    fs::create_dir_all(place)?;
    if !is_known(package) {
        refresh()?;
    }
    eprintln!("setup: unpacking the package {package} to {}", place.display());
    // Downloads as the user who calls, into the directory it runs in.
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

/// An apt-get that asks nothing and says nothing but what went wrong.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    command
}
