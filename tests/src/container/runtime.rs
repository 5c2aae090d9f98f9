//! runc and crun, unmodified or wrapped.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::ensure;

use super::{Bundle, Host, installed};
use crate::{Output, output};

/// An OCI runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    name: &'static str,
    path: PathBuf,
    /// The command that is executed in its place and that executes it.
    wrapper: Vec<String>,
}

/// A created container. On drop, it is killed and removed.
pub struct Container<'h, 'b> {
    runtime: Runtime,
    host: &'h Host<'b>,
    id: String,
}

impl Runtime {
    /// `runc` or `crun`. [`NotHere`](crate::NotHere) where it is not installed.
    pub fn find(name: &'static str) -> anyhow::Result<Self> {
        Ok(Self { name, path: installed(name, name)?, wrapper: Vec::new() })
    }

    /// The same with a wrapper. The runtime and its arguments follow the wrapper's own arguments.
    #[must_use]
    pub fn wrapped(mut self, wrapper: Vec<String>) -> Self {
        self.wrapper = wrapper;
        self
    }

    /// The program.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// A command of the runtime.
    pub fn command(&self, host: &Host<'_>, arguments: &[&str]) -> Command {
        let mut line = self.wrapper.clone();
        line.push(self.path.to_string_lossy().into_owned());
        let mut command = host.command(line.remove(0));
        command.args(line).arg("--root").arg(host.directory().join(self.name)).args(arguments);
        command
    }

    /// Runs a container, waits for its end, and removes it.
    pub fn run(&self, host: &Host<'_>, bundle: &Bundle<'_>) -> anyhow::Result<Output> {
        let mut ran = output(&mut self.run_command(host, bundle)?)?;
        ran.stderr += &fs::read_to_string(bundle.complaints(host))?;
        Ok(ran)
    }

    /// The command that runs a container, waits for its end, and removes it.
    pub fn run_command(&self, host: &Host<'_>, bundle: &Bundle<'_>) -> anyhow::Result<Command> {
        let directory = bundle.write(host)?.to_string_lossy().into_owned();
        Ok(self.command(host, &["run", "--bundle", &directory, bundle.id()]))
    }

    /// Creates a container without starting its program. Its output is discarded. The error is the runtime's message.
    pub fn create<'h, 'b>(
        &self,
        host: &'h Host<'b>,
        bundle: &Bundle<'_>,
    ) -> anyhow::Result<Result<Container<'h, 'b>, Output>> {
        let directory = bundle.write(host)?.to_string_lossy().into_owned();
        // The container keeps its output open, so its output goes to files.
        let log = host.directory().join(format!("{}.log", bundle.id()));
        let mut command = self.command(host, &["create", "--bundle", &directory, bundle.id()]);
        let status = command.stdout(Stdio::null()).stderr(fs::File::create(&log)?).status()?;
        let container = Container { runtime: self.clone(), host, id: bundle.id().to_owned() };
        if status.success() {
            return Ok(Ok(container));
        }
        // There is nothing to remove.
        std::mem::forget(container);
        let code = status.code().unwrap_or(-1);
        Ok(Err(Output {
            code,
            stdout: String::new(),
            stderr: fs::read_to_string(&log)? + &fs::read_to_string(bundle.complaints(host))?,
        }))
    }

    /// Creates and starts a container.
    pub fn start<'h, 'b>(&self, host: &'h Host<'b>, bundle: &Bundle<'_>) -> anyhow::Result<Container<'h, 'b>> {
        let created = self.create(host, bundle)?;
        let container = created.map_err(|refused| anyhow::anyhow!("create {}: {refused:?}", bundle.id()))?;
        let started = container.start()?;
        ensure!(started.code == 0, "start {}: {started:?}", bundle.id());
        Ok(container)
    }
}

impl Container<'_, '_> {
    /// Starts its program.
    pub fn start(&self) -> anyhow::Result<Output> {
        output(&mut self.runtime.command(self.host, &["start", &self.id]))
    }

    /// Runs a command in the container.
    pub fn exec(&self, command: &[String]) -> anyhow::Result<Output> {
        output(&mut self.exec_command(command))
    }

    /// A command in the container.
    pub fn exec_command(&self, command: &[String]) -> Command {
        let mut exec = self.runtime.command(self.host, &["exec", &self.id]);
        exec.args(command);
        exec
    }

    /// Its first process, in the PID namespace of its host.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let state = self.host.succeed(&mut self.runtime.command(self.host, &["state", &self.id]))?;
        let state: serde_json::Value = serde_json::from_str(&state)?;
        Ok(u32::try_from(state["pid"].as_u64().unwrap_or_default())?)
    }

    /// Kills and removes it.
    pub fn delete(self) -> anyhow::Result<()> {
        let deleted = self.delete_now()?;
        std::mem::forget(self);
        ensure!(deleted.code == 0, "delete: {deleted:?}");
        Ok(())
    }

    fn delete_now(&self) -> anyhow::Result<Output> {
        output(&mut self.runtime.command(self.host, &["delete", "--force", &self.id]))
    }
}

impl Drop for Container<'_, '_> {
    fn drop(&mut self) {
        if let Err(error) = self.delete_now() {
            eprintln!("{error:#}");
        }
    }
}
