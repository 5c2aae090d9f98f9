//! `cargo xtask peers`: steer beside what users have today, in a virtual machine that has all of it: a kernel with VRFs and a
//! root of Debian's newest, for its systemd.
//!
//! **Invariant**: the document is what the tests in the guest printed, word for word, and lacks nothing that is compared.

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
use crate::{cargo, dist::recreate, setup::Setup};

/// The suite whose systemd is compared with.
const SUITE: &str = "sid";
/// What the root has besides the least there can be.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,util-linux-extra";
/// Programs that make a root and look into it, and the Debian packages that bring them.
const ROOT_NEEDS: [(&str, &str); 3] =
    [("debootstrap", "debootstrap"), ("mkfs.ext4", "e2fsprogs"), ("debugfs", "e2fsprogs")];
/// The lines in the console around the tables.
const TABLES: (&str, &str) = ("steer-peers: begin", "steer-peers: end");

/// Compare steer with BindNetworkInterface= of systemd and with `ip vrf exec`, in a virtual machine; needs root to make its root.
#[derive(clap::Args)]
pub(crate) struct Peers {
    /// Run only the tests whose name contains this.
    #[arg(value_name = "FILTER", default_value = "peers")]
    filter: String,
    /// 5.10, 6.1, 6.12 or latest, as Debian ships them now; or the file of a kernel image.
    #[arg(long, value_name = "KERNEL", default_value = "latest")]
    kernel: Wanted,
    /// Write the tables to this file, in Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Look for a newer kernel and make the root anew.
    #[arg(long)]
    refresh: bool,
    /// Print the console, not only that of a failure.
    #[arg(long)]
    verbose: bool,
}

impl Peers {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        ensure!(self.filter.starts_with("peers"), "the tests of this are called peers::..., and not {}", self.filter);
        install(&[&NEEDS[..2], &ROOT_NEEDS].concat())?;
        Setup::default().run()?;
        let disk = self.disk()?;
        let kernel = self.kernel.obtain("amd64", &place()?, self.refresh)?;
        let job = Job { disk: Some(disk.clone()), ..Job::of(&self.filter)? };
        let (console, took) = boot(&kernel, &job, self.verbose)?;
        let verdict = guest::verdict(&console);
        eprintln!("peers: {}: {verdict}, {:.0} s", kernel.release, took.as_secs_f64());
        let tables = tables(&console).context("the guest printed no tables")?;
        println!("{tables}");
        ensure!(!tables.contains("| not here |"), "the guest lacks some of what is to be compared; --verbose says why");
        if let Some(report) = &self.report {
            let (date, command, systemd) = (today()?, command_line(), version_in(&disk, "systemd")?);
            let on = format!("on Linux {}, with systemd {systemd}", kernel.release);
            write(report, format!("# steer and its peers\n\nMade on {date} by `{command}`, {on}.\n{tables}"))?;
        }
        Ok(if verdict == Verdict::Exited(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The image of the root, made unless it is there.
    fn disk(&self) -> Result<PathBuf> {
        let place = place()?;
        let image = place.join(SUITE).with_extension("ext4");
        if image.exists() && !self.refresh {
            return Ok(image);
        }
        ensure!(nix::unistd::geteuid().is_root(), "debootstrap needs root");
        let root = place.join(SUITE);
        recreate(&root)?;
        eprintln!("peers: making a root of {SUITE}, which takes a minute or two");
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&root);
        cargo::check(debootstrap.arg(debian::mirror()?).stdout(std::process::Stdio::null()))?;
        // Whole or not at all: an image that is there counts as made.
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

/// The version of a package that is installed in the image of a root.
fn version_in(image: &Path, package: &str) -> Result<String> {
    let mut debugfs = Command::new("debugfs");
    let output = debugfs.args(["-R", "cat /var/lib/dpkg/status"]).arg(image).output().context("start debugfs")?;
    let status = String::from_utf8_lossy(&output.stdout);
    let version = version_of(&status, package);
    version.with_context(|| format!("{} tells no version of {package}", image.display()))
}

/// Reads dpkg's file of what is installed.
fn version_of(status: &str, package: &str) -> Option<String> {
    let of_package = |stanza: &&str| stanza.lines().any(|line| line.strip_prefix("Package: ") == Some(package));
    let stanza = status.split("\n\n").find(of_package)?;
    stanza.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// What the guest printed between the two lines.
fn tables(console: &str) -> Option<String> {
    let (_, rest) = console.split_once(&format!("{}\n", TABLES.0))?;
    let (tables, _) = rest.split_once(&format!("{}\n", TABLES.1))?;
    Some(tables.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        assert_eq!(tables("a\nsteer-peers: begin\n\n| x |\nsteer-peers: end\nb\n").as_deref(), Some("\n| x |\n"));
        let status =
            "Package: libsystemd0\nVersion: 1\n\nPackage: systemd\nStatus: x\nVersion: 262.1-1\n\nPackage: z\n";
        assert_eq!(version_of(status, "systemd").as_deref(), Some("262.1-1"));
        assert_eq!(tables("steer-peers: begin\n| x |\n"), None, "cut short");
    }
}
