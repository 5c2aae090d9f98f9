//! The daemon that is measured.
//!
//! **Invariant:** it has ended after the drop.

use std::{
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use steer_lab::Netns;

/// Longer than any wait here takes.
const PATIENCE: Duration = Duration::from_mins(2);
/// The API's socket, in the directory of the configuration.
pub(crate) const SOCKET: &str = "api.sock";

/// Ended on drop.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts a daemon with the configuration `steer.toml` of a directory, and waits until it is ready. Returns the
    /// time that this took.
    pub(crate) fn start(
        steer: &Path,
        pins: &Path,
        directory: &Path,
        netns: Option<&Netns>,
    ) -> Result<(Self, Duration)> {
        let notify = directory.join("notify");
        if notify.exists() {
            fs::remove_file(&notify)?;
        }
        let ready = UnixDatagram::bind(&notify)?;
        ready.set_read_timeout(Some(PATIENCE))?;
        let mut command = Command::new(steer);
        command
            .arg("--bpffs")
            .arg(pins)
            .arg("--socket")
            .arg(directory.join(SOCKET))
            .args(["daemon", "--config"])
            .arg(directory.join("steer.toml"))
            .process_group(0);
        command.env("NOTIFY_SOCKET", &notify).env("STEER_LOG", "error").stdout(Stdio::null());
        if let Some(netns) = netns {
            netns.enter(&mut command);
        }
        let start = Instant::now();
        let daemon = Self(command.spawn().context("start the daemon")?);
        ready.recv(&mut [0; 64]).context("the daemon is not ready")?;
        Ok((daemon, start.elapsed()))
    }

    /// A numeric field of its `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        number.with_context(|| format!("the kernel does not report {field}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("steer-bench: end the daemon: {error}");
        }
    }
}
