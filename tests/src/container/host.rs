//! A host of containers: the bed's client, with a cgroup hierarchy whose root is the bed's cgroup, and with its own
//! directories wherever a runtime stores data.
//!
//! **Invariant:** no daemon and no container outlives it, also when the test is killed. Its processes are in the bed's
//! cgroup, and all of them are killed when the test's end of a pipe closes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_lab::wait_until;

use crate::{Bed, Cgroup, Daemon, NotHere, Output, PATIENCE, User, binary, output};

/// The exit status with which `host.sh` reports that it cannot build the host.
const CANNOT_BE_BUILT: i32 = 77;

/// A host of containers. On drop, it and its containers are removed.
pub struct Host<'b> {
    /// The bed that contains it.
    pub bed: &'b Bed,
    keeper: Child,
    input: Option<ChildStdin>,
    directory: PathBuf,
}

impl<'b> Host<'b> {
    /// Makes one. [`NotHere`] where that is not possible.
    pub fn new(bed: &'b Bed) -> anyhow::Result<Self> {
        let directory = bed.directory.join("host");
        fs::create_dir(&directory)?;
        // Copies of the programs that containers run, executable for all users.
        bed.client(None, User::Root)?;
        bed.lab_program("STEER_ESCAPE", "steer-escape", None, User::Root)?;
        let complaints = bed.directory.join("host.log");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--cgroup", "--propagation", "private", "sh", "-c", include_str!("host.sh"), "host"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&complaints)?);
        bed.cgroup.enter(bed.net.client.enter(&mut command));
        let mut keeper = command.spawn().context("start unshare")?;
        let (input, said) = (keeper.stdin.take(), keeper.stdout.take().context("no pipe")?);
        let mut host = Self { bed, keeper, input, directory };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        if line != "ready\n" {
            let status = host.keeper.wait()?;
            let complaint = fs::read_to_string(&complaints).unwrap_or_default();
            if status.code() == Some(CANNOT_BE_BUILT) {
                return Err(NotHere(format!("a host of containers cannot be built here: {complaint}")).into());
            }
            anyhow::bail!("the host of containers ended: {status}: {complaint}");
        }
        Ok(host)
    }

    /// A directory with the same path inside and outside; it is removed with the bed.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The root directory of a container. `/usr` and `/bed` must be bind-mounted in it.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// A command on this host, in the cgroup for runtimes.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--cgroup", "--net", "--target", &self.keeper.id().to_string(), "--"])
            .arg(program.as_ref())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &self.directory)
            .stdin(Stdio::null());
        let procs = self.bed.cgroup.directory().join("runtime/cgroup.procs");
        crate::cgroup::enter(&mut command, procs);
        command
    }

    /// The binary under test, on this host and with the bed's pins.
    pub fn steer(&self, arguments: &[&str]) -> Command {
        let mut line = self.steer_line();
        let mut command = self.command(line.remove(0));
        command.args(line).args(arguments);
        command
    }

    /// The binary under test with the arguments that select the bed's pins.
    pub fn steer_line(&self) -> Vec<String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (steer, pins) = (binary("STEER_BIN", "steer"), self.bed.pins.clone());
        vec![text(steer), "--bpffs".into(), text(pins), "--socket".into(), text(self.bed.socket())]
    }

    /// The command line of a hook, with the bed's configuration: `hook`, its kind and its arguments.
    pub fn hook_line(&self, kind: &str) -> Vec<String> {
        let mut line = self.steer_line();
        let config = self.bed.config_file().to_string_lossy().into_owned();
        line.extend(["hook".to_owned(), kind.to_owned(), "--config".to_owned(), config]);
        line
    }

    /// Starts the daemon of the bed on this host, and waits until it is ready. In the configuration, the bed's cgroup
    /// is `/`.
    pub fn daemon(&self) -> anyhow::Result<Daemon> {
        let mut command = self.steer(&["daemon", "--config"]);
        command.arg(self.bed.config_file());
        Daemon::spawn(self.bed, command)
    }

    /// `steer status --json`.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        let status = output(&mut self.steer(&["status", "--json"]))?;
        ensure!(status.code == 0, "steer status: {status:?}");
        Ok(serde_json::from_str(&status.stdout)?)
    }

    /// The name of the policy that is attached manually to a cgroup of this host, as `status` reports it.
    pub fn attached(&self, cgroup: &str) -> anyhow::Result<Option<String>> {
        let status = self.status()?;
        let policies = status["policies"].as_array().context("no policies")?;
        let holds = |policy: &&serde_json::Value| {
            let mut cgroups = policy["cgroups"].as_array().into_iter().flatten();
            cgroups.any(|held| held["path"] == cgroup && held["manual"] == true)
        };
        Ok(policies.iter().find(holds).and_then(|policy| policy["name"].as_str()).map(str::to_owned))
    }

    /// The paths of this host's cgroups, without those of the runtimes.
    pub fn cgroups(&self) -> Vec<String> {
        let root = self.bed.cgroup.directory();
        let mut found = Vec::new();
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let path = entry.path().strip_prefix(root).map(|path| format!("/{}", path.display()));
                found.extend(path.ok().filter(|path| path != "/runtime"));
                pending.push(entry.path());
            }
        }
        found.sort();
        found
    }

    /// Checks that no container has left a link, a record, or a policy that was made for it.
    pub fn check_nothing_left(&self) -> anyhow::Result<()> {
        self.check_only_links_of(&[])
    }

    /// Checks that no container has left anything. Only these cgroups have links, which the configuration gives them.
    pub fn check_only_links_of(&self, cgroups: &[&Cgroup]) -> anyhow::Result<()> {
        let links = fs::read_dir(self.bed.abi().join("links")).into_iter().flatten().flatten();
        let mut links = links.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>();
        for cgroup in cgroups {
            let id = cgroup.id()?.to_string();
            links.retain(|link| *link != id);
        }
        ensure!(links.is_empty(), "links are left: {links:?}");
        let status = self.status()?;
        let manual = |policy: &&serde_json::Value| policy["origin"] == "manual";
        let left = status["policies"].as_array().into_iter().flatten().filter(manual).collect::<Vec<_>>();
        ensure!(left.is_empty(), "policies are left: {left:?}");
        if status["daemon"] == false {
            ensure!(!self.bed.pins.exists(), "{} is left", self.bed.pins.display());
        }
        Ok(())
    }

    /// As [`Self::check_nothing_left`], where the kernel detaches the links of a removed cgroup with a delay and the
    /// next command removes the leftovers.
    pub fn wait_until_nothing_left(&self, clean_up: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut last = Ok(());
        let gone = wait_until("all to be gone", PATIENCE, || {
            last = clean_up().and_then(|()| self.check_nothing_left());
            last.is_ok()
        });
        last.and(gone.map_err(Into::into))
    }

    /// Calls `steer hook oci` as a runtime does.
    pub fn hook(&self, state: &serde_json::Value) -> anyhow::Result<Output> {
        let file = self.directory.join("state.json");
        fs::write(&file, state.to_string())?;
        let mut line = self.hook_line("oci");
        let mut command = self.command(line.remove(0));
        output(command.args(line).stdin(fs::File::open(&file)?))
    }

    /// Calls the hook as a runtime does for a removed container.
    pub fn clean_up(&self) -> anyhow::Result<()> {
        let state = serde_json::json!({"ociVersion": "1.0.2", "id": "gone", "status": "stopped", "bundle": "/"});
        let removed = self.hook(&state)?;
        ensure!(removed.code == 0, "poststop: {removed:?}");
        Ok(())
    }

    /// The process that keeps the host. It is in the runtimes' cgroup.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Runs a command on this host, which must succeed, and returns its standard output.
    pub fn succeed(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = output(command)?;
        ensure!(output.code == 0, "{command:?}: {output:?}");
        Ok(output.stdout)
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // This includes the runtimes' daemons, which hold the mounts.
        drop(self.input.take());
        let _ = fs::write(self.bed.cgroup.directory().join("cgroup.kill"), "1");
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let events = self.bed.cgroup.directory().join("cgroup.events");
        let is_empty = || fs::read_to_string(&events).is_ok_and(|events| events.contains("populated 0"));
        if let Err(error) = wait_until("the processes of a host of containers to end", PATIENCE, is_empty) {
            eprintln!("{error}");
        }
    }
}
