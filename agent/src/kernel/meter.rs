//! Counts what steered cgroups send, and by which link, while `steer top` runs.
//!
//! **Invariant:** nothing is pinned. Programs, maps and links end with the [`Meter`], or with its process, even if it is
//! killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader, Pod, include_bytes_aligned,
    maps::{MapError, PerCpuHashMap},
    programs::{Program, ProgramError},
};
use aya_obj::generated::bpf_attach_type;
use steer_common::meter::{self, TrafficKey, TrafficRecord};

use super::{Error, bpf, map_error, object};
use crate::host::cgroup::Cgroup;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/meter"));

/// The programs, and where they are attached.
static PROGRAMS: [(&str, bpf_attach_type); 2] = [
    (meter::SOCKET_PROGRAM, bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE),
    (meter::PACKET_PROGRAM, bpf_attach_type::BPF_CGROUP_INET_EGRESS),
];

/// The programs and what they are attached to.
pub struct Meter {
    object: Ebpf,
    programs: Vec<(OwnedFd, bpf_attach_type)>,
    /// By cgroup id.
    links: BTreeMap<u64, Vec<OwnedFd>>,
}

impl Meter {
    /// Loads the programs.
    pub fn load() -> Result<Self, Error> {
        let _raised = object::Memlock::raise();
        let mut object = EbpfLoader::new().load(OBJECT)?;
        let mut programs = Vec::new();
        for (name, hook) in PROGRAMS {
            let program = load(&mut object, name).map_err(|source| Error::Program { name, source })?;
            programs.push((program, hook));
        }
        Ok(Self { object, programs, links: BTreeMap::new() })
    }

    /// Counts for these cgroups and all below them, and for no others. No cgroup may be below another one of the list, or its
    /// packets would count twice. Skips cgroups that are gone or cannot be attached to.
    pub fn follow(&mut self, cgroups: &[Cgroup]) {
        let wanted: BTreeSet<_> = cgroups.iter().map(|cgroup| cgroup.id).collect();
        self.links.retain(|id, _| wanted.contains(id));
        for cgroup in cgroups {
            if self.links.contains_key(&cgroup.id) {
                continue;
            }
            let attach = |(program, hook): &(OwnedFd, _)| bpf::link_create(program.as_fd(), cgroup.fd(), *hook);
            match self.programs.iter().map(attach).collect::<io::Result<_>>() {
                Ok(links) => drop(self.links.insert(cgroup.id, links)),
                Err(error) => log::debug!("count the packets of {}: {error}", cgroup.path),
            }
        }
    }

    /// Number of sockets that were made, by cgroup id.
    pub fn sockets(&self) -> Result<BTreeMap<u64, u64>, Error> {
        self.read(meter::SOCKETS, |values: &[u64]| values.iter().sum())
    }

    /// The traffic that was sent.
    pub fn traffic(&self) -> Result<BTreeMap<TrafficKey, TrafficRecord>, Error> {
        self.read(meter::TRAFFIC, |values: &[TrafficRecord]| TrafficRecord {
            packets: values.iter().map(|value| value.packets).sum(),
            bytes: values.iter().map(|value| value.bytes).sum(),
        })
    }

    fn read<K: Pod + Ord, V: Pod, T>(
        &self,
        name: &'static str,
        sum: impl Fn(&[V]) -> T,
    ) -> Result<BTreeMap<K, T>, Error> {
        let failed = |error| map_error("read", name, error);
        let map = self.object.map(name).ok_or_else(|| failed(MapError::InvalidName { name: name.to_owned() }))?;
        let map: PerCpuHashMap<_, K, V> = map.try_into().map_err(failed)?;
        map.iter().map(|entry| entry.map(|(key, values)| (key, sum(&values))).map_err(failed)).collect()
    }
}

fn load(object: &mut Ebpf, name: &str) -> Result<OwnedFd, ProgramError> {
    let program = object.program_mut(name).ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })?;
    match program {
        Program::CgroupSock(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    program.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
}
