//! What can be told of this kernel and of the pins without changing either.
//!
//! **Invariant:** only looks; of a map that is made for it nothing stays.

use std::io;

use aya::{maps::MapType, sys::is_map_supported};

use super::{Attachment, Error, Pins, bpf, object, off, pins::file_name};
use crate::host::cgroup::Cgroup;

/// The types of the maps that the programs have.
const MAPS: [(MapType, &str); 6] = [
    (MapType::Array, "array"),
    (MapType::PerCpuArray, "percpu_array"),
    (MapType::Hash, "hash"),
    (MapType::CgroupStorage, "cgroup_storage"),
    (MapType::SkStorage, "sk_storage"),
    (MapType::RingBuf, "ringbuf"),
];

/// The types of maps that this kernel does not have, of those that the programs need. Tried by making one of each.
pub fn missing_maps() -> Vec<&'static str> {
    let missing = MAPS.iter().filter(|(map, _)| is_map_supported(*map).is_ok_and(|has| !has));
    missing.map(|(_, name)| *name).collect()
}

/// The hooks for which a policy with these flags has programs; those on security hooks only where these pins have them.
pub fn hooks_asked(flags: u32, pins: Option<&Pins>) -> Vec<&'static str> {
    hooks_wanted(flags, 0, pins)
}

/// The hooks of an attachment to such a policy, where the attachments around it have policies with the flags `around`.
fn hooks_wanted(flags: u32, around: u32, pins: Option<&Pins>) -> Vec<&'static str> {
    let is_there = |hook: &&object::Hook| !hook.is_optional() || pins.is_some_and(|pins| hook.is_available(pins));
    let wanted = object::HOOKS.iter().filter(|hook| hook.is_wanted(flags, around)).filter(is_there);
    wanted.map(|hook| hook.name).collect()
}

/// What the programs of an attachment differ by from those that it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Asked for and not attached.
    pub missing: Vec<&'static str>,
    /// Attached and not asked for.
    pub superfluous: Vec<&'static str>,
}

/// Compares an attachment with what a policy with these flags asks for, and those around it.
pub fn difference(attachment: &Attachment, flags: u32, pins: Option<&Pins>) -> Difference {
    let (asked, has) = (hooks_wanted(flags, attachment.record.around, pins), &attachment.hooks);
    Difference {
        missing: asked.iter().filter(|hook| !has.contains(hook)).copied().collect(),
        superfluous: has.iter().filter(|hook| !asked.contains(hook)).copied().collect(),
    }
}

/// The hooks that this kernel does not have on cgroups and that steer does not go without, asked for on any cgroup.
pub fn missing_hooks(cgroup: &Cgroup) -> Vec<&'static str> {
    let is_unknown = |error: io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let needed = object::HOOKS.iter().filter(|hook| !hook.is_optional());
    let missing = needed.filter(|hook| bpf::query(cgroup.fd(), hook.attach_type).is_err_and(is_unknown));
    missing.map(|hook| hook.name).collect()
}

/// What is left of a version of steer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Pin directories of versions that steer nothing any more, by name.
    pub dead: Vec<String>,
    /// Whether this version's own pins are not all there, as after a removal that was killed half-way: what they steer is
    /// steered on, but cannot be read.
    pub partial: bool,
}

/// What is left below a pin directory, and is of no use.
pub fn leftovers(pins: &Pins) -> Result<Leftovers, Error> {
    let dead = off::dead_versions(pins)?.iter().map(|version| file_name(version)).collect();
    Ok(Leftovers { dead, partial: pins.abi().exists() && !object::is_complete(pins) })
}
