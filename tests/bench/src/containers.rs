//! The additional time of a container's start with the hook of steer: runc with and without the hook, in turn.
//!
//! **Invariant:** a container that does not start, for example because its hook fails, fails the measurement.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{cgroups::Cgroups, goal::Goal, rounds::Rounds, statistic::Spread, steering::Steering};

/// More rounds would add no information and take long.
const MOST_ROUNDS: u32 = 40;
/// Directories of this machine that a container's program needs.
const SYSTEM: [&str; 5] = ["/bin", "/lib", "/lib64", "/sbin", "/usr"];

/// The life of a container that does nothing, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    unsteered: Spread,
    /// From pairs: the time that the hook at createRuntime adds.
    added_at_start: Spread,
    /// The time that this hook and the one at poststop add.
    added: Spread,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Unsteered,
    /// With the hook at createRuntime.
    Started,
    /// With that hook and the one at poststop.
    Steered,
}

/// `None` if runc is not installed.
pub(crate) fn measure(steer: &Path, rounds: Rounds) -> Result<Option<Report>> {
    let is_there = Command::new("runc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !is_there.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let cgroups = Cgroups::new()?;
    let bed = Bed::new(Steering::new(steer), &cgroups)?;
    let mut turns = Variant::ALL;
    let samples = Rounds(rounds.0.min(MOST_ROUNDS)).take_turns(&mut turns, |&variant| bed.run(variant))?;
    let unsteered = &samples[&Variant::Unsteered];
    let added = |variant| Spread::of_pairs(&samples[&variant], unsteered, |steered, unsteered| steered - unsteered);
    Ok(Some(Report {
        unsteered: Spread::of(unsteered.iter().copied()),
        added_at_start: added(Variant::Started),
        added: added(Variant::Steered),
    }))
}

impl Variant {
    const ALL: [Self; 3] = [Self::Unsteered, Self::Started, Self::Steered];
}

impl Report {
    pub(crate) fn goal(report: Option<&Self>) -> Goal {
        let measured = report.map(|report| report.added_at_start.median);
        Goal::new("a container starts less than 15 ms later", measured.into_iter().collect(), |added| added < 15.0)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unsteered, added_at_start, added } = self;
        writeln!(
            formatter,
            "A container of runc that does nothing lives {:.0} ms. The hook of steer at createRuntime makes it start {:.1} ms later ({:.1} \
             to {:.1}); with the one at poststop it lives {:.1} ms longer (medians).",
            unsteered.median, added_at_start.median, added_at_start.min, added_at_start.max, added.median
        )
    }
}

/// Removed on drop.
struct Bed {
    directory: PathBuf,
    name: String,
    /// Holds the pins, as a daemon would, so the programs stay loaded.
    steering: Steering,
}

impl Bed {
    fn new(steering: Steering, cgroups: &Cgroups) -> Result<Self> {
        steering.attach(cgroups.base(), "lo", "strict", &[])?;
        let pins = steering.pins().file_name().and_then(|name| name.to_str());
        let name = format!("{}-container", pins.context("the pin directory has no name")?);
        let directory = std::env::temp_dir().join(&name);
        for place in SYSTEM.map(|place| place.trim_start_matches('/')).into_iter().chain(["proc"]) {
            fs::create_dir_all(directory.join("rootfs").join(place))?;
        }
        let bed = Self { directory, name, steering };
        fs::write(bed.directory.join("steer.toml"), "[containers]\ninterfaces = [\"lo\"]\n")?;
        Variant::ALL.into_iter().try_for_each(|variant| bed.write_bundle(variant))?;
        Ok(bed)
    }

    fn bundle(&self, variant: Variant) -> PathBuf {
        self.directory.join(match variant {
            Variant::Unsteered => "unsteered",
            Variant::Started => "started",
            Variant::Steered => "steered",
        })
    }

    fn write_bundle(&self, variant: Variant) -> Result<()> {
        let mounts = SYSTEM
            .map(|place| json!({"destination": place, "type": "bind", "source": place, "options": ["rbind", "ro"]}));
        let mut mounts = mounts.to_vec();
        mounts.push(json!({"destination": "/proc", "type": "proc", "source": "proc"}));
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": self.directory.join("rootfs"), "readonly": true},
            "mounts": mounts,
            "linux": {
                "cgroupsPath": format!("/{}", self.name),
                "resources": {},
                "namespaces": [{"type": "pid"}, {"type": "mount"}],
            },
        });
        if variant != Variant::Unsteered {
            let hook = json!({
                "path": self.steering.steer(),
                "args": ["steer", "--bpffs", self.steering.pins(), "hook", "oci", "--config", self.directory.join("steer.toml")],
            });
            config["annotations"] = json!({"steer.interface": "lo"});
            config["hooks"] = json!({"createRuntime": [hook]});
            if variant == Variant::Steered {
                config["hooks"]["poststop"] = json!([hook]);
            }
        }
        let bundle = self.bundle(variant);
        fs::create_dir_all(&bundle)?;
        Ok(fs::write(bundle.join("config.json"), serde_json::to_vec::<Value>(&config)?)?)
    }

    /// The life of a container, in milliseconds.
    fn run(&self, variant: Variant) -> Result<f64> {
        let mut command = Command::new("runc");
        command.args(["run", "--bundle"]).arg(self.bundle(variant)).arg(&self.name).stdin(Stdio::null());
        let start = Instant::now();
        let ended = command.output().context("start runc")?;
        let elapsed = start.elapsed();
        ensure!(ended.status.success(), "runc: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(elapsed.as_secs_f64() * 1e3)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("steer-bench: remove {}: {error}", self.directory.display());
        }
    }
}
