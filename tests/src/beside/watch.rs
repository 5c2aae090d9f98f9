//! Watches for how long the rules and tables of the policies are not as they should be.
//!
//! **Invariant:** it compares the kernel's tables with each other, and asks steer nothing.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use steer_lab::{Netns, RuleSeen, Tables};

const MAIN: u32 = 254;
/// The highest byte of the numbers of steer's tables.
const OURS: u32 = 0x73;

/// What is to be there. Made of a reading in which everything is in place.
#[derive(Clone, Debug)]
struct Expected {
    rules: BTreeSet<RuleSeen>,
    tables: BTreeSet<u32>,
    uplink: u32,
}

impl Expected {
    fn new(netns: &Netns, uplink: u32) -> anyhow::Result<Self> {
        let now = Tables::read(netns)?;
        let rules: BTreeSet<RuleSeen> = now.rules.into_iter().filter(is_ours).collect();
        let tables: BTreeSet<u32> =
            rules.iter().filter(|rule| rule.mark != 0 && rule.table >> 24 == OURS).map(|rule| rule.table).collect();
        // For each family: goto, target, two policies, end.
        ensure!(rules.len() == 10 && tables.len() == 2, "{rules:?}");
        Ok(Self { rules, tables, uplink })
    }

    /// What is missing, or should not be there. Empty: everything is in place.
    fn lacks(&self, now: &Tables) -> Vec<String> {
        let rules: BTreeSet<RuleSeen> = now.rules.iter().filter(|rule| is_ours(rule)).cloned().collect();
        let mut lacks: Vec<String> = self.rules.difference(&rules).map(|rule| format!("{rule:?}")).collect();
        let by_uplink = |table: u32| -> BTreeSet<(IpAddr, u8, Option<IpAddr>)> {
            let routes = now.routes.iter().filter(|route| route.table == table && route.link == self.uplink);
            let far = routes.filter(|route| !is_on_link_only(route.to));
            far.map(|route| (route.to, route.prefix_len, route.gateway)).collect()
        };
        let main = by_uplink(MAIN);
        for &table in &self.tables {
            let differs = by_uplink(table);
            lacks.extend(main.symmetric_difference(&differs).map(|route| format!("{table:#x}: {route:?}")));
        }
        lacks
    }
}

fn is_ours(rule: &RuleSeen) -> bool {
    rule.preference >= 40_000 && rule.preference < 41_000 || rule.preference == 0 && rule.mark != 0
}

fn is_on_link_only(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// How long it took until everything was in place again, each time.
#[derive(Clone, Debug, Default)]
pub struct Repairs {
    /// The durations.
    pub took: Vec<Duration>,
    /// The longest, and what was missing at its beginning and end.
    pub worst: (Duration, Vec<String>, Vec<String>),
}

/// A running watch.
pub struct Behind {
    stop: Arc<AtomicBool>,
    lacks: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<anyhow::Result<Repairs>>>,
}

impl Behind {
    /// Begins, while everything is in place. `uplink`: its index.
    pub fn start(netns: &Netns, uplink: u32) -> anyhow::Result<Self> {
        let expected = Expected::new(netns, uplink)?;
        let (stop, lacks) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (netns, stopped, shown) = (netns.clone(), Arc::clone(&stop), Arc::clone(&lacks));
        let thread = std::thread::spawn(move || {
            let mut repairs = Repairs::default();
            let mut since: Option<(Instant, Vec<String>, Vec<String>)> = None;
            Tables::follow(&netns, &stopped, |now| {
                let lacks = expected.lacks(&now);
                lacks.clone_into(&mut shown.lock().unwrap_or_else(PoisonError::into_inner));
                if !lacks.is_empty() {
                    let (_, _, last) = since.get_or_insert_with(|| (Instant::now(), lacks.clone(), Vec::new()));
                    *last = lacks;
                } else if let Some((begin, first, last)) = since.take() {
                    let took = begin.elapsed();
                    repairs.took.push(took);
                    if took > repairs.worst.0 {
                        repairs.worst = (took, first, last);
                    }
                }
            })?;
            Ok(repairs)
        });
        Ok(Self { stop, lacks, thread: Some(thread) })
    }

    /// What is missing now.
    pub fn lacks(&self) -> Vec<String> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it.
    pub fn stop(mut self) -> anyhow::Result<Repairs> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .context("it has ended")?
            .join()
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
