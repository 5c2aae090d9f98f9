//! `cargo xtask managers`: runs the route method beside a real systemd-networkd and a real NetworkManager, of several Debian suites.
//!
//! **Invariant**: nothing is installed on this machine: the managers are in root file systems below `target/managers`, and run in
//! namespaces of the tests. The document is exactly the output of the tests, and no scenario is missing in it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo,
    dist::recreate,
    root::Root,
    setup::{self, Setup},
    tally::Tally,
    vm,
};

/// Packages of the root file system, in addition to the minimum. NetworkManager depends on a login manager, too.
const PACKAGES: [&str; 7] =
    ["systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "network-manager", "iproute2"];
/// What the root file system must have.
const MANAGERS: [&str; 3] = ["usr/sbin/NetworkManager", "usr/bin/networkctl", "usr/bin/udevadm"];
/// The lines of the test around the tables.
const TABLES: (&str, &str) = ("steer-managers: begin\n", "steer-managers: end\n");

/// Run policies with `local` and `except` beside systemd-networkd and NetworkManager that reconfigure all the time, and measure the
/// interruptions; needs root.
#[derive(clap::Args)]
pub(crate) struct Managers {
    /// Run only the scenarios whose name contains this.
    #[arg(value_name = "FILTER", default_value = "managers")]
    filter: String,
    /// A suite of Debian, whose managers are used.
    #[arg(long = "suite", value_name = "SUITE", default_values = ["bookworm", "sid"])]
    suites: Vec<String>,
    /// Make the root file systems again.
    #[arg(long)]
    refresh: bool,
    /// Write the tables to this file, in Markdown.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Managers {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        ensure!(
            self.filter.starts_with("managers"),
            "the names of these tests start with managers, not {}",
            self.filter
        );
        let as_root = Root::find().and_then(Root::prove)?;
        Setup::default().run()?;
        setup::bring(&["nftables"]);
        let programs = ["--bin", "steer", "--bin", "steer-probe"];
        let built = cargo::programs(&programs)?;
        let (steer, probe) = (cargo::binary(&built, "steer")?, cargo::binary(&built, "steer-probe")?);
        let test = cargo::integration_tests()?;

        let (mut tally, mut chapters) = (Tally::default(), String::new());
        for suite in &self.suites {
            let root = root(suite, self.refresh)?;
            let variables =
                [("STEER_BIN", steer.as_path()), ("STEER_PROBE", probe.as_path()), ("STEER_MANAGERS", root.as_path())];
            let mut command = as_root.command(&test.path, &variables);
            // One scenario at a time: they measure.
            command.args([&self.filter, "--test-threads=1"]).current_dir(&test.package_dir);
            let mut output = Vec::new();
            tally += Tally::observe(&mut command, &mut output)?;
            let output = String::from_utf8_lossy(&output);
            print!("{output}");
            let versions = ["systemd", "network-manager"].map(|package| version_in(&root, package));
            let [systemd, manager] = versions;
            let title = format!("\n## {suite}: systemd {}, NetworkManager {}\n", systemd?, manager?);
            chapters += &title;
            chapters += tables(&output).context("the test printed no tables")?;
        }
        println!("{tally}");
        if let Some(report) = &self.report {
            ensure!(tally.skipped == 0, "a scenario was skipped, so the document would lack it");
            vm::write(report, document(&chapters)?)?;
        }
        Ok(if tally.failed == 0 && tally.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn document(chapters: &str) -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    // Without what the builder of the kernel appended.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let (date, command) = (vm::today()?, vm::command_line());
    Ok(format!(
        "# steer beside network managers\n\nMade on {date} by `{command}`, on Linux {kernel}. Policies with `local` and `except` carry traffic \
         all the time, while the managers configure the links again and again, and other programs add rules and marks. No packet of a policy may \
         leave by a link that is not for it. *Not steered* are programs without steer that are bound to the same link at the same time: what they \
         lose is lost by the links, addresses and routes themselves. New sockets try every 10 ms, for at most 50 ms; a kept connection waits \
         until the kernel sends again. An attempt that takes more than 30 ms counts as interrupted. A policy that reaches the LAN sends \
         to it by the uplink while no link has its network, so it may be interrupted less often than a program without steer. While another program changes marks, \
         packets have the route of the changed mark: those to exceptions may leave by the uplink, and the rest is stopped.\n{chapters}"
    ))
}

/// A root file system of a suite. Makes it if it is missing.
fn root(suite: &str, refresh: bool) -> Result<PathBuf> {
    ensure!(suite.chars().all(|letter| letter.is_ascii_alphanumeric()), "{suite} is no suite");
    let place = cargo::target_directory()?.join("managers");
    let root = place.join(suite);
    if !refresh && MANAGERS.iter().all(|file| root.join(file).exists()) {
        return Ok(root);
    }
    ensure!(nix::unistd::geteuid().is_root(), "debootstrap needs root");
    vm::install(&[("debootstrap", "debootstrap")])?;
    let unfinished = place.join(format!("{suite}.new"));
    recreate(&unfinished)?;
    eprintln!("managers: making a root file system of {suite}, which takes a minute or two");
    vm::debootstrap(suite, &PACKAGES, &unfinished)?;
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    // It is renamed when it is complete, because an existing one is used.
    std::fs::rename(&unfinished, &root).with_context(|| format!("name {}", root.display()))?;
    Ok(root)
}

/// The version of a package that is installed below a root.
fn version_in(root: &Path, package: &str) -> Result<String> {
    let file = root.join("var/lib/dpkg/status");
    let status = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    vm::version_of(&status, package).with_context(|| format!("{} has no version of {package}", file.display()))
}

/// The output of the test between the two lines.
fn tables(output: &str) -> Option<&str> {
    let (_, rest) = output.split_once(TABLES.0)?;
    rest.split_once(TABLES.1).map(|(tables, _)| tables)
}

#[cfg(test)]
mod tests {
    use super::tables;

    #[test]
    fn the_output_of_the_test_is_parsed() {
        assert_eq!(tables("a\nsteer-managers: begin\n\n### x\nsteer-managers: end\nb\n"), Some("\n### x\n"));
        assert_eq!(tables("steer-managers: begin\n### x\n"), None, "cut short");
    }
}
