//! A machine that boots the systemd of this root, or of another root, within a second. It runs in its own namespaces,
//! on an overlay of that root.
//!
//! **Invariant:** it changes nothing outside. Its files, its bpffs and its processes end with it. Its cgroups are in
//! the bed's cgroup, and its network is that of the bed's client.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use steer_lab::{wait_for, wait_until};

use crate::{Bed, Cgroup, NotHere, Output, PATIENCE, binary, copy_program, output};

const SYSTEMD: &str = "lib/systemd/systemd";
/// The exit status with which `machine.sh` reports that it cannot build the root.
const NO_ROOT: i32 = 77;

/// A running machine. On drop, it is stopped.
#[derive(Debug)]
pub struct Machine {
    /// `unshare`; all processes of the machine end with it.
    outer: Child,
    /// Its PID 1, in the PID namespace of the test.
    init: u32,
    /// The root of its cgroups.
    cgroup: Cgroup,
}

impl Machine {
    /// Boots a machine from this root. [`NotHere`] where that is not possible.
    pub fn boot(bed: &Bed) -> anyhow::Result<Self> {
        Self::boot_over(bed, Path::new("/"))
    }

    /// As [`Self::boot`], from another root.
    pub fn boot_over(bed: &Bed, lower: &Path) -> anyhow::Result<Self> {
        if !lower.join(SYSTEMD).exists() {
            return Err(NotHere(format!("there is no {}", lower.join(SYSTEMD).display())).into());
        }
        let root = bed.directory.join("machine");
        fs::create_dir(&root)?;
        let console = bed.directory.join("console");
        let cgroup = bed.cgroup.child("machine")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"])
            .args(["--propagation", "private", "sh", "-c", include_str!("machine.sh"), "machine"])
            .args([&root, &bed.directory, lower])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&console)?);
        // It also ends when the test is killed.
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        cgroup.enter(bed.net.client.enter(&mut command));
        let outer = command.spawn().context("start unshare")?;
        let mut machine = Self { outer, init: 0, cgroup };
        let said = || fs::read_to_string(&console).unwrap_or_default();
        machine.wait_until_up(said).with_context(said)?;
        Ok(machine)
    }

    fn wait_until_up(&mut self, said: impl Fn() -> String) -> anyhow::Result<()> {
        let outer = self.outer.id();
        let children = format!("/proc/{outer}/task/{outer}/children");
        let is_systemd =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "systemd\n");
        let mut ended = None;
        let init = wait_for("PID 1 of the machine", PATIENCE, || {
            ended = self.outer.try_wait().ok().flatten();
            let child = fs::read_to_string(&children).ok().and_then(|child| child.trim().parse().ok());
            child.filter(is_systemd).map(Some).or(ended.map(|_| None))
        })?;
        if ended.is_some_and(|status| status.code() == Some(NO_ROOT)) {
            return Err(NotHere(format!("a root for systemd cannot be built here: {}", said().trim())).into());
        }
        self.init = init.with_context(|| format!("the machine did not boot: {ended:?}"))?;
        let up = wait_until("the machine to be up", PATIENCE, || {
            self.run(&["systemctl", "is-active", "machine.target"]).is_ok_and(|answer| answer.code == 0)
        });
        up.with_context(|| {
            format!("waiting for {:?}: {}", self.run(&["systemctl", "list-jobs"]), self.journal().unwrap_or_default())
        })
    }

    /// Installs the binary under test, its unit and this configuration where a package would, and starts the daemon.
    pub fn install(&self, config: &str) -> anyhow::Result<()> {
        copy_program(&binary("STEER_BIN", "steer"), &self.path("/usr/bin/steer"))?;
        self.write("/etc/systemd/system/steer.service", include_str!("../../packaging/steer.service"))?;
        self.write("/etc/steer/steer.toml", config)?;
        self.succeed(&["systemctl", "daemon-reload"])?;
        self.succeed(&["systemctl", "start", "steer"])?;
        Ok(())
    }

    /// A command in the machine, in none of its cgroups.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter
            .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--target", &self.init.to_string()])
            .args(command)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        nsenter
    }

    /// Runs a command in the machine, in none of its cgroups.
    pub fn run(&self, command: &[&str]) -> anyhow::Result<Output> {
        output(&mut self.command(command))
    }

    /// Runs a command in the machine, which must succeed, and returns its standard output.
    pub fn succeed(&self, command: &[&str]) -> anyhow::Result<String> {
        let output = self.run(command)?;
        ensure!(output.code == 0, "{command:?}: {output:?}\n{}", self.journal()?);
        Ok(output.stdout)
    }

    /// The whole journal.
    pub fn journal(&self) -> anyhow::Result<String> {
        self.run(&["journalctl", "--sync"])?;
        Ok(self.run(&["journalctl", "--no-pager", "--output=short"])?.stdout)
    }

    /// `steer status --json`.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.succeed(&["steer", "status", "--json"])?)?)
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        Ok(self.succeed(&["systemctl", "show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    /// The path of one of its files for the test.
    pub fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{file}", self.init))
    }

    /// Writes one of its files.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let file = self.path(file);
        fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    /// Its PID 1, in the PID namespace of the test.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// A new cgroup with the path `/{name}` in the machine.
    pub fn cgroup(&self, name: &str) -> anyhow::Result<Cgroup> {
        self.cgroup.child(name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}
