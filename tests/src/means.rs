//! The means that keep a program on uplink `a1`: steer and its alternatives.
//!
//! **Invariant:** the means applies to a program from its first instruction, and the bed fits the means: for `ip vrf
//! exec` the uplink is in a VRF.

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::{Bed, Daemon, Level, Machine, NOBODY, NotHere, PATIENCE, Scene, Seen, Try, User, VRF};
use steer_lab::wait_until;

/// The first systemd that has `BindNetworkInterface=`.
const SYSTEMD_VERSION: u32 = 260;

/// One of the means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Means {
    /// A policy of steer.
    Steer(Level),
    /// A service with `BindNetworkInterface=a1`.
    Bind,
    /// The same with `RestrictNetworkInterfaces=a1 lo`.
    BindAndRestrict,
    /// `ip vrf exec`.
    VrfExec,
}

/// All means, in the order of the tables.
pub const MEANS: [Means; 5] =
    [Means::Bind, Means::BindAndRestrict, Means::VrfExec, Means::Steer(Level::Steer), Means::Steer(Level::Strict)];

impl Means {
    /// The name in the tables.
    pub fn name(self) -> String {
        match self {
            Self::Steer(level) => format!("steer, {}", level.name()),
            Self::Bind => "BindNetworkInterface=".to_owned(),
            Self::BindAndRestrict => "with RestrictNetworkInterfaces=".to_owned(),
            Self::VrfExec => "ip vrf exec".to_owned(),
        }
    }

    /// Whether it can be applied to a running program.
    pub fn can_be_late(self) -> bool {
        matches!(self, Self::Steer(_))
    }
}

/// A bed whose programs are kept on `a1`.
pub struct Confined {
    /// Declared before the bed, so that it is dropped first.
    daemon: Option<Daemon>,
    machine: Option<Machine>,
    means: Means,
    /// The bed.
    pub bed: Bed,
}

impl Confined {
    /// Makes one. [`NotHere`] where the kernel or the system lacks a requirement.
    pub fn new(means: Means, name: &str) -> anyhow::Result<Self> {
        let bed = if means == Means::VrfExec { Bed::with_vrf(name)? } else { Bed::new(name)? };
        let machine = match means {
            Means::Bind | Means::BindAndRestrict => Some(boot(&bed)?),
            Means::Steer(_) | Means::VrfExec => None,
        };
        Ok(Self { daemon: None, machine, means, bed })
    }

    /// Uses a daemon if the means is steer.
    pub fn with_daemon(mut self) -> anyhow::Result<Self> {
        if let Means::Steer(level) = self.means {
            let (bed, enforce) = (&self.bed, level.name());
            let policy = format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nenforce = \"{enforce}\"\n");
            self.daemon = Some(bed.daemon(&format!("{policy}cgroups = [\"@\"]\n"))?);
        }
        Ok(self)
    }

    /// Whether it runs in a booted systemd.
    pub fn has_machine(&self) -> bool {
        self.machine.is_some()
    }

    /// The links by which its packets leave; the uplink is first.
    pub fn links(&self) -> &'static [&'static str] {
        if self.means == Means::VrfExec { &["a1", VRF] } else { &["a1"] }
    }

    /// The client program. It needs a daemon.
    pub fn client(&self, user: User) -> anyhow::Result<Command> {
        let program = self.bed.copy_of("STEER_PROBE", "steer-probe")?;
        if let Some(machine) = &self.machine {
            return Ok(self.service(machine, &program, user));
        }
        match self.means {
            Means::VrfExec => self.by_vrf_exec(&program, user),
            _ => self.bed.client(Some(&self.bed.cgroup), user),
        }
    }

    /// Makes an attempt to escape. It must not have a daemon.
    pub fn attempt(&self, this: Try) -> anyhow::Result<Seen> {
        if let Means::Steer(level) = self.means {
            return self.bed.attempt(this, level);
        }
        ensure!(
            !matches!(this.scene, Scene::SteeredAfter(_)),
            "{} applies only to programs that start",
            self.means.name()
        );
        let program = self.bed.copy_of("STEER_ESCAPE", "steer-escape")?;
        let mut command = match &self.machine {
            Some(machine) => self.service(machine, &program, this.user),
            None => self.by_vrf_exec(&program, this.user)?,
        };
        self.bed.add_attempt(this, &mut command);
        self.bed.watch_attempt(this, command, self.links(), || Ok(()))
    }

    /// Waits until the means has followed a change of the uplink, if it follows changes.
    pub fn settle(&self) -> anyhow::Result<()> {
        if self.daemon.is_none() {
            return Ok(());
        }
        let now = self.bed.net.client.link_index("a1")?;
        wait_until("the daemon to follow the uplink", PATIENCE, || {
            self.bed.policy("p").is_ok_and(|policy| policy["ifindex"].as_u64() == now.map(u64::from))
        })?;
        Ok(())
    }

    /// Kills and restarts the process that manages the means. Returns false if there is none.
    pub fn restart_manager(&mut self) -> anyhow::Result<bool> {
        if let Some(machine) = &self.machine {
            // PID 1 cannot be killed, but it can re-execute itself.
            machine.succeed(&["systemctl", "daemon-reexec"])?;
        } else if let Some(daemon) = self.daemon.take() {
            daemon.end(nix::sys::signal::Signal::SIGKILL)?;
            self.daemon = Some(Daemon::start(&self.bed)?);
        }
        Ok(self.means != Means::VrfExec)
    }

    fn service(&self, machine: &Machine, program: &Path, user: User) -> Command {
        let mut command = machine.command(&["systemd-run", "--quiet", "--wait", "--pipe", "--collect"]);
        command.arg("--property=BindNetworkInterface=a1");
        if self.means == Means::BindAndRestrict {
            command.arg("--property=RestrictNetworkInterfaces=a1 lo");
        }
        if user == User::Nobody {
            let (uid, gid) = NOBODY;
            command.args([format!("--uid={uid}"), format!("--gid={gid}")]);
        }
        command.arg(program);
        command
    }

    fn by_vrf_exec(&self, program: &Path, user: User) -> anyhow::Result<Command> {
        let mut command = self.bed.vrf_exec(&self.bed.cgroup, user)?;
        command.arg(program);
        Ok(command)
    }
}

/// Boots the systemd of the root in `STEER_SYSTEMD_ROOT`, or of this root.
fn boot(bed: &Bed) -> anyhow::Result<Machine> {
    let root = std::env::var_os("STEER_SYSTEMD_ROOT").unwrap_or("/".into());
    let machine = Machine::boot_over(bed, Path::new(&root))?;
    let version = machine.succeed(&["systemctl", "--version"])?;
    let number = version.split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok());
    if number.context("no version of systemd")? < SYSTEMD_VERSION {
        return Err(NotHere(format!("BindNetworkInterface= needs systemd {SYSTEMD_VERSION}, found {number:?}")).into());
    }
    // systemd-run passes its own input and output over D-Bus.
    machine.succeed(&["systemctl", "start", "dbus.service"])?;
    Ok(machine)
}
