//! A test bed: two uplinks and a server, a cgroup, a pin directory, and the real binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;
use steer_lab::{Server, Uplinks};

use crate::{Cgroup, Daemon};

/// Uid and gid of the user without privileges.
pub const NOBODY: (u32, u32) = (65534, 65534);

/// A bed.
pub struct Bed {
    /// Two namespaces joined by uplinks `a0` and `a1`; the default route is by `a0`.
    pub net: Uplinks,
    /// Answers on both, and says which source address it saw.
    pub server: Server,
    /// The test's own cgroup, empty; others go below it.
    pub cgroup: Cgroup,
    /// The test's own pin directory.
    pub pins: PathBuf,
    /// A directory for files, readable by all.
    pub directory: PathBuf,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Exit status, or 128 and the signal, as in a shell.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Bed {
    /// Makes a bed. `name` is for people who look at a hanging test.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("steer-test-{}-{number}-{name}", std::process::id());
        let net = Uplinks::new()?;
        let server = Server::start(&net.server)?;
        let directory = std::env::temp_dir().join(&unique);
        fs::create_dir(&directory)?;
        Ok(Self {
            net,
            server,
            cgroup: Cgroup::create_root(&unique)?,
            pins: Path::new("/sys/fs/bpf").join(&unique),
            directory,
        })
    }

    /// The part of the pin directory that belongs to the version under test.
    pub fn abi(&self) -> PathBuf {
        self.pins.join(format!("abi{}", steer_common::ABI_VERSION))
    }

    /// The binary under test, in the client's network namespace and on the bed's pins.
    pub fn steer(&self, arguments: &[&str]) -> Command {
        let mut command = self.steer_here(arguments);
        self.net.client.enter(&mut command);
        command
    }

    /// As [`Self::steer`], in the network namespace of the test.
    pub fn steer_here(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("STEER_BIN", "steer"));
        command.arg("--bpffs").arg(&self.pins).arg("--socket").arg(self.socket());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        output(&mut self.steer(arguments))
    }

    /// Runs the binary, which must succeed, and returns what it printed.
    pub fn succeed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        anyhow::ensure!(output.code == 0, "steer {arguments:?}: {output:?}");
        Ok(output.stdout)
    }

    /// `steer status --json`.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.succeed(&["status", "--json"])?)?)
    }

    /// The status of one policy.
    pub fn policy(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        let status = self.status()?;
        let policies = status["policies"].as_array().context("no policies")?;
        let policy = policies.iter().find(|policy| policy["name"] == name);
        policy.cloned().with_context(|| format!("no policy {name} in {status}"))
    }

    /// What strict policies do not cover on this machine, as steer says; `None` while there is none.
    pub fn not_covered(&self) -> anyhow::Result<Option<String>> {
        let status = self.status()?;
        let not_covered = status["not_covered"].as_array().context("no list of what is not covered")?;
        Ok(not_covered.first().and_then(|what| what.as_str()).map(str::to_owned))
    }

    /// How many sockets, calls or packets of a policy met this fate.
    pub fn sockets(&self, policy: &str, counter: &str) -> anyhow::Result<u64> {
        self.policy(policy)?["counters"][counter].as_u64().with_context(|| format!("no counter {counter}"))
    }

    /// Starts a daemon with this configuration and waits until it is ready. `@` in it stands for the bed's cgroup.
    pub fn daemon(&self, config: &str) -> anyhow::Result<Daemon> {
        self.write_config(config)?;
        Daemon::start(self)
    }

    /// The socket of the daemon's API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    /// Where [`Self::write_config`] writes.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("steer.toml")
    }

    /// Writes the configuration file.
    pub fn write_config(&self, config: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.config_file(), config.replace('@', self.cgroup.path()))?)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A test that ended well has nothing left here; one that failed must not leave it to others.
        let off = output(&mut self.steer_here(&["off"]));
        if !off.is_ok_and(|output| output.code == 0) {
            eprintln!("steer off failed on {}", self.pins.display());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Runs a command to its end.
pub fn output(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    Ok(Output {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Copies a program, for all to execute. By another process: were this one to write the file, a child that it starts at the
/// same moment could hold it open, and executing it would fail (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = output(Command::new("install").args(["-m", "755"]).arg(from).arg(to))?;
    anyhow::ensure!(copied.code == 0, "copy {}: {copied:?}", from.display());
    Ok(())
}

/// A binary of the workspace: named by `variable`, as `cargo xtask test` does, or else beside this test's own.
pub fn binary(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            let this = std::env::current_exe().unwrap_or_default();
            this.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(name)
        },
        PathBuf::from,
    )
}
