//! The kernel's share of the time of an attachment: the calls that make its links and pin them, including the directory
//! for the pins.
//!
//! **Invariant:** all links and pins made here are removed at the end.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use steer_common::program;

use crate::{
    bpf::{self, Hook},
    interrupt,
    steering::Steering,
};

/// The programs of a strict policy, in their order, without the one on a security hook, which some kernels do not run.
const PROGRAMS: [(&str, Hook); 9] = [
    (program::EGRESS, Hook::EGRESS),
    (program::SETSOCKOPT, Hook::SETSOCKOPT),
    (program::SENDMSG4, Hook::SENDMSG[0]),
    (program::SENDMSG6, Hook::SENDMSG[1]),
    (program::CONNECT4, Hook::CONNECT[0]),
    (program::CONNECT6, Hook::CONNECT[1]),
    (program::BIND4, Hook::BIND[0]),
    (program::BIND6, Hook::BIND[1]),
    (program::SOCK_CREATE, Hook::SOCK_CREATE),
];

/// Attaches the pinned programs to each of these cgroups, pins the links, and removes them again. Returns the
/// microseconds per cgroup for attaching.
pub(super) fn measure(steering: &Steering, cgroups: &[PathBuf]) -> Result<f64> {
    let directory = steering.pins().join("bare");
    fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
    let measured = attach(steering, cgroups, &directory);
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))?;
    measured
}

fn attach(steering: &Steering, cgroups: &[PathBuf], directory: &Path) -> Result<f64> {
    let open = |(name, hook)| {
        let pin = steering.program_pin(name);
        let program = bpf::open_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        Ok((name, hook, program))
    };
    let programs = PROGRAMS.map(open).into_iter().collect::<Result<Vec<_>>>()?;
    let places: Vec<_> = (0..cgroups.len()).map(|number| directory.join(number.to_string())).collect();
    let start = Instant::now();
    for (cgroup, place) in cgroups.iter().zip(&places) {
        interrupt::check()?;
        attach_one(&programs, cgroup, place).with_context(|| format!("attach to {}", cgroup.display()))?;
    }
    let each = u32::try_from(cgroups.len().max(1))?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(each))
}

fn attach_one(programs: &[(&str, Hook, OwnedFd)], cgroup: &Path, place: &Path) -> Result<()> {
    let cgroup = File::open(cgroup)?;
    let mut links = Vec::with_capacity(programs.len());
    for (name, hook, program) in programs {
        links.push((name, bpf::link(*hook, program, &cgroup)?));
    }
    fs::create_dir(place)?;
    for (name, link) in links {
        bpf::pin(&link, &place.join(name))?;
    }
    Ok(())
}
