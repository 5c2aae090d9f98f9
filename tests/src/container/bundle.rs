//! An OCI bundle, from which a runtime starts a container.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use steer_lab::Netns;

use super::Host;

/// The capabilities that Docker and Podman give to a container's root, plus the one for raw sockets.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The network of a container.
#[derive(Clone, Copy, Debug)]
pub enum Network<'n> {
    /// The host's.
    Host,
    /// A new one with only loopback.
    None,
    /// An existing one.
    Joined(&'n Netns),
}

impl Network<'_> {
    /// Its path, if it exists already.
    pub fn path(self) -> Option<String> {
        match self {
            Self::Joined(netns) => Some(format!("/proc/{}/fd/{}", std::process::id(), netns.fd().as_raw_fd())),
            Self::Host | Self::None => None,
        }
    }
}

/// The contents of a bundle.
#[derive(Clone, Debug)]
pub struct Bundle<'n> {
    id: String,
    parent: String,
    annotations: BTreeMap<String, String>,
    environment: Vec<String>,
    command: Vec<String>,
    network: Network<'n>,
    /// The commands of each stage.
    hooks: BTreeMap<&'static str, Vec<String>>,
}

impl<'n> Bundle<'n> {
    /// A container named `id` in the cgroup `/{id}`, in the host's network, without hooks.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            parent: String::new(),
            annotations: BTreeMap::new(),
            environment: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            command: ["sleep", "infinity"].map(str::to_owned).to_vec(),
            network: Network::Host,
            hooks: BTreeMap::new(),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The path of the container's cgroup on its host.
    pub fn cgroup(&self) -> String {
        format!("{}/{}", self.parent, self.id)
    }

    /// Puts its cgroup into this cgroup.
    #[must_use]
    pub fn parent(mut self, parent: &str) -> Self {
        parent.clone_into(&mut self.parent);
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotate(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Uses another network.
    #[must_use]
    pub fn network(mut self, network: Network<'n>) -> Self {
        self.network = network;
        self
    }

    /// Runs this command instead of a long sleep.
    #[must_use]
    pub fn command(mut self, command: &[String]) -> Self {
        command.clone_into(&mut self.command);
        self
    }

    /// Adds `steer hook oci` at the two stages.
    #[must_use]
    pub fn hooked(self, host: &Host<'_>) -> Self {
        let line = host.hook_line("oci");
        self.hook("createRuntime", &line).hook("poststop", &line)
    }

    /// Adds this command at this stage.
    #[must_use]
    pub fn hook(mut self, stage: &'static str, line: &[String]) -> Self {
        self.hooks.insert(stage, line.to_vec());
        self
    }

    /// Writes the bundle and returns its directory.
    pub fn write(&self, host: &Host<'_>) -> anyhow::Result<PathBuf> {
        let directory = host.directory().join("bundles").join(&self.id);
        fs::create_dir_all(&directory)?;
        let complaints = self.complaints(host);
        fs::write(&complaints, "")?;
        fs::write(directory.join("config.json"), self.config(host, &complaints).to_string())?;
        Ok(directory)
    }

    /// The file to which crun writes the errors of a hook, which it does not show. runc includes them in its own error.
    pub(super) fn complaints(&self, host: &Host<'_>) -> PathBuf {
        host.directory().join(format!("{}.hook", self.id))
    }

    fn config(&self, host: &Host<'_>, complaints: &Path) -> Value {
        let mut annotations: BTreeMap<_, _> =
            self.annotations.iter().map(|(name, value)| (name, json!(value))).collect();
        let for_crun = "run.oci.hooks.stderr".to_owned();
        annotations.insert(&for_crun, json!(complaints));
        let mut namespaces: Vec<Value> =
            ["pid", "mount", "ipc", "uts", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
        match (self.network, self.network.path()) {
            (Network::Host, _) => {}
            (_, None) => namespaces.push(json!({"type": "network"})),
            (_, Some(path)) => namespaces.push(json!({"type": "network", "path": path})),
        }
        let read_only = ["nosuid", "noexec", "nodev", "ro"];
        let sys = if matches!(self.network, Network::Host) {
            json!({"destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]})
        } else {
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": read_only})
        };
        let hooks: BTreeMap<_, _> =
            self.hooks.iter().map(|(stage, line)| (stage, json!([{"path": line.first(), "args": line}]))).collect();
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": self.command,
                "env": self.environment,
                "cwd": "/",
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
                "noNewPrivileges": true,
            },
            "root": {"path": host.rootfs(), "readonly": true},
            "hostname": self.id,
            "annotations": annotations,
            "hooks": hooks,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
                {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["bind", "ro"]},
                {"destination": "/bed", "type": "bind", "source": host.bed.directory, "options": ["bind", "ro"]},
                sys,
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": read_only},
            ],
            "linux": {"cgroupsPath": self.cgroup(), "namespaces": namespaces, "resources": {}},
        })
    }
}
