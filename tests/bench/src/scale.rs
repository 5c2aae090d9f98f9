//! Many cgroups and many policies: the time of a start, the memory of the daemon, the delay of a change, and the cost
//! of a socket.
//!
//! **Invariant:** attachments are counted afterwards, so a daemon that attaches less does not appear fast.

mod bare;
mod rules;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use serde::Serialize;
use steer_common::{ABI_VERSION, PolicyRecord, map};
use steer_lab::Netns;

use crate::{
    cgroups::Cgroups,
    daemon::Daemon,
    goal::Goal,
    interrupt, sockets,
    statistic::{Latency, Spread},
    steering::Steering,
};

/// The number of policies that the cgroups belong to.
const POLICIES: u32 = 10;
/// The number of policies with the same uplink.
const MANY_POLICIES: u32 = 1_000;
/// The number of times that the link is removed and added.
const LINK_CHANGES: u32 = 200;
/// The time for which the idle daemon is observed.
const IDLE: Duration = Duration::from_secs(2);
/// Longer than any change takes to be in force.
const PATIENCE: Duration = Duration::from_secs(5);

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    cgroups: u32,
    policies: u32,
    /// Time from a daemon's start until it is ready, in seconds, with nothing to attach.
    start_seconds: f64,
    /// The same, with all cgroups to attach.
    attach_seconds: f64,
    /// The additional time for each cgroup, in microseconds.
    attach_us_each: f64,
    /// The kernel's share of that: the time to make and pin nine links, measured separately.
    bare_us_each: f64,
    /// The time of a start when a killed daemon has attached all cgroups before.
    adopt_seconds: f64,
    /// The daemon's resident memory, in MiB.
    daemon_mib: f64,
    /// The kernel's memory for each cgroup, slab and per CPU, in KiB.
    kernel_kib_each: f64,
    /// The number of times that the daemon woke up in two seconds without events.
    wake_ups: u64,
    /// The number of policies with one uplink.
    many_policies: u32,
    /// Time from a change of the link until the last policy has followed, in milliseconds.
    link_change_ms: Spread,
    link_change_ms_p99: f64,
    /// The ratio of the time of a steered socket to an unsteered one, with one cgroup attached and with all.
    socket_ratio: [Spread; 2],
    /// Rules and tables.
    rules: rules::Rules,
}

/// Measures with this number of cgroups.
pub(crate) fn measure(steer: &Path, cgroups: u32, rounds: u32) -> Result<Report> {
    let netns = Netns::new("scale")?;
    let bed = Bed::new(steer)?;
    let cgroups = (cgroups / POLICIES).max(1) * POLICIES;

    bed.configure(1, |_| format!("{}/nothing", bed.name))?;
    let (daemon, start) = bed.start(&netns)?;
    drop(daemon);

    let mut made = Cgroups::new()?;
    let place = made.add("p0/c0")?;
    let name = Bed::base_of(&made)?;
    bed.configure(POLICIES, |policy| format!("{name}/p{policy}/*"))?;
    let one = bed.start(&netns)?.0;
    let beside = made.add("unsteered")?;
    // In the network namespace of the policies.
    let worker = |cgroup: &Path| netns.run(|| sockets::Alone::start(cgroup))?;
    let (mut steered, mut unsteered) = (worker(&place)?, worker(&beside)?);
    let ratio_of_one = steered.against(&mut unsteered, rounds)?;
    drop(one);
    bed.switch_off()?;

    let mut places = Vec::new();
    for policy in 0..POLICIES {
        for number in 0..cgroups / POLICIES {
            interrupt::check()?;
            places.push(made.add(&format!("p{policy}/c{number}"))?);
        }
    }
    let before = kernel_kib()?;
    let (daemon, attach) = bed.start(&netns)?;
    let after = kernel_kib()?;
    bed.count(cgroups)?;
    drop(daemon);
    let (daemon, adopt) = bed.start(&netns)?;
    let wakes = || daemon.status("voluntary_ctxt_switches");
    let (woken, daemon_kib) = (wakes()?, daemon.status("VmRSS")?);
    thread::sleep(IDLE);
    let wake_ups = wakes()? - woken;
    let ratio_of_all = steered.against(&mut unsteered, rounds)?;
    drop(daemon);
    drop((steered, unsteered));
    bed.switch_off()?;
    bed.configure(1, |_| format!("{}/nothing", bed.name))?;
    drop(bed.start(&netns)?);
    let bare_us_each = bare::measure(&bed.steering, &places)?;
    bed.switch_off()?;
    drop(made);

    let mut changes = bed.link_changes(&netns)?;
    changes.sort_by(f64::total_cmp);
    bed.switch_off()?;
    let rules = rules::measure(&bed, rounds)?;
    let attach_us_each = (attach.saturating_sub(start)).as_secs_f64() * 1e6 / f64::from(cgroups);
    Ok(Report {
        cgroups,
        policies: POLICIES,
        start_seconds: start.as_secs_f64(),
        attach_seconds: attach.as_secs_f64(),
        attach_us_each,
        bare_us_each,
        adopt_seconds: adopt.as_secs_f64(),
        daemon_mib: f64::from(u32::try_from(daemon_kib)?) / 1024.0,
        kernel_kib_each: f64::from(u32::try_from(after.saturating_sub(before))?) / f64::from(cgroups),
        wake_ups,
        many_policies: MANY_POLICIES,
        link_change_ms_p99: changes[changes.len() * 99 / 100],
        link_change_ms: Spread::of(changes),
        socket_ratio: [ratio_of_one, ratio_of_all],
        rules,
    })
}

/// Kernel memory of the kinds that attachments use, in KiB.
fn kernel_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let kib = |field: &str| {
        let number = fields.get(field).and_then(|value| value.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .with_context(|| format!("the kernel does not report {field}"))
    };
    Ok(kib("Slab")? + kib("Percpu")?)
}

/// Its own pins and directory.
struct Bed {
    steering: Steering,
    directory: PathBuf,
    name: String,
}

impl Bed {
    fn new(steer: &Path) -> Result<Self> {
        let steering = Steering::new(steer);
        let name = steering.pins().file_name().and_then(|name| name.to_str()).context("the pins have no name")?;
        let name = format!("/{name}");
        let directory = std::env::temp_dir().join(format!("{}-scale", name.trim_start_matches('/')));
        fs::create_dir(&directory)?;
        Ok(Self { steering, directory, name })
    }

    fn base_of(cgroups: &Cgroups) -> Result<String> {
        let name = cgroups.base().file_name().and_then(|name| name.to_str()).context("the cgroup has no name")?;
        Ok(format!("/{name}"))
    }

    fn configure(&self, policies: u32, cgroups: impl Fn(u32) -> String) -> Result<()> {
        let mut text = String::new();
        for policy in 0..policies {
            let cgroups = cgroups(policy);
            write!(text, "[[policy]]\nname = \"p{policy}\"\ninterface = \"lo\"\ncgroups = [\"{cgroups}\"]\n")?;
        }
        Ok(fs::write(self.directory.join("steer.toml"), text)?)
    }

    fn start(&self, netns: &Netns) -> Result<(Daemon, Duration)> {
        Daemon::start(self.steering.steer(), self.steering.pins(), &self.directory, Some(netns))
    }

    fn switch_off(&self) -> Result<()> {
        self.steering.off()
    }

    fn count(&self, expected: u32) -> Result<()> {
        let links = self.steering.pins().join(format!("abi{ABI_VERSION}/links"));
        let attached = fs::read_dir(&links).with_context(|| format!("list {}", links.display()))?.count();
        ensure!(attached == usize::try_from(expected)?, "{attached} cgroups are attached, of {expected}");
        Ok(())
    }

    /// The time until all policies have followed their common uplink, in milliseconds.
    fn link_changes(&self, netns: &Netns) -> Result<Vec<f64>> {
        self.configure(MANY_POLICIES, |policy| format!("{}/nothing-{policy}", self.name))?;
        let (_daemon, _) = self.start(netns)?;
        let pin = self.steering.pins().join(format!("abi{ABI_VERSION}/maps/{}", map::POLICIES));
        let policies = Array::<_, PolicyRecord>::try_from(Map::Array(MapData::from_pin(pin)?))?;
        let followed = |open: bool| {
            // The slots are written in order, so checking the last ones first ends most checks early.
            let is_as_it_should = |slot| policies.get(&slot, 0).is_ok_and(|record| (record.ifindex > 0) == open);
            (1..=MANY_POLICIES).rev().all(is_as_it_should)
        };
        ensure!(followed(true), "not all policies are in force");
        let mut changes = Vec::new();
        for number in 0..LINK_CHANGES {
            interrupt::check()?;
            let open = number % 2 == 1;
            let (from, to) = if open { ("away", "lo") } else { ("lo", "away") };
            let start = Instant::now();
            netns.rename_link(from, to)?;
            while !followed(open) {
                ensure!(start.elapsed() < PATIENCE, "a change of the link was not followed");
            }
            changes.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(changes)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("steer-bench: remove {}: {error}", self.directory.display());
        }
    }
}

impl Report {
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let [one, all] = &self.socket_ratio;
        vec![
            Goal::new(
                format!(
                    "attaching takes less than 100 us for each cgroup, of which nine links and their pins take the kernel {:.0} us",
                    self.bare_us_each
                ),
                vec![self.attach_us_each],
                |us| us < 100.0,
            ),
            Goal::new("all cgroups are adopted within 2 s", vec![self.adopt_seconds], |seconds| seconds < 2.0),
            Goal::new("a link change is in force within 10 ms, 99 of 100 times", vec![self.link_change_ms_p99], |ms| {
                ms < 10.0
            }),
            Goal::new("the daemon holds less than 20 MiB", vec![self.daemon_mib], |mib| mib < 20.0),
            Goal::new(
                "an idle daemon does not wake up",
                vec![f64::from(u32::try_from(self.wake_ups).unwrap_or(u32::MAX))],
                |n| n < 1.0,
            ),
            Goal::new(
                "steering a socket costs the same with all cgroups, within 5 % of a socket",
                vec![all.median / one.median],
                |ratio| ratio < 1.05,
            ),
            Goal::new(
                format!("rules of {} policies are in force 100 ms after a reload", rules::POLICIES),
                vec![self.rules.in_force.median],
                |ms| ms < 100.0,
            ),
            Goal::new("they are gone 100 ms after `steer off`", vec![self.rules.gone.median], |ms| ms < 100.0),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cgroups, policies, many_policies, link_change_ms, .. } = self;
        let [one, all] = &self.socket_ratio;
        writeln!(formatter, "{cgroups} cgroups under {policies} policies:\n")?;
        let mut table = crate::report::table(["", "measured"], 1);
        let mut row = |what: &str, measured: String| {
            table.add_row([what.to_owned(), measured]);
        };
        row("daemon ready, nothing to attach", format!("{:.2} s", self.start_seconds));
        row("daemon ready, all to attach", format!("{:.2} s", self.attach_seconds));
        row("attaching, each cgroup", format!("{:.0} us", self.attach_us_each));
        row("the kernel alone: nine links and their pins", format!("{:.0} us", self.bare_us_each));
        row("daemon ready, all attached before", format!("{:.2} s", self.adopt_seconds));
        row("daemon, resident", format!("{:.1} MiB", self.daemon_mib));
        row("kernel, each cgroup", format!("{:.1} KiB", self.kernel_kib_each));
        row("idle daemon, wake-ups in 2 s", self.wake_ups.to_string());
        row("a steered UDP socket to an unsteered one, one cgroup attached", format!("{:.3}", one.median));
        row("the same, all attached", format!("{:.3}", all.median));
        let changed = format!("{:.1} ms; {:.1} ms", link_change_ms.median, self.link_change_ms_p99);
        row(
            &format!("a link change until the last of {many_policies} policies has followed: median; 99 of 100"),
            changed,
        );
        for (what, Latency { median, p99 }) in [
            ("a reload until their rules and tables are in force", &self.rules.in_force),
            ("`steer off` until they are gone", &self.rules.gone),
        ] {
            let what = format!("{} policies with `local`: {what}: median; 99 of 100", rules::POLICIES);
            row(&what, format!("{median:.1} ms; {p99:.1} ms"));
        }
        writeln!(formatter, "{table}")
    }
}
