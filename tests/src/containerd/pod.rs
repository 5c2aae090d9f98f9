//! Pods and containers.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use nix::sys::stat::Mode;
use steer_lab::{Outcome, parse_outcomes, wait_until};

use super::{Containerd, cri, image};
use crate::{Bed, PATIENCE, User};

/// The properties of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodOptions<'a> {
    /// Its annotations.
    pub annotations: &'a [(&'a str, &'a str)],
    /// Whether it has its own network namespace.
    pub own_network: bool,
    /// Its namespace in the cluster; if empty, `default`.
    pub namespace: &'a str,
    /// The cgroup of its containers; if empty, the runtime chooses it.
    pub cgroup_parent: &'a str,
    /// Whether its containers have what those of docs/daemonset.yaml have: capabilities, the host's processes, its cgroups and its pins.
    pub privileged: bool,
}

/// The capabilities of the daemon in docs/daemonset.yaml.
const CAPABILITIES: [&str; 8] =
    ["BPF", "PERFMON", "NET_ADMIN", "SYS_ADMIN", "DAC_READ_SEARCH", "CHOWN", "SYS_PTRACE", "NET_RAW"];

/// A pod. On drop, it is removed with its containers.
#[derive(Debug)]
pub struct Pod<'a> {
    containerd: &'a Containerd,
    id: String,
    config: cri::SandboxConfig,
    namespaces: cri::NamespaceOption,
    privileged: bool,
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    /// Its id.
    pub id: String,
    /// The file to which the client writes its outcomes.
    found: PathBuf,
}

/// A client in a container that keeps its sockets and makes a new one only after a failure.
#[derive(Debug)]
pub struct Held {
    input: fs::File,
    output: Lines<BufReader<fs::File>>,
}

impl Held {
    /// Sends one request on each socket.
    pub fn round(&mut self) -> anyhow::Result<Vec<Outcome>> {
        self.input.write_all(b"\n")?;
        let line = self.output.next().context("the client ended")??;
        Ok(serde_json::from_str(&line)?)
    }
}

fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl<'a> Pod<'a> {
    /// Runs a pod without containers.
    pub fn run(containerd: &'a Containerd, options: PodOptions<'_>) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("pod{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let network = if options.own_network { cri::POD } else { cri::NODE };
        let pid = if options.privileged { cri::NODE } else { cri::CONTAINER };
        let namespaces = cri::NamespaceOption { network, pid, ipc: cri::POD };
        let namespace = if options.namespace.is_empty() { "default" } else { options.namespace };
        let config = cri::SandboxConfig {
            metadata: Some(cri::SandboxMetadata { uid: name.clone(), name, namespace: namespace.to_owned() }),
            log_directory: containerd.directory.join("logs").display().to_string(),
            annotations: strings(options.annotations),
            linux: Some(cri::LinuxSandbox {
                cgroup_parent: options.cgroup_parent.to_owned(),
                security: Some(cri::SandboxSecurity { namespaces: Some(namespaces.clone()), privileged: false }),
            }),
        };
        let request = cri::RunSandbox { config: Some(config.clone()) };
        let cri::Id { id } = containerd.call("RunPodSandbox", &request).with_context(|| containerd.log())?;
        let privileged = options.privileged;
        Ok(Self { containerd, id, config, namespaces, privileged })
    }

    /// Makes a container whose first program tries each way once and writes the outcomes.
    pub fn client(&self, bed: &Bed, annotations: &[(&str, &str)]) -> anyhow::Result<Container<'a>> {
        let found = self.found();
        let script = format!("{} > {}; true", client(bed)?, found.display());
        self.container(bed, annotations, &["/bin/sh", "-c", &script], found)
    }

    /// Makes a container that waits until it is stopped.
    pub fn waiting(&self, bed: &Bed, annotations: &[(&str, &str)]) -> anyhow::Result<Container<'a>> {
        self.container(bed, annotations, &["/busybox", "sleep", "2147483647"], self.found())
    }

    /// Makes a container that runs a shell command.
    pub fn shell(&self, bed: &Bed, command: &str) -> anyhow::Result<Container<'a>> {
        self.container(bed, &[], &["/bin/sh", "-c", command], self.found())
    }

    /// Starts a container with a client that keeps its sockets.
    pub fn held(&self, bed: &Bed, annotations: &[(&str, &str)]) -> anyhow::Result<Held> {
        let found = self.found();
        let [input, output] = ["in", "out"].map(|extension| found.with_extension(extension));
        for pipe in [&input, &output] {
            nix::unistd::mkfifo(pipe, Mode::from_bits_truncate(0o600))?;
        }
        // Both directions: otherwise opening would wait for the other end.
        let open = |pipe: &PathBuf| fs::File::options().read(true).write(true).open(pipe);
        let held = Held { input: open(&input)?, output: BufReader::new(open(&output)?).lines() };
        let script = format!("exec {} --hold < {} > {}", client(bed)?, input.display(), output.display());
        self.container(bed, annotations, &["/bin/sh", "-c", &script], found)?.start()?;
        Ok(held)
    }

    fn found(&self) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        self.containerd.directory.join(format!("found{}.json", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    fn container(
        &self,
        bed: &Bed,
        annotations: &[(&str, &str)],
        command: &[&str],
        found: PathBuf,
    ) -> anyhow::Result<Container<'a>> {
        let name = found.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mount =
            |path: &str, readonly| cri::Mount { container_path: path.to_owned(), host_path: path.to_owned(), readonly };
        let bed_directory = bed.directory.to_str().context("a path that is not UTF-8")?;
        let mut mounts = vec![mount("/usr", true), mount(bed_directory, false)];
        if self.privileged {
            mounts.extend(["/sys/fs/bpf", "/sys/fs/cgroup"].map(|path| mount(path, false)));
        }
        let capabilities = self
            .privileged
            .then(|| cri::Capability { add: CAPABILITIES.map(str::to_owned).to_vec(), drop: vec!["ALL".to_owned()] });
        let security = cri::ContainerSecurity { capabilities, namespaces: Some(self.namespaces.clone()) };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(cri::Image { image: image::NAME.to_owned() }),
            command: command.iter().map(ToString::to_string).collect(),
            mounts,
            annotations: strings(annotations),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainer { security: Some(security) }),
        };
        let request =
            cri::CreateContainer { pod: self.id.clone(), config: Some(config), sandbox: Some(self.config.clone()) };
        let cri::Id { id } =
            self.containerd.call("CreateContainer", &request).with_context(|| self.containerd.log())?;
        Ok(Container { containerd: self.containerd, id, found })
    }

    /// The host that it runs on.
    pub fn containerd(&self) -> &'a Containerd {
        self.containerd
    }

    /// Stops and removes it, with its containers.
    pub fn remove(&self) -> anyhow::Result<()> {
        let id = cri::Id { id: self.id.clone() };
        let _: cri::Empty = self.containerd.call("StopPodSandbox", &id)?;
        let _: cri::Empty = self.containerd.call("RemovePodSandbox", &id)?;
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // If containerd is not running any more, everything ends with the host.
        let _ = self.remove();
    }
}

/// The shell command of the client that tries each way once.
fn client(bed: &Bed) -> anyhow::Result<String> {
    let program = bed.client(None, User::Root)?.get_program().to_string_lossy().into_owned();
    Ok(format!("{program} {}", bed.everything().join(" ")))
}

impl Container<'_> {
    fn as_id(&self) -> cri::Id {
        cri::Id { id: self.id.clone() }
    }

    /// Starts it. The error is the one that the user of the runtime sees.
    pub fn start(&self) -> anyhow::Result<()> {
        self.containerd.call::<cri::Empty>("StartContainer", &self.as_id()).map(drop)
    }

    /// Starts a client and returns the outcomes of its attempts once it has ended.
    pub fn outcomes(&self) -> anyhow::Result<Vec<Outcome>> {
        self.start().with_context(|| self.containerd.log())?;
        let status = || self.containerd.call::<cri::StatusAnswer>("ContainerStatus", &self.as_id());
        wait_until("the client to end", PATIENCE, || {
            status().is_ok_and(|answer| answer.status.is_some_and(|status| status.state == cri::EXITED))
        })?;
        let found = fs::read_to_string(&self.found)?;
        let outcomes = parse_outcomes(&found).with_context(|| format!("{found:?}, {:?}", status()))?;
        ensure!(outcomes.len() == 8, "{found:?}");
        Ok(outcomes)
    }

    /// Whether its program has run.
    pub fn has_run(&self) -> bool {
        self.found.exists()
    }

    /// Tries each way once, in a process that is added to it.
    pub fn probe(&self, bed: &Bed) -> anyhow::Result<Vec<Outcome>> {
        let request = cri::ExecSync {
            container: self.id.clone(),
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), client(bed)?],
            timeout_s: 30,
        };
        let done: cri::Executed = self.containerd.call("ExecSync", &request)?;
        let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
        let outcomes = parse_outcomes(&stdout).with_context(|| format!("{done:?}"))?;
        ensure!(outcomes.len() == 8, "{done:?}");
        Ok(outcomes)
    }

    /// Stops it at once.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.containerd.call::<cri::Empty>("StopContainer", &self.as_id()).map(drop)
    }

    /// Removes it.
    pub fn remove(self) -> anyhow::Result<()> {
        self.containerd.call::<cri::Empty>("RemoveContainer", &self.as_id()).map(drop)
    }
}
