//! What is stopped, as it happens: the kernel's records with the names that this host gives to what is in them.
//!
//! **Invariant:** nothing in a record is believed further than it is shown. What may have become another's since, as a process
//! id or the index of another network namespace, is not given a name.

mod event;

use std::{collections::VecDeque, fs, time::Duration};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use steer_common::{EventRecord, LimitKey, event::LIMIT_PERIOD_NS};
use tokio::time::{Instant, sleep_until};

use crate::{
    host::{cgroup::Hierarchy, link},
    kernel::{self, Datapath, EventRing, Pins, Unreported},
};

pub use event::Event;

/// For so long a process id is taken to mean the process that it meant.
const FRESH: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_nanos(LIMIT_PERIOD_NS);

/// The events of one pin directory, for its one reader.
pub struct Events {
    ring: EventRing,
    datapath: Datapath,
    hierarchy: Hierarchy,
    netns_cookie: u64,
    /// What has been read and not been given out.
    waiting: VecDeque<Event>,
    /// When to look for what was not told.
    due: Option<Instant>,
}

impl Events {
    /// Begins to read them, those first that nobody has read yet. Needs a tokio runtime. `Ok(None)`: nothing is steered.
    pub fn open(pins: &Pins) -> Result<Option<Self>, kernel::Error> {
        let Some(datapath) = Datapath::open(pins)? else { return Ok(None) };
        let Some(ring) = EventRing::open(pins)? else { return Ok(None) };
        Ok(Some(Self {
            ring,
            datapath,
            hierarchy: Hierarchy::find()?,
            netns_cookie: kernel::netns_cookie()?,
            waiting: VecDeque::new(),
            due: Some(Instant::now()),
        }))
    }

    /// All that has happened until now, as far as it was kept.
    pub fn backlog(mut self) -> Result<VecDeque<Event>, kernel::Error> {
        while let Some(record) = self.ring.take() {
            self.receive(&record);
        }
        self.receive_unreported(u64::MAX)?;
        Ok(self.waiting)
    }

    /// Waits for the next one. `Ok(None)`: the pins are gone, and nothing more will come. May be cancelled.
    pub async fn next(&mut self) -> Result<Option<Event>, kernel::Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let due = self.due.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                record = self.ring.next() => {
                    let Some(record) = record? else {
                        self.receive_unreported(u64::MAX)?;
                        return Ok(self.waiting.pop_front());
                    };
                    self.receive(&record);
                }
                () = sleep_until(due), if self.due.is_some() => {
                    let others = self.receive_unreported(boottime_ns())?;
                    self.due = others.then(|| Instant::now() + PERIOD);
                }
            }
        }
    }

    fn receive(&mut self, record: &EventRecord) {
        let age = Duration::from_nanos(boottime_ns().saturating_sub(record.boottime_ns));
        let time = Timestamp::now() - age;
        let event = self.name(record, Event::of(record, time), age);
        if record.unreported > 0 {
            let summary = Event::summary(&LimitKey::of(record), record.unreported, event.policy.clone(), time);
            self.waiting.push_back(Event { cgroup: event.cgroup.clone(), ..summary });
        }
        self.waiting.push_back(event);
        self.due.get_or_insert_with(|| Instant::now() + PERIOD);
    }

    /// True if some may come of which no event tells.
    fn receive_unreported(&mut self, until_ns: u64) -> Result<bool, kernel::Error> {
        let (unreported, others) = self.ring.take_unreported(until_ns)?;
        for Unreported { kind, count } in unreported {
            let policy = self.datapath.policy(kind.policy).ok().map(|record| kernel::text(&record.name));
            let summary = Event::summary(&kind, count, policy.filter(|name| !name.is_empty()), Timestamp::now());
            self.waiting.push_back(Event { cgroup: self.hierarchy.path_of(kind.cgroup_id), ..summary });
        }
        Ok(others)
    }

    /// Adds the names of what the record has as numbers.
    fn name(&self, record: &EventRecord, mut event: Event, age: Duration) -> Event {
        event.cgroup = self.hierarchy.path_of(record.cgroup_id);
        if event.comm.is_none() && age < FRESH {
            event.comm = event.pid.and_then(comm_of);
        }
        if event.interface.is_none() && record.netns_cookie == self.netns_cookie {
            event.interface = event.ifindex.and_then(link::name_of);
        }
        event
    }
}

/// The name of a process, for kernels that do not let a program ask for it.
fn comm_of(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
}

/// The clock of the records. It cannot fail; were it to, every event would be as old as can be.
fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
