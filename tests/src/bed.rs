//! A test bed: two uplinks and a server, a cgroup, a pin directory, and the binary under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;
use steer_lab::{Netns, Server, Uplinks, wait_until};

use crate::{Cgroup, Daemon, PATIENCE};

/// Uid and gid of the user without privileges.
pub const NOBODY: (u32, u32) = (65534, 65534);

/// A bed.
pub struct Bed {
    /// Two namespaces joined by uplinks `a0` and `a1`; the default route uses `a0`.
    pub net: Uplinks,
    /// Answers on both uplinks and reports the source address that it saw.
    pub server: Server,
    /// The test's own cgroup. It is empty; other cgroups are created below it.
    pub cgroup: Cgroup,
    /// The test's own pin directory.
    pub pins: PathBuf,
    /// A directory for files that all users can read.
    pub directory: PathBuf,
}

/// The result of a finished command.
#[derive(Debug)]
pub struct Output {
    /// Exit status, or 128 and the signal, as in a shell.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Bed {
    /// Makes a bed. `name` helps people to identify a hanging test.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::with_links(name, 2)
    }

    /// As [`Self::new`], with this number of uplinks.
    pub fn with_links(name: &str, links: u8) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let unique = format!("steer-test-{}-{number}-{name}", std::process::id());
        let net = Uplinks::with(links)?;
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

    /// The binary under test, in the client's network namespace and with the bed's pins.
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

    /// Runs the binary and waits for it.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        output(&mut self.steer(arguments))
    }

    /// Runs the binary, which must succeed, and returns its standard output.
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

    /// Why sockets past the IP stack are not refused on this machine, as `steer status` reports it; `None` if they are.
    pub fn not_covered(&self) -> anyhow::Result<Option<String>> {
        self.not_covered_of("sockets past the IP stack")
    }

    /// What `steer status` reports as not covered, if it begins with these words.
    pub fn not_covered_of(&self, beginning: &str) -> anyhow::Result<Option<String>> {
        let status = self.status()?;
        let not_covered = status["not_covered"].as_array().context("no list of what is not covered")?;
        let mut texts = not_covered.iter().filter_map(|what| what.as_str());
        Ok(texts.find(|what| what.starts_with(beginning)).map(str::to_owned))
    }

    /// Runs ip(8) in the client's network namespace, and returns what it prints.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        ip(&self.net.client, arguments)
    }

    /// The same in the server's network namespace.
    pub fn ip_of_server(&self, arguments: &str) -> anyhow::Result<String> {
        ip(&self.net.server, arguments)
    }

    /// Deletes all routes of steer's tables of a family, `-4` or `-6`, in the client's network namespace, as another program could.
    pub fn flush_steer_routes(&self, family: &str) -> anyhow::Result<()> {
        let routes = self.ip(&format!("{family} -N route show table all"))?;
        let table = |route: &str| route.split(' ').skip_while(|word| *word != "table").nth(1)?.parse::<u32>().ok();
        let tables: std::collections::BTreeSet<u32> =
            routes.lines().filter_map(table).filter(|table| table >> 24 == 0x73).collect();
        tables.iter().try_for_each(|table| self.ip(&format!("{family} route flush table {table}")).map(drop))
    }

    /// Ends the connections that programs of the client's network namespace have closed, as if the minute had passed for which the kernel keeps
    /// them (TIME_WAIT).
    pub fn end_closed_connections(&self) -> anyhow::Result<()> {
        let mut ss = Command::new("ss");
        ss.arg("-K").args(
            ["fin-wait-1", "fin-wait-2", "closing", "last-ack", "time-wait"].iter().flat_map(|state| ["state", state]),
        );
        ss.stdout(Stdio::null()).stderr(Stdio::null());
        self.net.client.enter(&mut ss);
        ss.status()?;
        Ok(())
    }

    /// Waits until the keepers of commands have removed everything.
    pub fn wait_until_clean(&self) -> anyhow::Result<()> {
        wait_until("the pins and the cgroups to be removed", PATIENCE, || {
            self.end_closed_connections().is_ok() && !self.pins.exists() && self.cgroup.children().is_empty()
        })
        .with_context(|| format!("{:?} in {}", self.cgroup.children(), self.cgroup.path()))
    }

    /// The value of a policy's counter of sockets, calls or packets.
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

    /// The file that [`Self::write_config`] writes.
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
        // A test that succeeded has nothing left here. A failed test must not leave pins to other tests.
        let off = output(&mut self.steer_here(&["off", "--forget"]));
        if !off.is_ok_and(|output| output.code == 0) {
            eprintln!("steer off failed on {}", self.pins.display());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn ip(netns: &Netns, arguments: &str) -> anyhow::Result<String> {
    let mut command = Command::new("ip");
    let ran = output(netns.enter(command.args(arguments.split_whitespace())))?;
    anyhow::ensure!(ran.code == 0, "ip {arguments}: {ran:?}");
    Ok(ran.stdout)
}

/// Runs a command and waits for it.
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

/// Copies a program so that all users can execute it. Another process writes the file: if this process wrote it, a
/// child that starts at the same moment could hold it open, and executing it would fail (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = output(Command::new("install").args(["-m", "755"]).arg(from).arg(to))?;
    anyhow::ensure!(copied.code == 0, "copy {}: {copied:?}", from.display());
    Ok(())
}

/// A binary of the workspace: the path in `variable`, which `cargo xtask test` sets, or else the file beside this
/// test's own.
pub fn binary(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            let this = std::env::current_exe().unwrap_or_default();
            this.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(name)
        },
        PathBuf::from,
    )
}
