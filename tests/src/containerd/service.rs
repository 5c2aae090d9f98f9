//! The parts of steer that run on a host with containerd: the plugin and the daemon.

use std::{
    fs, io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use steer_lab::wait_until;

use super::{Container, Containerd, Inside, Pod};
use crate::{Bed, PATIENCE, binary, copy_program};

/// A running service with the bed's configuration. On drop, it is killed.
#[derive(Debug)]
pub struct Service {
    inside: Inside,
    log: PathBuf,
    notify: UnixDatagram,
}

impl Service {
    /// Starts `steer hook nri`, and waits until it has registered.
    pub fn plugin(bed: &Bed, containerd: &Containerd) -> anyhow::Result<Self> {
        let service = Self::plugin_in_waiting(bed, containerd)?;
        service.wait_until_ready()?;
        Ok(service)
    }

    /// Starts `steer hook nri`.
    pub fn plugin_in_waiting(bed: &Bed, containerd: &Containerd) -> anyhow::Result<Self> {
        let socket = containerd.nri_socket().to_str().context("a path that is not UTF-8")?;
        Self::start(bed, containerd, "nri", &["hook", "nri", "--nri-socket", socket])
    }

    /// Starts the daemon, and waits until it steers.
    pub fn daemon(bed: &Bed, containerd: &Containerd) -> anyhow::Result<Self> {
        let service = Self::start(bed, containerd, "daemon", &["daemon"])?;
        service.wait_until_ready()?;
        Ok(service)
    }

    /// The plugin in its own container, as on a node of a cluster, once it has registered.
    pub fn plugin_in_pod<'a>(bed: &Bed, pod: &Pod<'a>) -> anyhow::Result<(Container<'a>, UnixDatagram)> {
        let socket = pod.containerd().nri_socket().display().to_string();
        Self::in_pod(bed, pod, "pod", &["hook", "nri", "--host-cgroups", "--nri-socket", &socket])
    }

    /// Starts the daemon in a container of a pod, and waits until it is ready.
    pub fn daemon_in_pod<'a>(bed: &Bed, pod: &Pod<'a>) -> anyhow::Result<(Container<'a>, UnixDatagram)> {
        Self::in_pod(bed, pod, "pod-daemon", &["daemon", "--host-cgroups"])
    }

    fn in_pod<'a>(
        bed: &Bed,
        pod: &Pod<'a>,
        name: &str,
        arguments: &[&str],
    ) -> anyhow::Result<(Container<'a>, UnixDatagram)> {
        let program = bed.directory.join("steer");
        if !program.exists() {
            copy_program(&binary("STEER_BIN", "steer"), &program)?;
        }
        let address = bed.directory.join(format!("{name}.notify"));
        let notify = UnixDatagram::bind(&address)?;
        notify.set_read_timeout(Some(PATIENCE))?;
        let log = bed.directory.join(format!("{name}.log"));
        let command = format!(
            "NOTIFY_SOCKET={} exec {} --bpffs {} --socket {} {} --config {} 2> {}",
            address.display(),
            program.display(),
            bed.pins.display(),
            bed.socket().display(),
            arguments.join(" "),
            bed.config_file().display(),
            log.display(),
        );
        let container = pod.shell(bed, &command)?;
        container.start()?;
        wait_until_ready(&notify, &log)?;
        Ok((container, notify))
    }

    fn start(bed: &Bed, containerd: &Containerd, name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let address = bed.directory.join(format!("{name}.notify"));
        let _ = fs::remove_file(&address);
        let notify = UnixDatagram::bind(&address)?;
        notify.set_read_timeout(Some(PATIENCE))?;
        let log = bed.directory.join(format!("{name}.log"));
        let mut command = containerd.steer(bed, arguments);
        command.arg("--config").arg(bed.config_file());
        command.env("NOTIFY_SOCKET", &address).env("STEER_LOG", "info").stdout(Stdio::null());
        command.stderr(fs::File::options().create(true).append(true).open(&log)?);
        let inside = Inside { outer: command.spawn().with_context(|| format!("start {name}"))? };
        Ok(Self { inside, log, notify })
    }

    /// Waits until it reports that it is ready. If it has done so before, waits for the next report.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        wait_until_ready(&self.notify, &self.log)
    }

    /// The service's log.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log contains `text`.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        wait_until(&format!("{text:?} to be logged"), PATIENCE, || self.log().contains(text))
            .with_context(|| self.log())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.inside.signal(signal)
    }

    /// Ends it with a signal. Returns its exit status, or none if the signal killed it.
    pub fn end(self, signal: Signal) -> anyhow::Result<Option<i32>> {
        self.inside.end(signal)
    }
}

/// Waits for `READY=1`.
pub fn wait_until_ready(notify: &UnixDatagram, log: &Path) -> anyhow::Result<()> {
    let mut buffer = [0; 256];
    match receive(notify, &mut buffer) {
        Ok(length) if buffer[..length].starts_with(b"READY=1") => Ok(()),
        other => bail!("it is not ready: {other:?}, {}", fs::read_to_string(log).unwrap_or_default()),
    }
}

/// Receives a message, whatever signals come meanwhile.
pub(crate) fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}
