//! Podman, with its own images, networks and hooks.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Host, installed};

/// The hook as the package installs it.
const HOOK: &str = include_str!("../../../packaging/oci-hook.json");

/// Podman on a host.
pub struct Podman<'h, 'b> {
    host: &'h Host<'b>,
    path: PathBuf,
}

impl<'h, 'b> Podman<'h, 'b> {
    /// Sets it up with the hook. [`NotHere`](crate::NotHere) where a required program is not installed.
    pub fn new(host: &'h Host<'b>) -> anyhow::Result<Self> {
        let path = installed("podman", "podman")?;
        for (program, package) in [("conmon", "conmon"), ("runc", "runc"), ("iptables", "iptables")] {
            installed(program, package)?;
        }
        if !fs::exists("/usr/lib/podman/netavark")? {
            return Err(crate::NotHere("netavark is not installed; install Debian's package netavark".into()).into());
        }
        let podman = Self { host, path };
        let (directory, hooks) = (host.directory().display(), host.directory().join("hooks.d"));
        fs::create_dir(&hooks)?;
        fs::write(hooks.join("steer.json"), podman.hook()?.to_string())?;
        // Few limits: the host may lack controllers and the right to raise limits.
        let config = format!(
            "[containers]\npids_limit = 0\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=4096:4096\"]\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{directory}/networks\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
             hooks_dir = [\"{directory}/hooks.d\"]\ntmp_dir = \"/run/podman/tmp\"\n",
        );
        fs::write(host.directory().join("containers.conf"), config)?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{directory}/podman/storage\"\n\
             runroot = \"/run/podman/storage\"\n"
        );
        fs::write(host.directory().join("storage.conf"), storage)?;
        Ok(podman)
    }

    /// The package's hook, with the binary under test, the bed's pins and its configuration.
    fn hook(&self) -> anyhow::Result<Value> {
        let mut hook: Value = serde_json::from_str(HOOK)?;
        let packaged = hook["hook"]["args"][2].as_str().context("no command for a shell")?;
        ensure!(packaged == "exec /usr/bin/steer hook oci", "{HOOK}");
        hook["hook"]["args"][2] = json!(format!("exec {}", self.host.hook_line("oci").join(" ")));
        Ok(hook)
    }

    /// Replaces the hook by the package's, whose binary is not on this host.
    pub fn hook_without_binary(&self) -> anyhow::Result<()> {
        let hook = HOOK.replace("/usr/bin/steer", "/usr/bin/no-such-steer");
        Ok(fs::write(self.host.directory().join("hooks.d/steer.json"), hook)?)
    }

    /// Makes an image of this name from the root directory, with this annotation and this variable.
    pub fn image(&self, name: &str, annotation: &str, variable: &str) -> anyhow::Result<()> {
        let archive = self.host.directory().join("image.tar").to_string_lossy().into_owned();
        let rootfs = self.host.rootfs().to_string_lossy().into_owned();
        self.host.succeed(self.host.command("tar").args(["-cf", &archive, "-C", &rootfs, "."]))?;
        self.host.succeed(&mut self.command(&["import", &archive, "base"]))?;
        let file = self.host.directory().join("Containerfile");
        fs::write(&file, format!("FROM localhost/base\nENV {variable}\n"))?;
        let file = file.to_string_lossy().into_owned();
        let directory = self.host.rootfs().to_string_lossy().into_owned();
        let build = ["build", "--pull=never", "--annotation", annotation, "--tag", name, "--file", &file, &directory];
        self.host.succeed(&mut self.command(&build))?;
        Ok(())
    }

    /// A `podman` command.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.path);
        command.env("CONTAINERS_CONF", self.host.directory().join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.host.directory().join("storage.conf"));
        command.args(arguments);
        command
    }

    /// `podman run` with these options, of which the first may be `--detach`; the caller adds the container's command.
    pub fn run(&self, options: &[&str]) -> Command {
        let bed = format!("{}:/bed:ro", self.host.bed.directory.display());
        let rootfs = self.host.rootfs().to_string_lossy().into_owned();
        let mut command = self.command(&["run"]);
        command.args(options).args(["--cap-add", "NET_RAW", "--volume", "/usr:/usr:ro", "--volume", &bed]);
        command.args(["--rootfs", &rootfs]);
        command
    }

    /// The same for a container of an image.
    pub fn run_image(&self, options: &[&str], image: &str) -> Command {
        let bed = format!("{}:/bed:ro", self.host.bed.directory.display());
        let mut command = self.command(&["run"]);
        command.args(options).args(["--cap-add", "NET_RAW", "--volume", "/usr:/usr:ro", "--volume", &bed, image]);
        command
    }

    /// A property of a container, selected by a template of `inspect`.
    pub fn inspect(&self, name: &str, template: &str) -> anyhow::Result<String> {
        let printed = self.host.succeed(&mut self.command(&["inspect", "--format", template, name]))?;
        Ok(printed.trim().to_owned())
    }
}
