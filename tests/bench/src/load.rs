//! The daemon under load: how fast it steers a new cgroup and answers a reload while other processes change cgroups, or
//! the links of a container, as fast as they can.
//!
//! **Invariant:** the load runs in separate processes, from before the first sample until after the last one, and
//! reports its rate. Each sample starts before the directory is made, or the request is sent.

mod storm;

use std::{
    fmt, fs,
    io::Read as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use steer_common::{ABI_VERSION, program};
use steer_lab::{Netns, create_veth};

use crate::{cgroups::Cgroups, daemon::Daemon, goal::Goal, interrupt, statistic::Latency, steering::Steering};

pub(crate) use storm::{Storm, serve};

/// More samples would add no information and take long.
const MOST_SAMPLES: u32 = 200;
/// Fewer samples would not be meaningful.
const FEWEST_SAMPLES: u32 = 10;
/// A longer time counts as this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// The interval between two checks whether a cgroup is steered. It leaves the processors to the load and the daemon.
const PAUSE: Duration = Duration::from_micros(100);
/// The allowed growth of the daemon's memory after a load, in MiB.
const MORE_MEMORY: f64 = 1.0;
/// The link in the container's namespace that is renamed.
const LINK: &str = "load0";

/// One row for each load.
#[derive(Debug, Serialize)]
pub(crate) struct Report(Vec<Row>);

/// The results under one load.
#[derive(Debug, Serialize)]
struct Row {
    load: &'static str,
    /// Cgroups made and removed, or renames, per second.
    per_second: f64,
    steered_ms: Latency,
    reload_ms: Latency,
    /// The daemon's resident memory, in MiB.
    before_mib: f64,
    after_mib: f64,
}

/// Measures under no load, and under each.
pub(crate) fn measure(steer: &Path, rounds: u32) -> Result<Report> {
    let bed = Bed::new(steer)?;
    let samples = rounds.clamp(FEWEST_SAMPLES, MOST_SAMPLES);
    let cgroups = [0, 1].map(|number| Storm::cgroups(&bed.storm, number));
    Ok(Report(vec![
        bed.measure("none", samples, &[])?,
        bed.measure("two processes make and remove cgroups", samples, &cgroups)?,
        bed.measure("a container renames a link", samples, &[Storm::link(LINK)])?,
    ]))
}

/// A daemon that steers new cgroups in two cgroups, and a steered process there in its own network namespace.
struct Bed {
    daemon: Daemon,
    // In the order in which they are dropped.
    container: Container,
    storm: PathBuf,
    quiet: PathBuf,
    links: PathBuf,
    #[expect(dead_code, reason = "removed when dropped")]
    removed_last: (Directory, Steering, Cgroups),
}

impl Bed {
    fn new(steer: &Path) -> Result<Self> {
        let mut cgroups = Cgroups::new()?;
        let (storm, quiet, own) = (cgroups.add("storm")?, cgroups.add("quiet")?, cgroups.add("container")?);
        let name = cgroups.base().file_name().and_then(|name| name.to_str()).context("the cgroup has no name")?;
        let steering = Steering::new(steer);
        let pins = steering.pins();
        let instance = pins.file_name().and_then(|name| name.to_str()).context("the pins have no name")?;
        let directory = Directory(std::env::temp_dir().join(format!("{instance}-load")));
        fs::create_dir(&directory.0)?;
        fs::write(
            directory.0.join("steer.toml"),
            format!(
                "[[policy]]\nname = \"load\"\ninterface = \"lo\"\ncgroups = [\"/{name}/storm/*\", \"/{name}/quiet/*\"]\n"
            ),
        )?;
        let netns = Netns::new("load")?;
        let (daemon, _) = Daemon::start(steer, pins, &directory.0, Some(&netns))?;
        let links = pins.join(format!("abi{ABI_VERSION}/links"));
        let container = Container::start(&own)?;
        container.netns.run(|| steering.attach(&own, LINK, "steer", &[]))??;
        let removed_last = (directory, steering, cgroups);
        Ok(Self { daemon, container, storm, quiet, links, removed_last })
    }

    fn measure(&self, load: &'static str, samples: u32, storms: &[Storm]) -> Result<Row> {
        let before_mib = self.mib()?;
        let start = Instant::now();
        let running: Vec<_> =
            storms.iter().map(|storm| Running::start(storm, &self.container.netns)).collect::<Result<_>>()?;
        let (mut steered, mut reload) = (Vec::new(), Vec::new());
        for number in 0..samples {
            interrupt::check()?;
            steered.push(self.steered(number)?);
            reload.push(self.daemon.reload()?);
        }
        let after_mib = self.mib()?;
        let done = running.into_iter().map(Running::end).sum::<Result<f64>>()?;
        Ok(Row {
            load,
            // The sum of no numbers is a negative zero.
            per_second: done.abs() / start.elapsed().as_secs_f64(),
            steered_ms: Latency::of(steered),
            reload_ms: Latency::of(reload),
            before_mib,
            after_mib,
        })
    }

    /// The time for which a new cgroup is not steered, in milliseconds.
    fn steered(&self, number: u32) -> Result<f64> {
        let cgroup = self.quiet.join(format!("q{number}"));
        let start = Instant::now();
        fs::create_dir(&cgroup)?;
        let link = self.links.join(fs::metadata(&cgroup)?.ino().to_string()).join(program::SOCK_CREATE);
        while !link.exists() && start.elapsed() < PATIENCE {
            thread::sleep(PAUSE);
        }
        let steered = start.elapsed();
        fs::remove_dir(&cgroup)?;
        Ok(steered.as_secs_f64() * 1e3)
    }

    fn mib(&self) -> Result<f64> {
        Ok(f64::from(u32::try_from(self.daemon.status("VmRSS")?)?) / 1024.0)
    }
}

/// A process in a cgroup, with its own network namespace and a link.
struct Container {
    process: Child,
    netns: Netns,
}

impl Container {
    fn start(cgroup: &Path) -> Result<Self> {
        let netns = Netns::new("load-container")?;
        create_veth(&netns, LINK, &netns, "load1")?;
        let mut command = Command::new("sleep");
        command.arg("infinity").process_group(0);
        let process = netns.enter(&mut command).spawn().context("start sleep")?;
        let container = Self { process, netns };
        fs::write(cgroup.join("cgroup.procs"), container.process.id().to_string())?;
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("steer-bench: end the process of a container: {error}");
        }
    }
}

/// Removed on drop.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("steer-bench: remove {}: {error}", self.0.display());
        }
    }
}

/// A running load. It ends when its standard input closes.
struct Running(Child);

impl Running {
    fn start(storm: &Storm, netns: &Netns) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("storm").args(storm.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        Ok(Self(netns.enter(&mut command).spawn().context("start a load")?))
    }

    /// The number of repetitions.
    fn end(mut self) -> Result<f64> {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().context("a load has no output")?.read_to_string(&mut text)?;
        ensure!(self.0.wait()?.success(), "a load failed");
        text.trim().parse().context("a load did not report its count")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("steer-bench: end a load: {error}");
        }
    }
}

impl Report {
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let under_load = || self.0.iter().skip(1);
        let of = |number: fn(&Row) -> f64| under_load().map(number).collect::<Vec<_>>();
        vec![
            Goal::new("under load, a new cgroup is steered within 10 ms", of(|row| row.steered_ms.median), |ms| {
                ms < 10.0
            }),
            Goal::new("under load, a reload is answered within 100 ms", of(|row| row.reload_ms.median), |ms| {
                ms < 100.0
            }),
            Goal::new(
                format!("under load, the daemon's memory grows by less than {MORE_MEMORY} MiB"),
                of(|row| row.after_mib - row.before_mib),
                |mib| mib < MORE_MEMORY,
            ),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "The daemon under load: until a new cgroup is steered, until a reload is answered (milliseconds), and its memory (MiB):\n"
        )?;
        let header =
            ["load", "per second", "steered: median", "p99", "reload: median", "p99", "memory before", "after"];
        let mut table = crate::report::table(header, 1);
        for Row { load, per_second, steered_ms, reload_ms, before_mib, after_mib } in &self.0 {
            let ms = |ms: f64| format!("{ms:.1}");
            table.add_row([
                (*load).to_owned(),
                format!("{per_second:.0}"),
                ms(steered_ms.median),
                ms(steered_ms.p99),
                ms(reload_ms.median),
                ms(reload_ms.p99),
                ms(*before_mib),
                ms(*after_mib),
            ]);
        }
        writeln!(formatter, "{table}")
    }
}
