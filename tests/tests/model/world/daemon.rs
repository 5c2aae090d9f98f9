//! The daemon of the world, its files, and the commands that need no cgroup.
//!
//! **Invariant:** a file is replaced, never written in place, so nobody reads half of it.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::wait_until;
use steer_tests::{Daemon, Outcome, PATIENCE};

use super::{World, said};
use crate::model::{
    operation::STORED,
    reference::{Files, policy::container_id},
};

impl World {
    /// Writes all files as they are to be.
    pub(crate) fn write_files(&self, files: &Files) -> Outcome {
        let write = |path: &Path, text: &str| {
            let text = text.replace('@', self.bed.cgroup.path());
            // As editors do, and only what is another: the daemon never sees half of it.
            if fs::read_to_string(path).is_ok_and(|old| old == text) {
                return Ok(());
            }
            let aside = self.bed.directory.join("next");
            fs::write(&aside, text).and_then(|()| fs::rename(&aside, path))
        };
        write(&self.bed.config_file(), &files.text())?;
        let directory = self.bed.directory.join("policies.d");
        fs::create_dir_all(&directory)?;
        for name in STORED {
            let path = directory.join(format!("{name}.toml"));
            match files.stored.get(name) {
                Some(policy) => write(&path, &policy.text())?,
                None if path.exists() => fs::remove_file(path)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Does something while `policies.d` is not there, or a symbolic link to nothing is in its place.
    pub(crate) fn without_stored<T>(&self, dangling: bool, work: impl FnOnce(&Self) -> T) -> anyhow::Result<T> {
        let (directory, aside) = (self.bed.directory.join("policies.d"), self.bed.directory.join("aside.d"));
        fs::create_dir_all(&directory)?;
        fs::rename(&directory, &aside)?;
        if dangling {
            std::os::unix::fs::symlink("/nonexistent", &directory)?;
        }
        let done = work(self);
        if dangling {
            fs::remove_file(&directory)?;
        }
        fs::rename(&aside, &directory)?;
        Ok(done)
    }

    /// How often the daemon has read its files anew and found another configuration in them.
    pub(crate) fn reloads(&self) -> usize {
        self.daemon.as_ref().map_or(0, |daemon| daemon.log().matches("INFO ] reloaded").count())
    }

    pub(crate) fn wait_for_reload(&self, before: usize) -> Outcome {
        let waited = wait_until("the daemon to see a file", PATIENCE, || self.reloads() > before);
        waited.with_context(|| self.daemon.as_ref().map(Daemon::log).unwrap_or_default())
    }

    pub(crate) fn start_daemon(&mut self) -> Outcome {
        self.daemon = Some(Daemon::start(&self.bed)?);
        Ok(())
    }

    pub(crate) fn kill_daemon(&mut self) -> Outcome {
        self.daemon.take().context("no daemon")?.end(Signal::SIGKILL).map(drop)
    }

    pub(crate) fn stop_daemon(&mut self) -> Outcome {
        let status = self.daemon.take().context("no daemon")?.end(Signal::SIGTERM)?;
        ensure!(status == Some(0), "the daemon failed: {status:?}");
        Ok(())
    }

    /// Switches steer off, which ends the daemon.
    pub(crate) fn off(&mut self) -> Outcome {
        self.bed.succeed(&["off"])?;
        if let Some(daemon) = self.daemon.take() {
            ensure!(daemon.wait()? == Some(0), "the daemon failed");
        }
        self.check_nothing_left()
    }

    /// Calls the hook for OCI runtimes with a container's state.
    pub(crate) fn hook(&self, state: &serde_json::Value) -> anyhow::Result<Result<(), String>> {
        let file = self.bed.directory.join("state.json");
        fs::write(&file, state.to_string())?;
        let config = self.bed.config_file().display().to_string();
        let mut command = self.bed.steer(&["hook", "oci", "--config", &config]);
        Ok(said(&steer_tests::output(command.stdin(fs::File::open(&file)?))?))
    }

    /// A plugin catches up with a container of this process, which asks for a policy that there is not.
    pub(crate) fn catch_up(&self, place: &str, pid: u32) -> Outcome {
        let name = place.rsplit('/').next().unwrap_or_default();
        self.bed.catch_up(pid, &container_id(name), ("steer.policy", "nobody-wrote-it"))
    }

    pub(crate) fn daemon_log(&self) -> String {
        fs::read_to_string(self.bed.directory.join("daemon.log")).unwrap_or_default()
    }
}
