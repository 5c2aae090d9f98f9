//! What keeps a program on uplink `a1`: steer, and what users have instead.
//!
//! **Invariant:** a program is under it from its first instruction, and the bed is one for which it is made: for `ip vrf exec`
//! the uplink is in a VRF.

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::{Bed, Daemon, Level, Machine, NOBODY, NotHere, PATIENCE, Scene, Seen, Try, User, VRF};
use steer_lab::wait_until;

/// The first systemd that has `BindNetworkInterface=`.
const SYSTEMD_VERSION: u32 = 260;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Means {
    /// A policy of steer.
    Steer(Level),
    /// A service with `BindNetworkInterface=a1`.
    Bind,
    /// The same, with `RestrictNetworkInterfaces=a1 lo`.
    BindAndRestrict,
    /// `ip vrf exec`.
    VrfExec,
}

/// All, in the order of the tables.
pub const MEANS: [Means; 5] =
    [Means::Bind, Means::BindAndRestrict, Means::VrfExec, Means::Steer(Level::Steer), Means::Steer(Level::Strict)];

impl Means {
    /// As in the tables.
    pub fn name(self) -> String {
        match self {
            Self::Steer(level) => format!("steer, {}", level.name()),
            Self::Bind => "BindNetworkInterface=".to_owned(),
            Self::BindAndRestrict => "with RestrictNetworkInterfaces=".to_owned(),
            Self::VrfExec => "ip vrf exec".to_owned(),
        }
    }

    /// Whether what is running already can be put under it.
    pub fn can_be_late(self) -> bool {
        matches!(self, Self::Steer(_))
    }
}

/// A bed on which programs are kept on `a1`.
pub struct Confined {
    /// Before the bed, on which it runs.
    daemon: Option<Daemon>,
    machine: Option<Machine>,
    means: Means,
    /// The bed.
    pub bed: Bed,
}

impl Confined {
    /// Makes one. [`NotHere`] where the kernel or the system has not what it takes.
    pub fn new(means: Means, name: &str) -> anyhow::Result<Self> {
        let bed = if means == Means::VrfExec { Bed::with_vrf(name)? } else { Bed::new(name)? };
        let machine = match means {
            Means::Bind | Means::BindAndRestrict => Some(boot(&bed)?),
            Means::Steer(_) | Means::VrfExec => None,
        };
        Ok(Self { daemon: None, machine, means, bed })
    }

    /// By a daemon, where it is steer's.
    pub fn with_daemon(mut self) -> anyhow::Result<Self> {
        if let Means::Steer(level) = self.means {
            let (bed, enforce) = (&self.bed, level.name());
            let policy = format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nenforce = \"{enforce}\"\n");
            self.daemon = Some(bed.daemon(&format!("{policy}cgroups = [\"@\"]\n"))?);
        }
        Ok(self)
    }

    /// Whether a systemd was booted for it.
    pub fn has_machine(&self) -> bool {
        self.machine.is_some()
    }

    /// The links by which its packets leave, the uplink first.
    pub fn links(&self) -> &'static [&'static str] {
        if self.means == Means::VrfExec { &["a1", VRF] } else { &["a1"] }
    }

    /// The client program; with a daemon.
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

    /// Makes an attempt to escape; without a daemon.
    pub fn attempt(&self, this: Try) -> anyhow::Result<Seen> {
        if let Means::Steer(level) = self.means {
            return self.bed.attempt(this, level);
        }
        ensure!(!matches!(this.scene, Scene::SteeredAfter(_)), "{} is for what starts", self.means.name());
        let program = self.bed.copy_of("STEER_ESCAPE", "steer-escape")?;
        let mut command = match &self.machine {
            Some(machine) => self.service(machine, &program, this.user),
            None => self.by_vrf_exec(&program, this.user)?,
        };
        self.bed.add_attempt(this, &mut command);
        self.bed.watch_attempt(this, command, self.links(), || Ok(()))
    }

    /// Waits until what steers has followed the uplink, where anything follows it.
    pub fn settle(&self) -> anyhow::Result<()> {
        if self.daemon.is_none() {
            return Ok(());
        }
        let now = self.bed.net.client.link_index("a1")?;
        wait_until("the uplink to be followed", PATIENCE, || {
            self.bed.policy("p").is_ok_and(|policy| policy["ifindex"].as_u64() == now.map(u64::from))
        })?;
        Ok(())
    }

    /// Kills what manages it, if anything does, and starts it again; false if nothing does.
    pub fn restart_manager(&mut self) -> anyhow::Result<bool> {
        if let Some(machine) = &self.machine {
            // PID 1 cannot be killed; it can be told to start afresh.
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

/// Boots the systemd of the root that `STEER_SYSTEMD_ROOT` names, or of this one.
fn boot(bed: &Bed) -> anyhow::Result<Machine> {
    let root = std::env::var_os("STEER_SYSTEMD_ROOT").unwrap_or("/".into());
    let machine = Machine::boot_over(bed, Path::new(&root))?;
    let version = machine.succeed(&["systemctl", "--version"])?;
    let number = version.split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok());
    if number.context("no version of systemd")? < SYSTEMD_VERSION {
        return Err(
            NotHere(format!("BindNetworkInterface= needs systemd {SYSTEMD_VERSION}, here is {number:?}")).into()
        );
    }
    // systemd-run hands over its own input and output by D-Bus.
    machine.succeed(&["systemctl", "start", "dbus.service"])?;
    Ok(machine)
}
