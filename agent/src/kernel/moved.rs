//! Attaches the program that reports processes that leave the steered cgroups.
//!
//! Only its link is pinned, beside the programs: `off` removes it with them, and that detaches it.
//!
//! **Invariant:** no policy depends on it. Where the kernel does not accept it, steer says so and goes on.

use std::{fs, io, os::fd::AsFd as _};

use aya::{Btf, programs::Program};
use steer_common::program;

use super::{Error, Pins, bpf};

/// The function of the kernel that migrates a process.
const FUNCTION: &str = "cgroup_attach_task";

/// Whether the program is attached.
pub fn is_watched(pins: &Pins) -> bool {
    pins.program(program::MOVED).exists()
}

/// Loads and attaches the program, and pins its link instead of an older one.
pub(super) fn watch(pins: &Pins, object: &mut aya::Ebpf) -> Result<(), Error> {
    let path = pins.program(program::MOVED);
    let failed = |action: &'static str| {
        let path = path.clone();
        move |source: io::Error| Error::Pin { action, path, source }
    };
    let Some(Program::FEntry(program)) = object.program_mut(program::MOVED) else {
        return Err(Error::Foreign { path });
    };
    let loaded = Btf::from_sys_fs().map_err(Into::into).and_then(|btf| program.load(FUNCTION, &btf));
    let link = loaded
        .and_then(|()| Ok(bpf::tracing_link_create(program.fd()?.as_fd())))
        .map_err(|source| Error::Program { name: program::MOVED, source })?;
    let link = link.map_err(failed("attach"))?;
    let next = path.with_file_name(format!("{}-next", program::MOVED));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    bpf::pin(link.as_fd(), &next).map_err(failed("pin"))?;
    fs::rename(&next, &path).map_err(failed("replace"))
}
