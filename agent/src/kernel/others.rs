//! Programs of others on the hooks that steer uses.
//!
//! **Invariant:** only reads.

use std::{collections::BTreeSet, fmt, fs, os::fd::AsFd as _, path::Path};

use aya::programs::loaded_links;
use aya_obj::generated::{BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE};

use steer_common::{meter, program};

use super::{Pins, bpf, object, pins::list};
use crate::{host::cgroup::Cgroup, model::quote::shown};

/// The programs attached to one hook of one cgroup itself, in the order in which they run there.
#[derive(Clone, Debug)]
pub struct OnHook {
    /// The hook, by the name of steer's program for it, which is also `bpftool`'s name of it.
    pub hook: &'static str,
    /// Which other programs may be attached.
    pub admits: Admits,
    /// At least one.
    pub programs: Vec<Program>,
}

/// Which other programs an attachment admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// Any other (`BPF_F_ALLOW_MULTI`).
    All,
    /// Others on cgroups below, which then run instead (`BPF_F_ALLOW_OVERRIDE`).
    Below,
    /// None, on the cgroup and below it (flags 0).
    Nothing,
}

/// An attached program.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its id.
    pub id: u32,
    /// The name that its loader gave it, at most 15 bytes.
    pub name: String,
    /// The user that loaded it.
    pub uid: u32,
    /// Whether a link pinned by this instance of steer, of any version, attached it.
    pub ours: bool,
}

impl Program {
    /// Whether it belongs to `steer top`, by its name. Such a program does not change a socket.
    pub fn only_counts(&self) -> bool {
        self.name == meter::SOCKET_PROGRAM || self.name == meter::PACKET_PROGRAM
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "program {} {:?}, loaded by user {}", self.id, self.name, self.uid)
    }
}

impl OnHook {
    /// The programs that run after steer's last program; empty if steer has none.
    pub fn behind_ours(&self) -> &[Program] {
        let ours = self.programs.iter().rposition(|program| program.ours);
        ours.map(|ours| &self.programs[ours + 1..]).unwrap_or_default()
    }
}

/// The programs on the cgroup itself, not those above it, by hook. Leaves out hooks without programs, and hooks that this
/// kernel lacks.
pub fn programs_on(pins: Option<&Pins>, cgroup: &Cgroup) -> Vec<OnHook> {
    let own = pins.map(|pins| own_programs(pins, cgroup.id)).unwrap_or_default();
    // The two programs of `sock_ops` are on one hook.
    let hooks = object::HOOKS.iter().filter(|hook| hook.name != program::TRAFFIC).filter_map(|hook| {
        let attached = bpf::query(cgroup.fd(), hook.attach_type).ok()?;
        let programs: Vec<_> = attached.program_ids.iter().filter_map(|&id| program(id, &own)).collect();
        let admits = match attached.flags {
            flags if flags & BPF_F_ALLOW_MULTI != 0 => Admits::All,
            flags if flags & BPF_F_ALLOW_OVERRIDE != 0 => Admits::Below,
            _ => Admits::Nothing,
        };
        (!programs.is_empty()).then_some(OnHook { hook: hook.name, admits, programs })
    });
    hooks.collect()
}

/// `None`: the program no longer exists.
fn program(id: u32, own: &BTreeSet<u32>) -> Option<Program> {
    let info = bpf::program_by_id(id).and_then(|program| bpf::program_info(program.as_fd())).ok()?;
    Some(Program { id, name: info.name, uid: info.uid, ours: own.contains(&id) })
}

/// A program, and the process that holds it, if there is one.
pub(super) fn described(id: u32) -> String {
    let what = program(id, &BTreeSet::new()).map_or_else(|| format!("program {id}"), |program| program.to_string());
    match holder(id) {
        Some((pid, comm)) => format!("{what}, and held by process {pid} ({})", shown(&comm)),
        None => what,
    }
}

/// A process that has a program, or a link to it, open, and its name. Nobody need hold an attached program.
fn holder(program_id: u32) -> Option<(u32, String)> {
    let line = format!("prog_id:\t{program_id}");
    let has_it = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(|info| info.lines().any(|it| it == line))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids.find(|pid| *pid != std::process::id() && has_it(*pid))?;
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, String::from_utf8_lossy(comm.trim_ascii_end()).into_owned()))
}

/// Ids of the programs that the pinned links of a cgroup run, of all versions.
fn own_programs(pins: &Pins, cgroup_id: u64) -> BTreeSet<u32> {
    let versions = pins.versions().unwrap_or_default();
    let links = versions
        .iter()
        .flat_map(|version| list(&version.join("links").join(cgroup_id.to_string())).unwrap_or_default());
    let run_by = |pin: &Path| bpf::open_pin(pin).and_then(|link| bpf::link_info(link.as_fd()));
    links.filter_map(|pin| Some(run_by(&pin).ok()?.program_id)).collect()
}

/// The id of a link that attaches this program; `None`: it is attached without a link.
pub fn link_of(program_id: u32) -> Option<u32> {
    loaded_links().flatten().find(|link| link.program_id() == program_id).map(|link| link.id())
}
