//! Reports stopped attempts as they happen: the kernel's records, with the names of this host added.
//!
//! **Invariant:** a number gets a name only if it still identifies the same object: not an old process id, which may have been
//! reused, and not the index of an interface in another network namespace.

mod event;
mod journal;
mod reason;
pub mod stopped;
mod tally;

use std::{collections::VecDeque, fs, time::Duration};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use steer_common::{Counter, EventRecord, LimitKey, event::LIMIT_PERIOD_NS};
use tokio::time::{Instant, sleep_until};

use crate::{
    host::{cgroup::Hierarchy, link},
    kernel::{self, Datapath, EventRing, Pins, Taken, Unreported},
    model::uplink::news::News,
};

pub use event::Event;
pub use journal::Journal;
pub use reason::Reason;
pub use tally::Tally;

/// For this long, a process id in a record is assumed to be the same process.
const FRESH: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_nanos(LIMIT_PERIOD_NS);

/// The events of one pin directory. There is one reader.
pub struct Events {
    ring: EventRing,
    datapath: Datapath,
    hierarchy: Hierarchy,
    netns_cookie: u64,
    /// Events that were read, but not returned yet.
    waiting: VecDeque<Event>,
    /// When to read the counts of unreported attempts.
    due: Option<Instant>,
}

impl Events {
    /// Opens the events, beginning with those that were not read yet. Needs a tokio runtime. `Ok(None)`: nothing is steered.
    pub fn open(pins: &Pins) -> Result<Option<Self>, kernel::Error> {
        Self::of(EventRing::open(pins)?, pins)
    }

    /// As [`Self::open`], but waits until a cgroup is steered. `Ok(None)`: the pin directory was removed.
    pub async fn wait(pins: &Pins) -> Result<Option<Self>, kernel::Error> {
        Self::of(EventRing::wait(pins).await?, pins)
    }

    fn of(ring: Option<EventRing>, pins: &Pins) -> Result<Option<Self>, kernel::Error> {
        let (Some(ring), Some(datapath)) = (ring, Datapath::open(pins)?) else { return Ok(None) };
        Ok(Some(Self {
            ring,
            datapath,
            hierarchy: Hierarchy::find()?,
            netns_cookie: kernel::netns_cookie()?,
            waiting: VecDeque::new(),
            due: Some(Instant::now()),
        }))
    }

    /// All events until now that the kernel has kept.
    pub fn backlog(&mut self) -> Result<VecDeque<Event>, kernel::Error> {
        while let Some(taken) = self.ring.take() {
            self.receive(taken);
        }
        self.receive_unreported(u64::MAX)?;
        Ok(std::mem::take(&mut self.waiting))
    }

    /// Waits for the next event. `Ok(None)`: the pins are gone, and there are no more events. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Event>, kernel::Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let due = self.due.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                taken = self.ring.next() => {
                    let Some(taken) = taken? else {
                        self.receive_unreported(u64::MAX)?;
                        return Ok(self.waiting.pop_front());
                    };
                    self.receive(taken);
                }
                () = sleep_until(due), if self.due.is_some() => {
                    let others = self.receive_unreported(boottime_ns())?;
                    self.due = others.then(|| Instant::now() + PERIOD);
                }
            }
        }
    }

    fn receive(&mut self, taken: Taken) {
        match taken {
            Taken::Stopped(record) => self.receive_record(&record),
            Taken::News(news) => {
                let News { boottime_ns, change } = *news;
                self.waiting.push_back(Event::of_uplink(change, Timestamp::now() - age(boottime_ns)));
            }
        }
    }

    fn receive_record(&mut self, record: &EventRecord) {
        let age = age(record.boottime_ns);
        let time = Timestamp::now() - age;
        let event = self.name(record, Event::of(record, time), age);
        if record.unreported > 0 {
            let summary = Event::summary(&LimitKey::of(record), record.unreported, event.policy.clone(), time);
            self.waiting.push_back(Event { cgroup: event.cgroup.clone(), ..summary });
        }
        self.waiting.push_back(event);
        self.due.get_or_insert_with(|| Instant::now() + PERIOD);
    }

    /// Adds summaries of unreported attempts. True if more may follow.
    fn receive_unreported(&mut self, until_ns: u64) -> Result<bool, kernel::Error> {
        let (unreported, others) = self.ring.take_unreported(until_ns)?;
        for Unreported { kind, count } in unreported {
            let policy = self.datapath.policy(kind.policy).ok().map(|record| kernel::text(&record.name));
            let summary = Event::summary(&kind, count, policy.filter(|name| !name.is_empty()), Timestamp::now());
            self.waiting.push_back(Event { cgroup: self.hierarchy.path_of(kind.cgroup_id), ..summary });
        }
        Ok(others)
    }

    /// Adds names for the numbers in the record.
    fn name(&self, record: &EventRecord, mut event: Event, age: Duration) -> Event {
        event.cgroup = self.hierarchy.path_of(record.cgroup_id);
        if event.comm.is_none() && age < FRESH {
            event.comm = event.pid.and_then(comm_of);
        }
        if event.interface.is_none() && record.netns_cookie == self.netns_cookie {
            event.interface = event.ifindex.and_then(link::name_of);
        }
        let is_stopped_packet = LimitKey::of(record).counter() == Counter::StoppedEgress as u32 && event.hint.is_none();
        let near = match (&event.interface, event.peer) {
            (Some(link), Some(peer)) if is_stopped_packet && record.netns_cookie == self.netns_cookie => {
                link::near(link, peer)
            }
            _ => None,
        };
        match near {
            Some(near) => event.with_hint_for(near),
            None => event,
        }
    }
}

/// The name of a process, for kernels where a BPF program cannot read it.
fn comm_of(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(comm.trim_ascii_end()).into_owned())
}

/// The time since a record was made.
fn age(at_ns: u64) -> Duration {
    Duration::from_nanos(boottime_ns().saturating_sub(at_ns))
}

/// The clock of the records. If it failed, which it cannot, every event would count as old.
fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
