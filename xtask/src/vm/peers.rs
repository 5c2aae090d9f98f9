//! `cargo xtask peers`: compares steer with existing alternatives, in a virtual machine with a kernel that has VRFs, and a root
//! file system of Debian's newest suite, for its systemd.
//!
//! **Invariant**: the document is exactly the output of the tests in the guest, and no compared program is missing.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    NEEDS, Wanted, boot, command_line, debian,
    guest::{self, Job, Verdict},
    install, place, today, write,
};
use crate::{
    cargo,
    dist::{arch::Arch, recreate},
    setup::Setup,
};

/// The suite whose systemd is used.
const SUITE: &str = "sid";
/// Packages of the root file system, in addition to the minimum.
const PACKAGES: [&str; 5] = ["systemd", "systemd-sysv", "dbus", "iproute2", "util-linux-extra"];
/// Programs that make and read a root file system, and their Debian packages.
pub(crate) const ROOT_NEEDS: [(&str, &str); 3] =
    [("debootstrap", "debootstrap"), ("mkfs.ext4", "e2fsprogs"), ("debugfs", "e2fsprogs")];
/// The lines in the console around the tables.
const TABLES: (&str, &str) = ("steer-peers: begin", "steer-peers: end");

/// Compare steer with BindNetworkInterface= of systemd and with `ip vrf exec`, in a virtual machine; needs root to make its root file system.
#[derive(clap::Args)]
pub(crate) struct Peers {
    /// Run only the tests whose name contains this.
    #[arg(value_name = "FILTER", default_value = "peers")]
    filter: String,
    /// 5.10, 6.1, 6.12 or latest, as Debian currently ships them; or the file of a kernel image.
    #[arg(long, value_name = "KERNEL", default_value = "latest")]
    kernel: Wanted,
    /// Write the tables to this file, in Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Check for a newer kernel, and make the root file system again.
    #[arg(long)]
    refresh: bool,
    /// Print the console, not only that of a failure.
    #[arg(long)]
    verbose: bool,
}

impl Peers {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        ensure!(self.filter.starts_with("peers"), "the names of these tests start with peers, not {}", self.filter);
        install(&[&NEEDS[..2], &ROOT_NEEDS].concat())?;
        Setup::default().run()?;
        let disk = self.disk()?;
        let kernel = self.kernel.obtain(Arch::Amd64, "amd64", &place()?, self.refresh)?;
        let job = Job::on_disk(&self.filter, Arch::Amd64, disk.clone())?;
        let (console, took) = boot(&kernel, &job, self.verbose)?;
        let verdict = guest::verdict(&console);
        eprintln!("peers: {}: {verdict}, {:.0} s", kernel.release, took.as_secs_f64());
        let tables = tables(&console).context("the guest printed no tables")?;
        println!("{tables}");
        ensure!(!tables.contains("| not here |"), "the guest lacks a program of the comparison; --verbose shows why");
        if let Some(report) = &self.report {
            let (date, command, systemd) = (today()?, command_line(), version_in(&disk, "systemd")?);
            let on = format!("on Linux {}, with systemd {systemd}", kernel.release);
            write(report, format!("# steer and its peers\n\nMade on {date} by `{command}`, {on}.\n{tables}"))?;
        }
        Ok(if verdict == Verdict::Exited(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The image of the root file system. Makes it if it is missing.
    fn disk(&self) -> Result<PathBuf> {
        let place = place()?;
        let image = place.join(SUITE).with_extension("ext4");
        if image.exists() && !self.refresh {
            return Ok(image);
        }
        ensure!(nix::unistd::geteuid().is_root(), "debootstrap needs root");
        let root = place.join(SUITE);
        recreate(&root)?;
        eprintln!("peers: making a root file system of {SUITE}, which takes a minute or two");
        debian::debootstrap(SUITE, &PACKAGES, &root)?;
        // The image is renamed when it is complete, because an existing image is used.
        let unfinished = image.with_extension("new");
        pack(&root, &unfinished)?;
        std::fs::rename(&unfinished, &image).with_context(|| format!("name {}", image.display()))?;
        std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        Ok(image)
    }
}

fn pack(root: &Path, image: &Path) -> Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-d"]).arg(root).arg(image).arg("1G");
    cargo::check(&mut mkfs)
}

/// The version of a package that is installed in an image.
fn version_in(image: &Path, package: &str) -> Result<String> {
    let mut debugfs = Command::new("debugfs");
    let output = debugfs.args(["-R", "cat /var/lib/dpkg/status"]).arg(image).output().context("start debugfs")?;
    let status = String::from_utf8_lossy(&output.stdout);
    let version = version_of(&status, package);
    version.with_context(|| format!("{} has no version of {package}", image.display()))
}

/// Parses dpkg's status file.
pub(crate) fn version_of(status: &str, package: &str) -> Option<String> {
    let of_package = |stanza: &&str| stanza.lines().any(|line| line.strip_prefix("Package: ") == Some(package));
    let stanza = status.split("\n\n").find(of_package)?;
    stanza.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// The output of the guest between the two lines.
fn tables(console: &str) -> Option<String> {
    let (_, rest) = console.split_once(&format!("{}\n", TABLES.0))?;
    let (tables, _) = rest.split_once(&format!("{}\n", TABLES.1))?;
    Some(tables.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_the_guest_is_parsed() {
        assert_eq!(tables("a\nsteer-peers: begin\n\n| x |\nsteer-peers: end\nb\n").as_deref(), Some("\n| x |\n"));
        let status =
            "Package: libsystemd0\nVersion: 1\n\nPackage: systemd\nStatus: x\nVersion: 262.1-1\n\nPackage: z\n";
        assert_eq!(version_of(status, "systemd").as_deref(), Some("262.1-1"));
        assert_eq!(tables("steer-peers: begin\n| x |\n"), None, "cut short");
    }
}
