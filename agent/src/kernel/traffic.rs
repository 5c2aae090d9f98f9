//! What the connections of policies with a group show about its members: counts, and alarms when many fail.
//!
//! **Invariant:** the ring of alarms has one reader, the daemon, which holds [`DaemonLock`](super::DaemonLock).

use std::{io, ptr, time::Duration};

use aya::maps::{Map, MapData, MapError, RingBuf};
use steer_common::{
    map,
    traffic::{AlarmRecord, TrafficRecord, key},
    uplink::{Family, MEMBERS},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Datapath, Error, Pins, map_error, object, open_map};

/// The counts of a group since its slot was filled: by member, for IPv4 and IPv6.
pub type Traffic = [[TrafficRecord; 2]; MEMBERS];

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Datapath {
    /// The counts of a group, by its slot.
    pub fn traffic(&self, slot: u32) -> Result<Traffic, Error> {
        let mut traffic = Traffic::default();
        for (member, of_member) in traffic.iter_mut().enumerate() {
            for (family, sum) in FAMILIES.into_iter().zip(of_member) {
                let per_cpu = match self.traffic.get(&key(slot, member, family), 0) {
                    Ok(per_cpu) => per_cpu,
                    // No connection yet.
                    Err(MapError::KeyNotFound) => continue,
                    Err(error) => return Err(map_error("read the counts of an uplink group", map::TRAFFIC, error)),
                };
                for record in per_cpu.iter() {
                    sum.established = sum.established.wrapping_add(record.established);
                    sum.unanswered = sum.unanswered.wrapping_add(record.unanswered);
                    sum.timeouts = sum.timeouts.wrapping_add(record.timeouts);
                }
            }
        }
        Ok(traffic)
    }

    /// Removes the counts of a slot.
    pub(super) fn forget_traffic(&mut self, slot: u32) -> Result<(), Error> {
        let removed = |name, removed: Result<(), MapError>| match removed {
            // No connection yet.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| map_error("remove the counts of an uplink group", name, error)),
        };
        for key in (0..MEMBERS).flat_map(|member| FAMILIES.map(|family| key(slot, member, family))) {
            removed(map::TRAFFIC, self.traffic.remove(&key))?;
            removed(map::FAILURES, self.failures.remove(&key))?;
        }
        Ok(())
    }
}

/// Many connections by a member have failed, to several destinations, and none was answered meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The slot of the group.
    pub slot: u32,
    /// The member.
    pub member: usize,
    /// The family of the connections.
    pub family: Family,
    /// When, since boot.
    pub at: Duration,
    /// How many failures there were.
    pub failures: u32,
}

impl Alarm {
    fn of(record: &AlarmRecord) -> Self {
        let (slot, member, family) = record.line();
        Self { slot, member, family, at: Duration::from_nanos(record.boottime_ns), failures: record.failures }
    }
}

/// The ring of alarms of one pin directory. It wakes nobody while no connection fails.
pub struct Alarms {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Alarms {
    /// Opens the ring, and drops the alarms that nobody has read. Needs a tokio runtime. `Ok(None)`: nothing is pinned.
    pub fn open(pins: &Pins) -> Result<Option<Self>, Error> {
        if !object::maps_are_pinned(pins) {
            return Ok(None);
        }
        let mut ring: RingBuf<MapData> = open_map(pins, map::ALARMS, Map::RingBuf)?;
        while ring.next().is_some() {}
        // SAFETY: the map's descriptor stays open and unchanged while the `AsyncFd` owns it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| failed(error.into()))?;
        Ok(Some(Self { ring }))
    }

    /// Waits for the next alarm. May be cancelled. After the pins were removed, it waits without end.
    pub async fn next(&mut self) -> Result<Alarm, Error> {
        loop {
            let mut ready = self.ring.readable_mut().await.map_err(failed)?;
            match take(ready.get_inner_mut()) {
                Some(alarm) => return Ok(alarm),
                None => ready.clear_ready(),
            }
        }
    }
}

fn take(ring: &mut RingBuf<MapData>) -> Option<Alarm> {
    loop {
        let item = ring.next()?;
        if item.len() == size_of::<AlarmRecord>() {
            // SAFETY: the length is that of a record, and any bytes are a valid record because it is a `Pod`.
            return Some(Alarm::of(&unsafe { ptr::read_unaligned(item.as_ptr().cast::<AlarmRecord>()) }));
        }
        log::warn!("ignored an alarm of {} bytes: its size is not this version's", item.len());
    }
}

fn failed(source: io::Error) -> Error {
    Error::Map { action: "follow", name: map::ALARMS, source }
}
