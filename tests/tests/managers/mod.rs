//! The route method beside what else writes rules and routes: systemd-networkd, NetworkManager, wg-quick, Tailscale, and programs that
//! mark packets. All of them change things all the time, under load.
//!
//! `cargo xtask managers` makes a root with the real managers and runs this.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use libtest_mimic::Trial;
use steer_lab::{
    gaps::{Flow, Way},
    wait_until,
};
use steer_tests::{
    Outcome, PATIENCE,
    beside::{Behind, Beside, Repairs, Talk, Talks},
};

use crate::report;

mod marks;
mod network_manager;
mod networkd;
mod rules;

/// Within this time, everything has to be back.
const BACK: Duration = Duration::from_millis(100);

type Scenario = (&'static str, fn() -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("networkd", networkd::reconfigures),
    ("network_manager", network_manager::activates),
    ("rules_of_tunnels", rules::come_and_go),
    ("marks_of_others", marks::collide),
];

pub(crate) fn trials(root: bool) -> Vec<Trial> {
    let trial = |&(name, test): &Scenario| Trial::ignorable_test(format!("managers::{name}"), move || report(test()));
    SCENARIOS.iter().map(trial).map(|trial| trial.with_ignored_flag(!root)).collect()
}

/// One running scenario.
struct Run {
    beside: Beside,
    behind: Behind,
    talks: Talks,
    steps: usize,
    packets: usize,
}

impl Run {
    /// Starts the load and the watch. Everything has to be in place.
    fn start(mut beside: Beside) -> anyhow::Result<Self> {
        let talks = Talks::start(&beside)?;
        beside.check_packets()?;
        let behind = Behind::start(&beside.bed.net.client, beside.bed.net.ifindex(1)?)?;
        Ok(Self { beside, behind, talks, steps: 0, packets: 0 })
    }

    /// Waits until the uplink has its routes and steer has followed, and checks the packets until then.
    fn settle(&mut self, step: &str) -> Outcome {
        let uplink = self.beside.bed.net.ifindex(1)?;
        let (behind, client) = (&self.behind, &self.beside.bed.net.client);
        let has_uplink = || {
            steer_lab::Tables::read(client).is_ok_and(|now| {
                let defaults = now
                    .routes
                    .iter()
                    .filter(|route| route.table == 254 && route.prefix_len == 0 && route.link == uplink);
                defaults.filter(|route| route.gateway.is_some()).count() == 2
            })
        };
        wait_until("the routes of the uplink and those of steer", PATIENCE, || {
            has_uplink() && behind.lacks().is_empty()
        })
        .with_context(|| format!("after {step}: lacking {:?}", behind.lacks()))?;
        self.packets += self.beside.check_packets().with_context(|| format!("during {step}"))?;
        self.steps += 1;
        Ok(())
    }

    /// Ends the load and the watch, and records the result.
    fn finish(mut self, title: &'static str) -> anyhow::Result<(Beside, Repairs)> {
        let flows = self.talks.stop()?;
        let repairs = self.behind.stop()?;
        self.packets += self.beside.check_packets()?;
        ensure!(self.packets > 100, "only {} packets on the other links", self.packets);
        for (talk, flow) in &flows {
            ensure!((*talk == Talk::Refused) == (flow.answered == 0), "{talk:?}: {flow:?}");
            // A kept connection waits for its old address.
            let is_new = *talk != Talk::Refused && flow.way != Way::KeptTcp;
            ensure!(!is_new || flow.answered > 50, "{talk:?} had only {} answers: {flow:?}", flow.answered);
        }
        let result = ScenarioResult {
            steps: self.steps,
            packets: self.packets,
            late: self.beside.late,
            repairs: repairs.clone(),
            flows,
        };
        RESULTS.lock().unwrap_or_else(PoisonError::into_inner).insert(title, result);
        Ok((self.beside, repairs))
    }
}

/// Checks that everything was back in time.
fn check_back(repairs: &Repairs) -> Outcome {
    ensure!(repairs.worst.0 <= BACK, "not back within {BACK:?}: {:?}", repairs.worst);
    Ok(())
}

/// Checks that the daemon's turns succeeded, and that only routes by a link were removed, which go with its addresses. A rule, or a route that
/// refuses, has nothing to do with a link.
fn check_log(log: &str) -> Outcome {
    let is_bad = |line: &&str| {
        line.contains("not written")
            || line.contains("retrying")
            || line.contains("they are back") && (line.contains("add ") || line.contains("unreachable"))
    };
    let bad: Vec<&str> = log.lines().filter(is_bad).collect();
    ensure!(bad.is_empty(), "{bad:#?}");
    Ok(())
}

struct ScenarioResult {
    steps: usize,
    packets: usize,
    late: usize,
    repairs: Repairs,
    flows: Vec<(Talk, Flow)>,
}

static RESULTS: Mutex<BTreeMap<&'static str, ScenarioResult>> = Mutex::new(BTreeMap::new());

/// Prints the results as a part of a Markdown document, between two marker lines.
pub(crate) fn print_tables() {
    println!("steer-managers: begin");
    for (title, result) in &*RESULTS.lock().unwrap_or_else(PoisonError::into_inner) {
        result.print(title);
    }
    println!("steer-managers: end");
}

impl ScenarioResult {
    fn print(&self, title: &str) {
        let (count, median, longest) = summary(self.repairs.took.iter().copied());
        println!("\n### {title}\n");
        println!(
            "{} steps, {} packets on other links than the uplink, {}. Rules and tables differed {count} times from what they should be, \
             for {median} ms in the median and {longest} ms at most.\n",
            self.steps,
            self.packets,
            match self.late {
                0 => "none of them leaked".to_owned(),
                late => format!(
                    "none of them leaked but {late} bare acknowledgements of the kernel, for connections that had ended"
                ),
            }
        );
        println!(
            "| traffic | socket | answers | interruptions | median, ms | longest, ms | not steered: interruptions | median, ms | longest, ms |"
        );
        println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for talk in Talk::ALL {
            let Some(bare) = talk.bare() else { continue };
            for (way, name) in [(Way::Tcp, "new, TCP"), (Way::Udp, "new, UDP"), (Way::KeptTcp, "kept, TCP")] {
                let (answers, own) = self.of(talk, way);
                let (_, other) = self.of(bare, way);
                println!("| {} | {name} | {answers} | {} | {} |", talk.name(), cells(&own), cells(&other));
            }
        }
    }

    /// Answers, and interruptions.
    fn of(&self, talk: Talk, way: Way) -> (u64, Vec<Duration>) {
        let flows = self.flows.iter().filter(|(of, flow)| *of == talk && flow.way == way);
        let (mut answers, mut interruptions) = (0, Vec::new());
        for (_, flow) in flows {
            answers += flow.answered;
            interruptions.extend(flow.interruptions_us.iter().copied().map(Duration::from_micros));
        }
        (answers, interruptions)
    }
}

fn cells(interruptions: &[Duration]) -> String {
    let (count, median, longest) = summary(interruptions.iter().copied());
    format!("{count} | {median} | {longest}")
}

/// The number, the median and the longest, in milliseconds.
fn summary(durations: impl Iterator<Item = Duration>) -> (usize, String, String) {
    let mut sorted: Vec<Duration> = durations.collect();
    sorted.sort_unstable();
    let ms = |duration: Option<&Duration>| {
        duration.map_or_else(|| "-".to_owned(), |duration| duration.as_millis().to_string())
    };
    (sorted.len(), ms(sorted.get(sorted.len() / 2)), ms(sorted.last()))
}
