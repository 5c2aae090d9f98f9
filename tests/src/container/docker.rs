//! Docker, its daemon and its containerd on a host of containers. The binary under test is one of its runtimes.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use serde_json::json;
use steer_lab::wait_until;

use super::{Host, installed};
use crate::{PATIENCE, output};

/// The name of the image. Its root is empty; `/usr` and `/bed` must be bind-mounted.
const IMAGE: &str = "lab";

/// Docker on a host. On drop, its daemon is killed; its containers end with the host.
pub struct Docker<'h, 'b> {
    host: &'h Host<'b>,
    path: PathBuf,
    daemon: Child,
}

impl<'h, 'b> Docker<'h, 'b> {
    /// Starts its daemon with a runtime `steered`, which is `steer hook wrap --variables`, a runtime `annotated`, which is
    /// the same without that option, and a runtime `vpn`, which requests the policy of that name. [`NotHere`](crate::NotHere) where a required program is not installed.
    pub fn start(host: &'h Host<'b>) -> anyhow::Result<Self> {
        let path = installed("docker", "docker.io")?;
        let program = installed("dockerd", "docker.io")?;
        installed("containerd", "containerd")?;
        installed("runc", "runc")?;
        let runtime = |options: &[&str]| {
            let mut line = host.hook_line("wrap");
            let program = line.remove(0);
            line.extend(options.iter().map(ToString::to_string));
            line.extend(["--", "runc"].map(str::to_owned));
            json!({"path": program, "runtimeArgs": line})
        };
        let config = json!({
            "data-root": host.directory().join("docker"),
            "exec-root": "/run/docker",
            "pidfile": "/run/docker.pid",
            "hosts": ["unix:///run/docker.sock"],
            "storage-driver": "vfs",
            "iptables": false,
            "ip6tables": false,
            "bridge": "none",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": {
                "steered": runtime(&["--variables"]),
                "annotated": runtime(&[]),
                "vpn": runtime(&["--policy", "vpn"]),
            },
        });
        let file = host.directory().join("docker.json");
        fs::write(&file, config.to_string())?;
        let log = fs::File::create(host.directory().join("docker.log"))?;
        let mut command = host.command(program);
        command.arg("--config-file").arg(&file).stdout(Stdio::null()).stderr(log);
        let docker = Self { host, path, daemon: command.spawn().context("start dockerd")? };
        let answers = || output(&mut docker.command(&["version"])).is_ok_and(|answer| answer.code == 0);
        wait_until("Docker's daemon to answer", PATIENCE, answers).with_context(|| docker.log())?;
        docker.import()?;
        Ok(docker)
    }

    fn import(&self) -> anyhow::Result<()> {
        let archive = self.host.directory().join("image.tar").to_string_lossy().into_owned();
        let rootfs = self.host.rootfs().to_string_lossy().into_owned();
        self.host.succeed(self.host.command("tar").args(["-cf", &archive, "-C", &rootfs, "."]))?;
        self.image(IMAGE, &[])
    }

    /// The log of its daemon.
    pub fn log(&self) -> String {
        fs::read_to_string(self.host.directory().join("docker.log")).unwrap_or_default()
    }

    /// A `docker` command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.path);
        command.args(arguments);
        command
    }

    /// Makes an image of this name with these variables.
    pub fn image(&self, name: &str, variables: &[&str]) -> anyhow::Result<()> {
        let archive = self.host.directory().join("image.tar").to_string_lossy().into_owned();
        let changes = variables.iter().flat_map(|variable| ["--change".to_owned(), format!("ENV {variable}")]);
        let mut import = self.command(&["import"]);
        self.host.succeed(import.args(changes).args([&archive, name]))?;
        Ok(())
    }

    /// `docker run` with these options; the caller adds the container's command.
    pub fn run(&self, options: &[&str]) -> Command {
        self.run_image(options, IMAGE)
    }

    /// The same for a container of another image.
    pub fn run_image(&self, options: &[&str], image: &str) -> Command {
        let bed = format!("{}:/bed:ro", self.host.bed.directory.display());
        let mut command = self.command(&["run"]);
        command.args(options).args(["--volume", "/usr:/usr:ro", "--volume", &bed, image]);
        command
    }
}

impl Drop for Docker<'_, '_> {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
