//! The bed of this measurement: a network namespace, a cgroup for each variant, the attached programs, and the workers.
//!
//! **Invariant:** the process that controls the workers never joins one of the cgroups.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use steer_common::program;

use super::{
    job::{Answer, Job},
    variant::{DEVICE, IFINDEX, Kind, Variant},
};
use crate::{
    bpf::{self, Hook},
    cgroups::Cgroups,
    statistic::Spread,
    steering::Steering,
    window,
    worker::{self, Worker},
};

/// The default enforcement of a policy. A new socket costs the same at both levels.
const ENFORCE: &str = "strict";

/// Fields are dropped in their order, so each field is declared before the fields that it needs.
pub(crate) struct Bed {
    workers: Vec<Worker>,
    _links: [OwnedFd; 2],
    steered: OwnedFd,
    constant: OwnedFd,
    empty: OwnedFd,
    steering: Steering,
    cgroups: Cgroups,
}

impl Bed {
    pub(crate) fn new(steer: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (needs root)")?;
        let mut cgroups = Cgroups::new()?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for variant in Variant::ALL {
            paths.push(cgroups.add(variant.cgroup())?);
        }
        let path = |variant: Variant| &paths[variant as usize];
        let steering = Steering::new(steer);
        let inner = path(Variant::Nested);
        let outer = inner.parent().context("the nested cgroup has no parent")?;
        for cgroup in [path(Variant::Steered), outer, inner] {
            steering.attach(cgroup, DEVICE, ENFORCE, &[])?;
        }
        steering.attach(path(Variant::Routed), DEVICE, ENFORCE, &["--local", "host"])?;
        let pin = steering.program_pin(program::SOCK_CREATE);
        let steered = bpf::open_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let constant = bpf::load(Hook::SOCK_CREATE, &bpf::constant(IFINDEX)).context("load the constant program")?;
        let empty = bpf::load(Hook::SOCK_CREATE, &bpf::EMPTY).context("load the empty program")?;
        let attach =
            |program, variant| bpf::attach(Hook::SOCK_CREATE, program, path(variant)).context("attach a program");
        let links = [attach(&constant, Variant::Constant)?, attach(&empty, Variant::Empty)?];
        let cpu = worker::cpu()?;
        let workers = Variant::ALL
            .map(|variant| Worker::start_with(variant.name(), &["sockets"], path(variant), cpu, variant.environment()));
        let workers = workers.into_iter().collect::<Result<_>>()?;
        Ok(Self { workers, _links: links, steered, constant, empty, steering, cgroups })
    }

    /// Makes the worker of a variant create `ops` sockets. Returns the nanoseconds per socket.
    pub(super) fn measure(&mut self, variant: Variant, kind: Kind, ops: u32) -> Result<f64> {
        let job = Job { kind, bind: variant == Variant::Setsockopt, ops };
        let Answer { elapsed, device, mark } = self.workers[variant as usize].ask(&job)?;
        let (name, expected) = (variant.name(), variant.device());
        ensure!(device == expected, "worker {name:?}: a new socket is bound to {device:?}, not to {expected:?}");
        ensure!((mark != 0) == variant.has_mark(), "worker {name:?}: the mark of a new socket is {mark:#x}");
        Ok(elapsed.as_secs_f64() * 1e9 / f64::from(ops))
    }

    /// The time for which new cgroups are unsteered, in microseconds.
    pub(crate) fn window(&self, count: u32) -> Result<Spread> {
        window::measure(self.steering.steer(), self.steering.pins(), self.cgroups.base(), count)
    }

    /// The program that runs for the sockets of a variant, if there is one.
    pub(super) fn program(&self, variant: Variant) -> Option<&OwnedFd> {
        match variant {
            Variant::Unsteered | Variant::Control | Variant::Setsockopt | Variant::Preload => None,
            Variant::Steered | Variant::Nested | Variant::Routed => Some(&self.steered),
            Variant::Constant => Some(&self.constant),
            Variant::Empty => Some(&self.empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_found_by_their_variant() {
        for (index, variant) in Variant::ALL.into_iter().enumerate() {
            assert_eq!(variant as usize, index, "{variant:?}");
        }
    }
}
