//! The daemon that a test runs.

use std::{
    fs,
    io::Read as _,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use steer_lab::wait_until;

use crate::{Bed, PATIENCE};

/// A running daemon. On drop, it is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon of a bed with its configuration file, and waits for `READY=1`.
    pub fn start(bed: &Bed) -> anyhow::Result<Self> {
        Self::start_with(bed, &[])
    }

    /// As [`Self::start`], with more arguments.
    pub fn start_with(bed: &Bed, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = bed.steer(&["daemon", "--config"]);
        command.arg(bed.config_file()).args(arguments);
        Self::spawn(bed, command)
    }

    /// Starts a daemon with this command and waits for `READY=1`.
    pub fn spawn(bed: &Bed, mut command: Command) -> anyhow::Result<Self> {
        let address = bed.directory.join("notify");
        let _ = fs::remove_file(&address);
        let notify = UnixDatagram::bind(&address)?;
        notify.set_read_timeout(Some(PATIENCE))?;
        let log = bed.directory.join("daemon.log");
        command
            .env("NOTIFY_SOCKET", &address)
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log)?);
        let mut daemon = Self { child: command.spawn().context("start the daemon")?, log };
        let mut buffer = [0; 256];
        match notify.recv(&mut buffer) {
            Ok(length) if buffer[..length].starts_with(b"READY=1") => Ok(daemon),
            other => {
                let status = daemon.child.try_wait()?;
                bail!("the daemon is not ready: {other:?}, {status:?}, {}", daemon.log())
            }
        }
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log contains `text`.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        wait_until(&format!("the daemon to log {text:?}"), PATIENCE, || self.log().contains(text))
            .with_context(|| self.log())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Stops it while it holds no lock, so that commands can work until `SIGCONT`.
    pub fn freeze(&self, bed: &Bed) -> anyhow::Result<()> {
        let pins = fs::File::open(&bed.pins)?;
        let lock = Flock::lock(pins, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        self.signal(Signal::SIGSTOP)?;
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("the daemon to stop", PATIENCE, || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        })?;
        lock.unlock().map_err(|(_, errno)| errno)?;
        Ok(())
    }

    /// Ends it with a signal, and waits for its exit status; `None` if the signal killed it.
    pub fn end(mut self, signal: Signal) -> anyhow::Result<Option<i32>> {
        self.signal(signal)?;
        Ok(self.child.wait()?.code())
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> anyhow::Result<Option<i32>> {
        let mut status = None;
        wait_until("the daemon to end", PATIENCE, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        Ok(status.and_then(|status| status.code()))
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads all output of a child until it ends.
pub fn read_all(child: &mut Child) -> anyhow::Result<String> {
    let mut text = String::new();
    child.stdout.take().context("no pipe")?.read_to_string(&mut text)?;
    child.wait()?;
    Ok(text)
}
