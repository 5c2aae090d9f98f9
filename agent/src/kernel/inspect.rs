//! Reads the abilities of this kernel and the state of the pins, without changing either.
//!
//! **Invariant:** only reads. A map that is created as a test is closed at once.

use std::io;

use aya::{maps::MapType, sys::is_map_supported};

use super::{Attachment, Error, Pins, bpf, object, off, pins::file_name};
use crate::host::cgroup::Cgroup;

/// The types of the maps that the programs use.
const MAPS: [(MapType, &str); 6] = [
    (MapType::Array, "array"),
    (MapType::PerCpuArray, "percpu_array"),
    (MapType::Hash, "hash"),
    (MapType::CgroupStorage, "cgroup_storage"),
    (MapType::SkStorage, "sk_storage"),
    (MapType::RingBuf, "ringbuf"),
];

/// The map types that the programs need and this kernel lacks. Tries to create a map of each type.
pub fn missing_maps() -> Vec<&'static str> {
    let missing = MAPS.iter().filter(|(map, _)| is_map_supported(*map).is_ok_and(|has| !has));
    missing.map(|(_, name)| *name).collect()
}

/// The hooks for which a policy with these flags has programs; security hooks only if these pins have their programs.
pub fn hooks_asked(flags: u32, pins: Option<&Pins>) -> Vec<&'static str> {
    hooks_wanted(flags, 0, pins)
}

/// The hooks of an attachment to such a policy, if the attachments around it have policies with the flags `around`.
fn hooks_wanted(flags: u32, around: u32, pins: Option<&Pins>) -> Vec<&'static str> {
    let is_there = |hook: &&object::Hook| !hook.is_optional() || pins.is_some_and(|pins| hook.is_available(pins));
    let wanted = object::HOOKS.iter().filter(|hook| hook.is_wanted(flags, around)).filter(is_there);
    wanted.map(|hook| hook.name).collect()
}

/// The difference between the programs of an attachment and those that it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Needed and not attached.
    pub missing: Vec<&'static str>,
    /// Attached and not needed.
    pub superfluous: Vec<&'static str>,
}

/// Compares an attachment with what a policy with these flags, and those around it, need.
pub fn difference(attachment: &Attachment, flags: u32, pins: Option<&Pins>) -> Difference {
    let (asked, has) = (hooks_wanted(flags, attachment.record.around, pins), &attachment.hooks);
    Difference {
        missing: asked.iter().filter(|hook| !has.contains(hook)).copied().collect(),
        superfluous: has.iter().filter(|hook| !asked.contains(hook)).copied().collect(),
    }
}

/// The cgroup hooks that steer needs and this kernel lacks. Any cgroup serves for the query.
pub fn missing_hooks(cgroup: &Cgroup) -> Vec<&'static str> {
    let is_unknown = |error: io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let needed = object::HOOKS.iter().filter(|hook| !hook.is_optional());
    let missing = needed.filter(|hook| bpf::query(cgroup.fd(), hook.attach_type).is_err_and(is_unknown));
    missing.map(|hook| hook.name).collect()
}

/// Leftovers of a version of steer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Pin directories of versions that no longer steer anything, by name.
    pub dead: Vec<String>,
    /// Whether this version's own pins are partial, as after a removal that was killed. Their cgroups stay steered, but their
    /// state cannot be read.
    pub partial: bool,
}

/// Finds leftovers below a pin directory.
pub fn leftovers(pins: &Pins) -> Result<Leftovers, Error> {
    let dead = off::dead_versions(pins)?.iter().map(|version| file_name(version)).collect();
    Ok(Leftovers { dead, partial: pins.abi().exists() && !object::is_complete(pins) })
}
