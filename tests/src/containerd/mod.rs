//! A host with containerd: its own namespaces on the network of the bed's client, and CRI to make pods.
//!
//! **Invariant:** all its processes are in one PID namespace, and all its cgroups in one cgroup of the bed, so they end
//! with the test. It changes nothing on the machine; pins are below the bed's directory.

mod cri;
mod image;
mod pod;
mod service;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use steer_lab::{wait_for, wait_until};

pub use pod::{Container, Held, Pod, PodOptions};
pub use service::{Service, wait_until_ready};

use crate::{Bed, Cgroup, Machine, NotHere, Output, PATIENCE, binary, output};

/// The exit status with which `host.sh` reports that it cannot build the host.
const NO_HOST: i32 = 77;
const BUSYBOX: &str = "/bin/busybox";
const SERVER: &str = "containerd.sock";

/// A running host. On drop, all its processes end.
#[derive(Debug)]
pub struct Containerd {
    /// `unshare`, with which all processes end, and its input; the host ends when that input closes. None if the host
    /// is a machine.
    outer: Option<(Child, ChildStdin)>,
    /// PID 1 of the host, in the PID namespace of the test.
    init: u32,
    /// The root of its cgroups.
    root: Cgroup,
    /// The cgroup of the processes that are in no container.
    own: Cgroup,
    programs: PathBuf,
    directory: PathBuf,
    nri_socket: PathBuf,
    server: Mutex<Option<Inside>>,
    /// One host at a time: a runtime waits for its plugin for a second and a half only.
    _turn: MutexGuard<'static, ()>,
}

/// Waits until no other test has a host.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process on the host.
#[derive(Debug)]
struct Inside {
    /// `nsenter`, the parent of the process.
    outer: Child,
}

impl Inside {
    /// Its PID in the PID namespace of the test.
    fn pid(&self) -> anyhow::Result<Pid> {
        let outer = self.outer.id();
        let child = wait_for("the process on the host", PATIENCE, || {
            let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
            children.trim().parse().ok()
        })?;
        Ok(Pid::from_raw(child))
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid()?, signal)?;
        // `nsenter` stops when its child stops, and does not notice when the child continues.
        if signal != Signal::SIGSTOP {
            kill(Pid::from_raw(self.outer.id().try_into()?), Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Ends it and waits for it. Returns its exit status, or none if the signal killed it.
    fn end(mut self, signal: Signal) -> anyhow::Result<Option<i32>> {
        self.signal(signal)?;
        let mut status = None;
        wait_until("the process to end", PATIENCE, || {
            status = self.outer.try_wait().ok().flatten();
            status.is_some()
        })?;
        Ok(status.and_then(|status| status.code()))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.outer.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.signal(Signal::SIGKILL);
            let _ = self.outer.wait();
        }
    }
}

impl Containerd {
    /// Starts a host with containerd. [`NotHere`] where that is not possible.
    pub fn start(bed: &Bed) -> anyhow::Result<Self> {
        let programs = programs()?;
        let directory = bed.directory.join("containerd");
        fs::create_dir(&directory)?;
        Self::boot(bed, programs, directory, turn())?.set_up()
    }

    /// Starts containerd on a machine, with its plugin socket at the default path.
    pub fn start_on(bed: &Bed, machine: &Machine) -> anyhow::Result<Self> {
        let programs = programs()?;
        let directory = bed.directory.join("containerd");
        fs::create_dir(&directory)?;
        let (root, own) = (machine.cgroup("containers")?, machine.cgroup("containerd")?);
        let (init, nri_socket, server) = (machine.init(), PathBuf::from("/run/nri/nri.sock"), Mutex::new(None));
        Self { outer: None, init, root, own, programs, directory, nri_socket, server, _turn: turn() }.set_up()
    }

    fn set_up(self) -> anyhow::Result<Self> {
        self.configure()?;
        self.start_server()?;
        let archive = image::write(Path::new(BUSYBOX), &self.directory)?;
        let archive = archive.to_str().context("a path that is not UTF-8")?;
        let import = ["--namespace", "k8s.io", "images", "import", "--local", "--snapshotter", "native", archive];
        let imported = self.ctr(&import)?;
        ensure!(imported.code == 0, "{imported:?}\n{}", self.log());
        Ok(self)
    }

    fn boot(bed: &Bed, programs: PathBuf, directory: PathBuf, turn: MutexGuard<'static, ()>) -> anyhow::Result<Self> {
        let console = directory.join("console");
        let root = bed.cgroup.child("host")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"])
            .args(["--propagation", "private", "sh", "-c", include_str!("host.sh"), "host"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&console)?);
        // It also ends when the test is killed.
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        root.enter(bed.net.client.enter(&mut command));
        let mut outer = command.spawn().context("start unshare")?;
        let input = outer.stdin.take().context("no pipe")?;
        let mut line = String::new();
        BufReader::new(outer.stdout.take().context("no pipe")?).read_line(&mut line)?;
        if line != "ready\n" {
            let status = outer.wait()?;
            let said = fs::read_to_string(&console)?;
            if status.code() == Some(NO_HOST) {
                return Err(NotHere(format!("a host for containerd cannot be built here: {said}")).into());
            }
            bail!("the host did not start: {status}, {said}");
        }
        let id = outer.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let init = children.trim().parse().context("unshare has no child")?;
        // The root must hold no processes, so that cgroups below it can have controllers.
        let own = root.child("own")?;
        for pid in [id, init] {
            fs::write(own.directory().join("cgroup.procs"), pid.to_string())?;
        }
        let nri_socket = directory.join("nri.sock");
        let (outer, server) = (Some((outer, input)), Mutex::new(None));
        Ok(Self { outer, init, root, own, programs, directory, nri_socket, server, _turn: turn })
    }

    fn configure(&self) -> anyhow::Result<()> {
        let directory = self.directory.display();
        let runc = self.directory.join("runc");
        fs::write(&runc, include_str!("runc.sh"))?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
        for name in ["cni", "plugins", "logs"] {
            fs::create_dir(self.directory.join(name))?;
        }
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        let config = format!(
            "version = 2\nroot = \"{directory}/root\"\nstate = \"/run/containerd\"\n\
             [grpc]\naddress = \"{directory}/{SERVER}\"\n\
             [{cri}]\nsandbox_image = \"{}\"\nrestrict_oom_score_adj = true\n\
             [{cri}.cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{directory}/cni\"\n\
             [{cri}.containerd]\nsnapshotter = \"native\"\n\
             [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{cri}.containerd.runtimes.runc.options]\nBinaryName = \"{directory}/runc\"\nSystemdCgroup = false\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = false\nsocket_path = \"{}\"\n\
             plugin_request_timeout = \"10s\"\n\
             plugin_path = \"{directory}/plugins\"\nplugin_config_path = \"{directory}/plugins\"\n",
            image::NAME,
            self.nri_socket.display(),
        );
        Ok(fs::write(self.directory.join("config.toml"), config)?)
    }

    /// Lets pods have their own network namespace. This link of the host is moved into it as `eth0`.
    pub fn give_link_to_pods(&self, link: &str, address: &str, gateway: &str) -> anyhow::Result<()> {
        let config = format!(
            r#"{{"cniVersion":"0.4.0","name":"lab","plugins":[{{"type":"host-device","device":"{link}","ipam":{{
                "type":"static","addresses":[{{"address":"{address}","gateway":"{gateway}"}}],
                "routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#
        );
        // Written in place: containerd does not detect files that are moved there.
        fs::write(self.directory.join("cni/lab.conflist"), config)?;
        wait_until("the network of pods to be ready", PATIENCE, || {
            let status = self.call::<cri::RuntimeStatus>("Status", &cri::Empty {});
            status.is_ok_and(|status| status.is_network_ready())
        })
        .with_context(|| self.log())
    }

    /// Starts containerd, which must not be running, and waits until it answers.
    pub fn start_server(&self) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.directory.join("log"))?;
        let mut command = self.command(&self.programs.join("containerd"));
        // Its shims are in the same directory.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display());
        command.arg("--config").arg(self.directory.join("config.toml")).env("PATH", path);
        command.stdout(log.try_clone()?).stderr(log);
        let server = Inside { outer: command.spawn().context("start containerd")? };
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        wait_until("containerd to answer", PATIENCE, || self.call::<cri::Empty>("Version", &cri::Empty {}).is_ok())
            .with_context(|| self.log())
    }

    /// Kills containerd; its containers continue to run.
    pub fn kill_server(&self) -> anyhow::Result<()> {
        let server =
            self.server.lock().unwrap_or_else(PoisonError::into_inner).take().context("containerd is not running")?;
        server.end(Signal::SIGKILL)?;
        Ok(())
    }

    /// containerd's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The socket on which plugins register.
    pub fn nri_socket(&self) -> &Path {
        &self.nri_socket
    }

    /// A directory for files that containers write.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new cgroup with the path `/{name}` on the host.
    pub fn cgroup(&self, name: &str) -> anyhow::Result<Cgroup> {
        self.root.child(name)
    }

    /// Makes a command run on the host, in none of the containers' cgroups, without input.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--target", &self.init.to_string()])
            .arg(program)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        self.own.enter(&mut command);
        command
    }

    /// The binary under test, on the host and with the bed's pins.
    pub fn steer(&self, bed: &Bed, arguments: &[&str]) -> Command {
        let mut command = self.command(&binary("STEER_BIN", "steer"));
        command.arg("--bpffs").arg(&bed.pins).arg("--socket").arg(bed.socket()).args(arguments);
        command
    }

    fn ctr(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(&self.programs.join("ctr"));
        output(command.arg("--address").arg(self.directory.join(SERVER)).args(arguments))
    }

    fn call<A: prost::Message + Default>(&self, method: &str, question: &impl prost::Message) -> anyhow::Result<A> {
        cri::call(&self.directory.join(SERVER), method, question)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.server.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut outer, _)) = self.outer.take() {
            let _ = outer.kill();
            let _ = outer.wait();
        }
    }
}

/// The directory of containerd's programs, if everything that they need is installed.
fn programs() -> anyhow::Result<PathBuf> {
    let programs = std::env::var_os("STEER_CONTAINERD").map_or_else(|| PathBuf::from("/usr/bin"), PathBuf::from);
    let plugins = Path::new("/usr/lib/cni");
    for needed in
        [&programs.join("containerd"), &programs.join("ctr"), Path::new(BUSYBOX), &plugins.join("host-device")]
    {
        if !needed.exists() {
            return Err(NotHere(format!("there is no {}", needed.display())).into());
        }
    }
    for needed in ["runc", "jq"] {
        if output(Command::new("which").arg(needed))?.code != 0 {
            return Err(NotHere(format!("there is no {needed}")).into());
        }
    }
    Ok(programs)
}
