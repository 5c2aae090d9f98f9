//! The kernel objects: programs loaded once, maps, and one set of links for each steered cgroup, all of them pinned.
//! The only layer that uses aya and bpf(2).
//!
//! The pinned objects are the only state. Every command opens them, changes them under the lock, and ends. The daemon does
//! the same after each event.
//!
//! **Invariant:** a steered cgroup stays steered during every change. A policy is complete before a record names it. A new
//! link runs before an old one is removed. If a process is killed during a change, the partial state is closed, and the
//! next process that makes a change cleans it up.

mod account;
mod announce;
mod attachments;
mod bpf;
mod bpffs;
mod btf;
mod daemon_lock;
mod events;
mod inherit;
pub mod inspect;
mod lsm;
mod meter;
mod moved;
mod nesting;
mod netns;
mod object;
mod off;
pub mod others;
mod pins;
mod placement;
mod policies;
mod reach;
mod reader_lock;
mod refusal;
mod traffic;
mod uplinks;

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
    io,
    path::PathBuf,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, lpm_trie::LpmTrie};
use steer_common::{
    CounterRecord, ExceptionKey, ExceptionRecord, PassKey, PolicyRecord, UplinkRecord,
    account::{AccountKey, AccountRecord},
    map,
    traffic::{FailuresByPort, TrafficRecord},
};
use thiserror::Error;

use crate::model::cgroup_path::CgroupPath;

pub use announce::Announcement;
pub use attachments::Attachment;
pub use daemon_lock::{CHANGED_MANUALLY, DAEMON_DIRECTORY, DaemonLock, RunningDaemon};
pub use events::{EventRing, Taken, Unreported, stopped_in, tell};
pub use lsm::{Unguarded, release, unguarded, unguarded_by_kernel, version};
pub use meter::Meter;
pub use moved::is_watched;
pub use netns::netns_cookie;
pub use object::{LogLevel, load};
pub use off::{Remaining, Removed, detach_other_versions, off, remove_unused_pins, steered_by_other_versions};
pub use pins::{Lock, Pins};
pub use placement::{Placement, numbers};
pub use policies::{NOWHERE, Policy, PolicyEntry, own_resolvers, text};
pub use reach::{Pass, Passes, passes};
pub use traffic::{Alarm, Alarms, Traffic};
pub use uplinks::{UplinkOf, members};

/// What can go wrong with the kernel objects.
#[derive(Debug, Error)]
pub enum Error {
    /// A file operation on the bpffs.
    #[error("{action} {path}: {source}")]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} is locked by another steer process{}, which did not finish within {} s", numbered(*.holder), patience.as_secs_f64())]
    Locked {
        /// The pin directory.
        path: PathBuf,
        /// How long this process waited.
        patience: std::time::Duration,
        /// The process that holds it, where the kernel shows it.
        holder: Option<u32>,
    },
    /// Other users may change or lock the pin directory.
    #[error("{path} {what}, so another user could lock it or replace what is pinned there; repair it with `{command}`")]
    Insecure {
        /// The pin directory.
        path: PathBuf,
        /// Why.
        what: String,
        /// The shell command that repairs it.
        command: String,
    },
    /// The pin directory was removed by `steer off`.
    #[error("steer was switched off: {path} is gone")]
    SwitchedOff {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another process reads the events.
    #[error(
        "the events of {path} are being read by another process; each event can be read only once, so end that process first, such as another \
         `steer events`, or ask the daemon that reads them, with --socket"
    )]
    Read {
        /// The pin directory.
        path: PathBuf,
    },
    /// The embedded object did not load.
    #[error("load the kernel programs: {0}{hint}", hint = load_hint(.0))]
    Load(#[from] aya::EbpfError),
    /// A program did not load; the source holds the verifier's log.
    #[error("load program {name}: {source}{hint}", hint = program_hint(.source))]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The kernel's or aya's answer.
        source: aya::programs::ProgramError,
    },
    /// A program or map is not in the object file or has another size than this agent expects.
    #[error("{path} does not belong to this version of steer: remove it with `steer off`")]
    Foreign {
        /// The pin.
        path: PathBuf,
    },
    /// A map operation failed.
    #[error("{action} in map {name}: {source}")]
    Map {
        /// What was attempted.
        action: &'static str,
        /// The map.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// All policy slots are taken.
    #[error("policy {name:?}: all {slots} policy slots are in use; detach a cgroup from another policy first")]
    Full {
        /// The policy that found no slot.
        name: String,
        /// The number of slots.
        slots: u32,
    },
    /// All slots of uplink groups are taken.
    #[error(
        "uplink {name:?}: all {slots} slots of uplink groups are in use; detach a cgroup from a policy with another group first"
    )]
    FullUplinks {
        /// The group that found no slot.
        name: String,
        /// The number of slots.
        slots: u32,
    },
    /// All marks are taken.
    #[error(
        "policy {name:?}: all {marks} marks of policies with `local` or `except` are in use; set a wider `mark_mask` in [route] of \
         steer.toml, or detach a cgroup from another such policy"
    )]
    NoMark {
        /// The policy that found no mark.
        name: String,
        /// The number of marks.
        marks: usize,
    },
    /// Rules and routes of a network namespace.
    #[error("{action}: {source}")]
    Route {
        /// What was attempted.
        action: &'static str,
        /// The kernel's answer, or why there was no question.
        source: io::Error,
    },
    /// The kernel refused a link.
    #[error("attach {program} to {cgroup}: {source}{hint}")]
    Attach {
        /// The program.
        program: &'static str,
        /// Path of the cgroup.
        cgroup: String,
        /// The kernel's answer.
        source: io::Error,
        /// The attachment that forbids ours, if known.
        hint: String,
    },
    /// The network namespace has no readable identity.
    #[error(transparent)]
    Interface(#[from] crate::host::link::Error),
    /// A link would end a program of another tool.
    #[error(
        "attach {program} to {cgroup}: that would switch off {owner}, which is attached to {holder} and gives way to any program below \
         it (BPF_F_ALLOW_OVERRIDE); steer a cgroup that is not below {holder}, or let the other tool attach it with BPF_F_ALLOW_MULTI"
    )]
    Overrides {
        /// The program of steer.
        program: &'static str,
        /// The cgroup to be steered.
        cgroup: CgroupPath,
        /// The other program, and its process.
        owner: String,
        /// Where it is attached.
        holder: CgroupPath,
    },
    /// Its identity could not be read by a program.
    #[error("read the network namespace's cookie by a program (Linux older than 5.14): {action}: {source}")]
    Netns {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A cgroup operation failed.
    #[error(transparent)]
    Cgroup(#[from] crate::host::cgroup::Error),
    /// Several clean-up steps failed; all others succeeded.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

fn numbered(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (PID {pid})"))
}

fn load_hint(error: &aya::EbpfError) -> &'static str {
    match error {
        aya::EbpfError::MapError(MapError::CreateError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            " (needs CAP_BPF and CAP_NET_ADMIN; before Linux 5.11 also `ulimit -l unlimited`)"
        }
        aya::EbpfError::MapError(MapError::CreateError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            " (this kernel lacks a map type steer needs; Linux 5.10 is the oldest that has them)"
        }
        _ => "",
    }
}

fn program_hint(error: &aya::programs::ProgramError) -> &'static str {
    match error {
        aya::programs::ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            " (needs CAP_BPF and CAP_NET_ADMIN)"
        }
        aya::programs::ProgramError::LoadError { .. } => " (Linux 5.10 is the oldest kernel steer supports)",
        _ => "",
    }
}

/// The pinned maps of this ABI version, opened.
pub struct Datapath {
    pins: Pins,
    /// Inode of the pin directory these maps came from.
    root_inode: u64,
    policies: Array<MapData, PolicyRecord>,
    /// The same map, to read all of it at once, which aya does not offer.
    all_policies: MapData,
    counters: PerCpuArray<MapData, CounterRecord>,
    attachments: MapData,
    deciders: HashMap<MapData, u64, u32>,
    steered: MapData,
    passes: LpmTrie<MapData, PassKey, u32>,
    exceptions: HashMap<MapData, ExceptionKey, ExceptionRecord>,
    uplinks: Array<MapData, UplinkRecord>,
    traffic: PerCpuHashMap<MapData, u32, TrafficRecord>,
    failures: HashMap<MapData, u32, FailuresByPort>,
    account: PerCpuHashMap<MapData, AccountKey, AccountRecord>,
    /// The counts that changed policies have got, by the former slot.
    inherited: BTreeMap<u32, inherit::Inherited>,
    /// The cgroups that could not be written to it, and why.
    unreported: RefCell<BTreeMap<u64, String>>,
    /// The pinned programs, opened when they are first needed.
    programs: OnceCell<Vec<object::Pinned>>,
    /// The program that creates a cgroup's record.
    anchor: OnceCell<object::Pinned>,
    cleared: refusal::Cleared,
}

impl Datapath {
    /// Opens the pinned maps, to read them or to change them under the lock. `Ok(None)`: none are pinned.
    pub fn open(pins: &Pins) -> Result<Option<Self>, Error> {
        let root_inode = match std::fs::metadata(pins.root()) {
            Ok(metadata) => std::os::unix::fs::MetadataExt::ino(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Pin { action: "open", path: pins.root().to_owned(), source }),
        };
        if !object::maps_are_pinned(pins) {
            return Ok(None);
        }
        Ok(Some(Self {
            root_inode,
            policies: open_map(pins, map::POLICIES, Map::Array)?,
            all_policies: map_data(pins, map::POLICIES)?,
            counters: open_map(pins, map::COUNTERS, Map::PerCpuArray)?,
            attachments: map_data(pins, map::ATTACHMENTS)?,
            deciders: open_map(pins, map::DECIDERS, Map::HashMap)?,
            unreported: RefCell::default(),
            inherited: BTreeMap::new(),
            steered: map_data(pins, map::STEERED)?,
            passes: open_map(pins, map::PASSES, Map::LpmTrie)?,
            exceptions: open_map(pins, map::EXCEPTIONS, Map::HashMap)?,
            uplinks: open_map(pins, map::UPLINKS, Map::Array)?,
            traffic: open_map(pins, map::TRAFFIC, Map::PerCpuHashMap)?,
            failures: open_map(pins, map::FAILURES, Map::HashMap)?,
            account: open_map(pins, map::ACCOUNT, Map::PerCpuHashMap)?,
            programs: OnceCell::new(),
            anchor: OnceCell::new(),
            cleared: refusal::Cleared::default(),
            pins: pins.clone(),
        }))
    }

    /// Opens the pinned maps. Loads and pins what is missing.
    pub fn open_or_load(pins: &Pins, lock: &Lock) -> Result<Self, Error> {
        if object::is_complete(pins)
            && let Some(datapath) = Self::open(pins)?
        {
            return Ok(datapath);
        }
        object::load(pins, lock, LogLevel::Off)?;
        Self::open(pins)?.ok_or_else(|| Error::Foreign { path: pins.abi() })
    }

    /// The pins of this datapath.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Takes the lock to change this datapath. Fails if `steer off` has removed the pins.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.cleared.forget();
        match self.pins.lock()? {
            Some(lock) if lock.inode == self.root_inode => Ok(lock),
            _ => Err(Error::SwitchedOff { path: self.pins.root().to_owned() }),
        }
    }

    /// Fails if `steer off` has removed the pins. It can do so while another process holds the lock.
    fn still_there(&self) -> Result<(), Error> {
        match std::fs::metadata(self.pins.root()) {
            Ok(root) if std::os::unix::fs::MetadataExt::ino(&root) == self.root_inode => Ok(()),
            _ => Err(Error::SwitchedOff { path: self.pins.root().to_owned() }),
        }
    }
}

fn map_data(pins: &Pins, name: &str) -> Result<MapData, Error> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|error| Error::Pin { action: "open", path, source: io::Error::other(error) })
}

fn open_map<M: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
    wrap: fn(MapData) -> Map,
) -> Result<M, Error> {
    M::try_from(wrap(map_data(pins, name)?)).map_err(|error| {
        log::debug!("map {name}: {error}");
        Error::Foreign { path: pins.map(name) }
    })
}

/// The errno inside a map error.
fn map_error(action: &'static str, name: &'static str, error: MapError) -> Error {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    };
    Error::Map { action, name, source }
}
