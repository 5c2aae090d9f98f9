//! The daemon that is measured.
//!
//! **Invariant:** it has ended after the drop.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::{
        net::{UnixDatagram, UnixStream},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use steer_lab::Netns;

/// Longer than any wait here takes.
const PATIENCE: Duration = Duration::from_mins(2);
/// A longer reload counts as this time.
const LONGEST_RELOAD: Duration = Duration::from_secs(10);
/// The API's socket, in the directory of the configuration.
const SOCKET: &str = "api.sock";

/// Ended on drop.
pub(crate) struct Daemon {
    process: Child,
    socket: PathBuf,
}

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
        let daemon = Self { process: command.spawn().context("start the daemon")?, socket: directory.join(SOCKET) };
        ready.recv(&mut [0; 64]).context("the daemon is not ready")?;
        Ok((daemon, start.elapsed()))
    }

    /// The time in which it reads and applies its files, in milliseconds.
    pub(crate) fn reload(&self) -> Result<f64> {
        let start = Instant::now();
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(LONGEST_RELOAD))?;
        stream
            .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: steer\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) if answer.is_empty() => return Ok(LONGEST_RELOAD.as_secs_f64() * 1e3),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(LONGEST_RELOAD.as_secs_f64() * 1e3),
            read => drop(read?),
        }
        let text = String::from_utf8_lossy(&answer);
        ensure!(text.starts_with("HTTP/1.1 204"), "the daemon did not reload: {text}");
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// A numeric field of its `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        number.with_context(|| format!("the kernel does not report {field}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("steer-bench: end the daemon: {error}");
        }
    }
}
