//! The bed of a measurement: a network namespace, a cgroup for each variant, what is attached to them, and the workers.
//!
//! **Invariant:** everything has a name made of our process id and is removed in reverse order, whatever went wrong before;
//! the process that directs the workers never joins one of the cgroups.

use std::{
    fs,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getaffinity, unshare},
    unistd::Pid,
};
use steer_common::{ABI_VERSION, program};

use crate::{
    bpf,
    statistic::Spread,
    variant::{DEVICE, IFINDEX, Variant},
    window,
    worker::Worker,
};

/// Fields are dropped in their order, so each stands before what it needs.
pub(crate) struct Bed {
    workers: Vec<Worker>,
    _links: [OwnedFd; 2],
    steered: OwnedFd,
    constant: OwnedFd,
    empty: OwnedFd,
    steering: Steering,
    cgroups: Cgroups,
    cpu: usize,
}

impl Bed {
    pub(crate) fn new(steer: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (needs root)")?;
        let cgroups = Cgroups::new()?;
        let steering = Steering {
            steer: steer.to_owned(),
            pins: own_name(&mounted("bpf").unwrap_or_else(|_| "/sys/fs/bpf".into())),
        };
        steering.attach(&cgroups.path(Variant::Steered))?;
        let inner = cgroups.path(Variant::Nested);
        steering.attach(inner.parent().context("the nested cgroup has no parent")?)?;
        steering.attach(&inner)?;
        let pin = steering.pins.join(format!("abi{ABI_VERSION}/programs/{}", program::SOCK_CREATE));
        let steered = bpf::open_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let constant = bpf::load(&bpf::constant(IFINDEX)).context("load the constant program")?;
        let empty = bpf::load(&bpf::EMPTY).context("load the empty program")?;
        let attach = |program, variant| bpf::attach(program, &cgroups.path(variant)).context("attach a program");
        let links = [attach(&constant, Variant::Constant)?, attach(&empty, Variant::Empty)?];
        let cpu = last_cpu()?;
        let workers = Variant::ALL.map(|variant| Worker::start(variant, &cgroups.base, cpu));
        Ok(Self {
            workers: workers.into_iter().collect::<Result<_>>()?,
            _links: links,
            steered,
            constant,
            empty,
            steering,
            cgroups,
            cpu,
        })
    }

    /// The CPU of all workers.
    pub(crate) fn cpu(&self) -> usize {
        self.cpu
    }

    pub(crate) fn worker(&mut self, variant: Variant) -> &mut Worker {
        &mut self.workers[variant as usize]
    }

    /// How long cgroups that appear are unsteered, in microseconds.
    pub(crate) fn window(&self, count: u32) -> Result<Spread> {
        window::measure(&self.steering.steer, &self.steering.pins, &self.cgroups.base, count)
    }

    /// The program that runs for the sockets of a variant, if there is one.
    pub(crate) fn program(&self, variant: Variant) -> Option<&OwnedFd> {
        match variant {
            Variant::Unsteered | Variant::Control | Variant::Setsockopt => None,
            Variant::Steered | Variant::Nested => Some(&self.steered),
            Variant::Constant => Some(&self.constant),
            Variant::Empty => Some(&self.empty),
        }
    }
}

/// The cgroups, removed when dropped.
struct Cgroups {
    base: PathBuf,
}

impl Cgroups {
    fn new() -> Result<Self> {
        let cgroups = Self { base: own_name(&mounted("cgroup2")?) };
        for variant in Variant::ALL {
            let path = cgroups.path(variant);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(cgroups)
    }

    fn path(&self, variant: Variant) -> PathBuf {
        self.base.join(variant.cgroup())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let variants = Variant::ALL.map(|variant| self.path(variant));
        let outer = self.path(Variant::Nested).parent().map(Path::to_owned);
        for path in variants.into_iter().chain(outer).chain([self.base.clone()]) {
            // Some are missing when making them failed.
            if path.exists()
                && let Err(error) = fs::remove_dir(&path)
            {
                eprintln!("steer-bench: remove {}: {error}", path.display());
            }
        }
    }
}

/// An instance of steer of our own, switched off when dropped.
struct Steering {
    steer: PathBuf,
    pins: PathBuf,
}

impl Steering {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.steer);
        command.arg("--bpffs").arg(&self.pins).stdout(Stdio::null()).process_group(0);
        command
    }

    fn attach(&self, cgroup: &Path) -> Result<()> {
        let status = self.command().arg("attach").arg(cgroup).args(["--interface", DEVICE]).status();
        let status = status.with_context(|| format!("start {}", self.steer.display()))?;
        ensure!(status.success(), "`steer attach {}` failed: {status}", cgroup.display());
        Ok(())
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        match self.command().arg("off").status() {
            Ok(status) if status.success() => {}
            Ok(status) => eprintln!("steer-bench: `steer --bpffs {} off` failed: {status}", self.pins.display()),
            Err(error) => eprintln!("steer-bench: start {}: {error}", self.steer.display()),
        }
    }
}

/// A name below `directory` that is ours alone.
fn own_name(directory: &Path) -> PathBuf {
    directory.join(format!("steer-bench-{}", process::id()))
}

/// Where a file system of this type is mounted.
fn mounted(file_system: &str) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mount_point(&mounts, file_system).with_context(|| format!("no {file_system} is mounted"))
}

fn mount_point(mounts: &str, file_system: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (source.split(' ').next() == Some(file_system)).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The last CPU we may use: the first ones serve more interrupts.
fn last_cpu() -> Result<usize> {
    let cpus = sched_getaffinity(Pid::this()).context("read the CPU affinity")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| cpus.is_set(*cpu).unwrap_or(false));
    last.context("no CPU is allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_type() {
        let mounts = "22 1 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(mounts, "bpf"), None);
    }

    #[test]
    fn workers_are_found_by_their_variant() {
        for (index, variant) in Variant::ALL.into_iter().enumerate() {
            assert_eq!(variant as usize, index, "{variant:?}");
        }
    }
}
