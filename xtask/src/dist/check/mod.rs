//! `cargo xtask dist --check`: installs, runs, upgrades and removes each artefact as its users do.
//!
//! **Invariant**: nothing is installed on this machine: each script has a root, or storage, of its own in a mount namespace of its own. What
//! cannot be tried here is reported with the reason.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use super::{VERSION, arch::Arch, chart, recreate};
use crate::{cargo, setup, toolchain, vm};

/// Where everything is made; the functions that the scripts share.
const COMMON: &str = include_str!("common.sh");

/// A way of installing.
struct Check {
    name: &'static str,
    script: &'static str,
    /// The programs that it starts, and their packages.
    needs: &'static [(&'static str, &'static str)],
    /// The suite of Debian that it installs to.
    suite: Option<&'static str>,
}

const CHECKS: [Check; 9] = [
    Check { name: "tarball", script: include_str!("tarball.sh"), needs: &[], suite: None },
    Check { name: "Debian 12", script: include_str!("debian.sh"), needs: &[], suite: Some("bookworm") },
    Check { name: "Debian 13", script: include_str!("debian.sh"), needs: &[], suite: Some("trixie") },
    Check { name: "lintian", script: include_str!("lintian.sh"), needs: &[("lintian", "lintian")], suite: None },
    Check {
        name: "rpm",
        script: include_str!("rpm.sh"),
        needs: &[("rpm", "rpm"), ("busybox", "busybox-static")],
        suite: None,
    },
    Check {
        name: "pacman",
        script: include_str!("pacman.sh"),
        needs: &[
            ("makepkg", "makepkg"),
            ("pacman", "pacman-package-manager"),
            ("bsdtar", "libarchive-tools"),
            ("zstd", "zstd"),
        ],
        suite: None,
    },
    Check {
        name: "podman",
        script: include_str!("podman.sh"),
        needs: &[("podman", "podman"), ("runc", "runc")],
        suite: None,
    },
    Check {
        name: "containerd",
        script: include_str!("containerd.sh"),
        needs: &[("containerd", "containerd"), ("ctr", "containerd")],
        suite: None,
    },
    Check {
        name: "both processors",
        script: include_str!("processors.sh"),
        needs: &[
            ("readelf", "binutils"),
            ("rpm", "rpm"),
            ("makepkg", "makepkg"),
            ("bsdtar", "libarchive-tools"),
            ("python3", "python3"),
        ],
        suite: None,
    },
];

/// Tries everything that is in the directory.
pub(super) fn all(directory: &Path) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "installing in roots of their own needs root");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut count = |name: &str, outcome: Result<Option<String>>| match outcome {
        Ok(None) => {
            passed += 1;
            println!("check: {name} ... ok");
        }
        Ok(Some(why)) => {
            skipped += 1;
            println!("check: {name} ... skipped: {why}");
        }
        Err(error) => {
            failed += 1;
            println!("check: {name} ... FAILED: {error:#}");
        }
    };
    for check in &CHECKS {
        count(check.name, check.run(directory));
    }
    for arch in Arch::ALL.into_iter().filter(|arch| !arch.is_host()) {
        count(&format!("{} program", arch.name()), emulated(arch, directory));
    }
    count("Kubernetes", kubernetes(directory));
    count("Ubuntu", Ok(Some("this machine's mirror has Debian only".to_owned())));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Check {
    /// Runs the script; or says what is missing.
    fn run(&self, directory: &Path) -> Result<Option<String>> {
        let Some(host) = Arch::host() else { return Ok(Some("nothing is packed for this processor".to_owned())) };
        if !directory.join(format!("steer_{VERSION}_{}.deb", host.name())).exists() {
            return Ok(Some(format!("not packed for {}", host.name())));
        }
        let missing = |(program, _): &&(&str, &str)| toolchain::program(program).is_none();
        let packages: Vec<_> = self.needs.iter().filter(missing).map(|(_, package)| *package).collect();
        setup::bring(&packages);
        if let Some((program, _)) = self.needs.iter().find(missing) {
            return Ok(Some(format!("{program} is not installed")));
        }
        let place = cargo::target_directory()?.join("dist-check");
        recreate(&place)?;
        let mut script = Command::new("unshare");
        script
            .args(["--mount", "--propagation", "private", "bash", "-euc"])
            .arg([COMMON, self.script].concat())
            .arg("sh");
        script.env("ARTEFACTS", directory).env("PLACE", &place).env("VERSION", VERSION);
        script.env("DEB_ARCH", host.name()).env("MACHINE", host.machine());
        if let Some(suite) = self.suite {
            script.env("DEBIAN", debian(suite)?);
        }
        let output = script.output().context("start unshare")?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        ensure!(output.status.success(), "{}\n{text}", output.status);
        for line in text.lines().filter_map(|line| line.strip_prefix("report: ")) {
            println!("check: {}: {line}", self.name);
        }
        Ok(None)
    }
}

/// A minimal root of a suite, which is kept.
fn debian(suite: &str) -> Result<PathBuf> {
    let place = cargo::target_directory()?.join("debian");
    let root = place.join(suite);
    if !root.exists() {
        setup::bring(&["debootstrap"]);
        eprintln!("dist: making a root file system of {suite}");
        let unfinished = place.join("unfinished");
        recreate(&unfinished)?;
        vm::debootstrap(suite, &[], &unfinished)?;
        std::fs::rename(&unfinished, &root).with_context(|| format!("name {}", root.display()))?;
    }
    Ok(root)
}

/// Starts the other processor's program in QEMU, which proves that it is whole and needs no library. BPF needs a kernel of its own.
fn emulated(arch: Arch, directory: &Path) -> Result<Option<String>> {
    let tarball = directory.join(format!("{}.tar.gz", super::tarball::name(arch)));
    if !tarball.exists() {
        return Ok(Some(format!("not packed for {}", arch.name())));
    }
    let qemu = format!("qemu-{}-static", arch.machine());
    if toolchain::program(&qemu).is_none() {
        setup::bring(&["qemu-user-static"]);
    }
    let Some(qemu) = toolchain::program(&qemu) else {
        return Ok(Some(format!("{qemu} is not installed")));
    };
    let place = cargo::target_directory()?.join("dist-check");
    recreate(&place)?;
    cargo::check(Command::new("tar").arg("--extract").arg("--file").arg(&tarball).arg("--directory").arg(&place))?;
    let program = place.join(super::tarball::name(arch)).join("usr/bin/steer");
    let said = super::printed(Command::new(qemu).arg(&program).arg("--version"))?;
    ensure!(said.trim().ends_with(VERSION), "steer --version printed {said:?}");
    Ok(None)
}

/// The releases of Kubernetes whose schemas the manifest is checked with.
const RELEASES: [&str; 3] = ["1.29", "1.33", "1.37"];

fn kubernetes(directory: &Path) -> Result<Option<String>> {
    let python = match chart::tools() {
        Ok(python) => python,
        Err(error) => return Ok(Some(format!("its schemas are not to be had here: {error:#}"))),
    };
    let manifest = directory.join(format!("steer-{VERSION}.yaml"));
    let validate = python.with_file_name("kubernetes-validate");
    for release in RELEASES {
        super::printed(Command::new(&validate).args(["--strict", "-k", release]).arg(&manifest))?;
    }
    // Proves that the check can fail.
    let misspelt = std::fs::read_to_string(&manifest)?.replace("hostPID:", "hostPiD:");
    let wrong = directory.join(".wrong.yaml");
    std::fs::write(&wrong, misspelt)?;
    let refused = Command::new(&validate).args(["--strict", "-k", RELEASES[0]]).arg(&wrong).output();
    std::fs::remove_file(&wrong)?;
    ensure!(!refused?.status.success(), "a misspelt field was accepted");
    Ok(None)
}
