//! Reads the events of the programs from their ring buffer, and detects which helpers the programs may call.
//!
//! **Invariant:** the ring has one reader, which holds a lock while it reads. Two readers would each get only a part, and
//! overwrite each other's position.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, ptr};

use aya::{
    maps::{Map, MapData, MapError, PerCpuHashMap, RingBuf},
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use steer_common::{
    EventRecord, LimitKey, LimitRecord,
    event::{NEWS_BYTES, NewsRecord},
    map, program,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Error, Pins, bpf, map_error, object, open_map, pins::file_name, reader_lock::ReaderLock};
use crate::model::uplink::news::News;

/// The constants that state what the programs may read about the running process and about sockets.
pub(super) fn constants() -> [(&'static str, u8); 6] {
    let may_ask = |program: ProgramType, helpers: &[BpfHelper]| {
        let supported = |helper: &BpfHelper| {
            is_helper_supported(program, *helper).inspect_err(|error| log::debug!("{helper:?} in {program:?}: {error}"))
        };
        u8::from(helpers.iter().all(|helper| supported(helper).unwrap_or(false)))
    };
    let pid = [BpfHelper::BPF_FUNC_get_current_cgroup_id, BpfHelper::BPF_FUNC_get_current_pid_tgid];
    let comm = [pid[0], pid[1], BpfHelper::BPF_FUNC_get_current_comm];
    let netns = [BpfHelper::BPF_FUNC_get_netns_cookie];
    [
        (program::SETSOCKOPT_KNOWS_TASK, may_ask(ProgramType::CgroupSockopt, &comm)),
        (program::EGRESS_KNOWS_PID, may_ask(ProgramType::CgroupSkb, &pid)),
        (program::EGRESS_KNOWS_COMM, may_ask(ProgramType::CgroupSkb, &comm)),
        (program::GUARD_KNOWS_NETNS, may_ask(ProgramType::CgroupSkb, &netns)),
        (program::CHOOSES_ERROR, may_ask(ProgramType::CgroupSockAddr, &[BpfHelper::BPF_FUNC_set_retval])),
        (program::SETSOCKOPT_KNOWS_NETNS, may_ask(ProgramType::CgroupSockopt, &netns)),
    ]
}

/// Bytes of the header of Ethernet.
const LINK_HEADER: usize = 14;

/// Writes news into the ring. Any process may do so, whether somebody reads the ring or not.
pub fn tell(pins: &Pins, news: &News) -> Result<(), Error> {
    let path = pins.program(program::TELL);
    let failed = |source| Error::Pin { action: "run the program", path: path.clone(), source };
    let json = news.to_json(NEWS_BYTES).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let mut packet = [0; LINK_HEADER + NEWS_BYTES];
    packet[LINK_HEADER..][..json.len()].copy_from_slice(&json);
    let told =
        bpf::open_pin(&path).and_then(|program| bpf::run_with_packet(program.as_fd(), &packet)).map_err(failed)?;
    if told == 0 { Err(failed(io::ErrorKind::StorageFull.into())) } else { Ok(()) }
}

/// How often the programs attached to a cgroup have stopped something, by reason. The counts of cgroups that were not stopped for long
/// may be gone.
pub fn stopped_in(pins: &Pins, cgroup_id: u64) -> Result<BTreeMap<u32, u64>, Error> {
    let failed = |error| map_error("read what was stopped", map::STOPPED, error);
    if !object::maps_are_pinned(pins) {
        return Ok(BTreeMap::new());
    }
    let stopped: PerCpuHashMap<MapData, LimitKey, u64> = open_map(pins, map::STOPPED, Map::PerCpuLruHashMap)?;
    let mut found: BTreeMap<u32, u64> = BTreeMap::new();
    for key in stopped.keys().collect::<Result<Vec<_>, _>>().map_err(failed)? {
        if key.cgroup_id == cgroup_id
            && let Ok(counts) = stopped.get(&key, 0)
        {
            *found.entry(key.reason).or_default() += counts.iter().sum::<u64>();
        }
    }
    Ok(found)
}

/// What is in the ring.
#[derive(Clone, Debug)]
pub enum Taken {
    /// What a program has stopped.
    Stopped(Box<EventRecord>),
    /// What the agent has told.
    News(Box<News>),
}

/// The ring of one pin directory, for its one reader.
pub struct EventRing {
    ring: AsyncFd<RingBuf<MapData>>,
    limits: PerCpuHashMap<MapData, LimitKey, LimitRecord>,
    /// Reports when the directory `version` is removed or set aside.
    removals: EventStream<[u8; 1024]>,
    version: String,
    gone: bool,
    _reader: ReaderLock,
}

/// Events of one kind that were too many to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreported {
    /// Which kind.
    pub kind: LimitKey,
    /// How many.
    pub count: u64,
}

impl EventRing {
    /// Locks and opens the ring buffer. Needs a tokio runtime. `Ok(None)`: nothing is pinned.
    pub fn open(pins: &Pins) -> Result<Option<Self>, Error> {
        if !object::maps_are_pinned(pins) {
            return Ok(None);
        }
        // Without the lock of changes, for which a daemon must not wait here. A daemon keeps the pins anyway.
        Self::open_as(pins, pins.reader_lock()?)
    }

    /// Waits until there is a ring buffer, and opens it. The lock is taken before, so the ring buffer stays from its first event
    /// on. `Ok(None)`: the pin directory was removed.
    pub async fn wait(pins: &Pins) -> Result<Option<Self>, Error> {
        let lock = pins.create_and_lock()?;
        let reader = pins.reader_lock()?;
        drop(lock);
        while !object::maps_are_pinned(pins) {
            if !changed(pins).await.map_err(|source| Error::Pin {
                action: "watch",
                path: pins.root().to_owned(),
                source,
            })? {
                return Ok(None);
            }
        }
        Self::open_as(pins, reader)
    }

    fn open_as(pins: &Pins, reader: ReaderLock) -> Result<Option<Self>, Error> {
        // Watch before the pins are opened, so that a removal at the same time is not missed.
        let removals =
            watch(pins).map_err(|source| Error::Pin { action: "watch", path: pins.root().to_owned(), source })?;
        let ring: RingBuf<MapData> = open_map(pins, map::EVENTS, Map::RingBuf)?;
        // SAFETY: the map's descriptor stays open and unchanged while the `AsyncFd` owns it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| failed("follow", map::EVENTS)(error.into()))?;
        Ok(Some(Self {
            ring,
            limits: open_map(pins, map::EVENT_LIMITS, Map::PerCpuLruHashMap)?,
            removals,
            version: file_name(&pins.abi()),
            gone: false,
            _reader: reader,
        }))
    }

    /// Takes the next waiting record, if any.
    pub fn take(&mut self) -> Option<Taken> {
        take(self.ring.get_mut())
    }

    /// Waits for the next record. `Ok(None)`: the pins were removed, and no record is left. May be cancelled.
    pub async fn next(&mut self) -> Result<Option<Taken>, Error> {
        while !self.gone {
            tokio::select! {
                biased;
                ready = self.ring.readable_mut() => {
                    let mut ready = ready.map_err(failed("follow", map::EVENTS))?;
                    match take(ready.get_inner_mut()) {
                        Some(record) => return Ok(Some(record)),
                        None => ready.clear_ready(),
                    }
                }
                removal = self.removals.next() => {
                    let removal = removal.transpose().map_err(failed("watch the pins of", map::EVENTS))?;
                    let name = removal.and_then(|event| event.name);
                    self.gone = name.is_none_or(|name| name == self.version.as_str());
                }
            }
        }
        Ok(self.take())
    }

    /// Takes the unreported events of every kind whose period has ended by `now_ns` of `CLOCK_BOOTTIME`. Returns whether other
    /// kinds remain.
    pub fn take_unreported(&mut self, now_ns: u64) -> Result<(Vec<Unreported>, bool), Error> {
        let failed = |error| map_error("read the unreported events", map::EVENT_LIMITS, error);
        let (mut taken, mut others) = (Vec::new(), false);
        for kind in self.limits.keys().collect::<Result<Vec<_>, _>>().map_err(failed)? {
            let limits = match self.limits.get(&kind, 0) {
                Ok(limits) => limits,
                // The kernel has reused the entry for another kind.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(failed(error)),
            };
            if !limits.iter().all(|limit| limit.is_over(now_ns)) {
                others = true;
                continue;
            }
            match self.limits.remove(&kind) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(error)),
            }
            let count = limits.iter().fold(0, |sum: u64, limit| sum.saturating_add(limit.unreported));
            if count > 0 {
                taken.push(Unreported { kind, count });
            }
        }
        Ok((taken, others))
    }
}

fn watch(pins: &Pins) -> io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(pins.root(), WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::ONLYDIR)?;
    inotify.into_event_stream([0; 1024])
}

/// Waits until something in the directories on the way to the maps changes. False if the pin directory is gone.
async fn changed(pins: &Pins) -> io::Result<bool> {
    let inotify = Inotify::init()?;
    let mask =
        WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
    let mut watched = 0;
    for directory in [pins.root().to_owned(), pins.abi(), pins.map("")] {
        match inotify.watches().add(&directory, mask) {
            Ok(_) => watched += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // The reader's own directory is removed with the pin directory.
    if watched == 0 || !pins.reader().exists() {
        return Ok(false);
    }
    if !object::maps_are_pinned(pins) {
        inotify.into_event_stream([0; 1024])?.next().await.transpose()?;
    }
    Ok(true)
}

fn take(ring: &mut RingBuf<MapData>) -> Option<Taken> {
    loop {
        let item = ring.next()?;
        if let Some(record) = decode(&item) {
            return Some(Taken::Stopped(Box::new(record)));
        } else if let Some(news) = read_news(&item) {
            return Some(Taken::News(Box::new(news)));
        }
        log::warn!("ignored an event of {} bytes: it is not this version's", item.len());
    }
}

/// Reads what an agent of this version has written.
fn read_news(bytes: &[u8]) -> Option<News> {
    let record = <&NewsRecord>::try_from(bytes).ok()?;
    let end = record.iter().position(|&byte| byte == 0).unwrap_or(NEWS_BYTES);
    serde_json::from_slice(&record[..end]).ok()
}

/// Decodes any bytes of the length of a record.
fn decode(bytes: &[u8]) -> Option<EventRecord> {
    // SAFETY: the length is that of a record, and any bytes are a valid record because it is a `Pod`.
    (bytes.len() == size_of::<EventRecord>()).then(|| unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn failed(action: &'static str, name: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Map { action, name, source }
}

#[cfg(test)]
mod tests {
    use super::{EventRecord, NEWS_BYTES, decode, read_news};

    #[test]
    fn any_bytes_of_the_right_length_decode() {
        let size = size_of::<EventRecord>();
        for len in [0, 1, size - 1, size + 1, 2 * size] {
            assert_eq!(decode(&vec![0xff; len]), None, "{len}");
        }
        assert_eq!(decode(&vec![0; size]), Some(EventRecord::EMPTY));
        assert_eq!(read_news(&[0xff; NEWS_BYTES]), None);
        // Also from an odd address.
        let bytes = vec![0xff; size + 1];
        let record = decode(&bytes[1..]).expect("as many bytes as a record has");
        assert_eq!((record.pid, record.ifindex, record.comm), (u32::MAX, -1, [0xff; 16]));
    }
}
