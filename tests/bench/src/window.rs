//! The time between the creation of a cgroup that the daemon's configuration names and its steering.
//!
//! **Invariant:** the time is measured from before the directory is made until the pinned link exists, so any error
//! makes it longer.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use steer_common::{ABI_VERSION, program};

use crate::{daemon::Daemon, interrupt, statistic::Spread};

/// Longer than any wait here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes `count` cgroups in `base`, one after the other. Returns the time for which each was unsteered, in
/// microseconds.
pub(crate) fn measure(steer: &Path, pins: &Path, base: &Path, count: u32) -> Result<Spread> {
    let directory = std::env::temp_dir().join(pins.file_name().context("the pin directory has no name")?);
    fs::create_dir(&directory)?;
    let measured = in_directory(steer, pins, base, count, &directory);
    fs::remove_dir_all(&directory)?;
    measured
}

fn in_directory(steer: &Path, pins: &Path, base: &Path, count: u32, directory: &Path) -> Result<Spread> {
    let name = base.file_name().and_then(|name| name.to_str()).context("the cgroup has no name")?;
    let config = directory.join("steer.toml");
    fs::write(
        &config,
        format!("[[policy]]\nname = \"window\"\ninterface = \"lo\"\ncgroups = [\"/{name}/window-*\"]\n"),
    )?;
    let _daemon = Daemon::start(steer, pins, directory, None)?;
    let links = pins.join(format!("abi{ABI_VERSION}/links"));
    let windows = (0..count).map(|number| {
        interrupt::check()?;
        let cgroup = base.join(format!("window-{number}"));
        let window = window(&cgroup, &links);
        fs::remove_dir(&cgroup)?;
        window
    });
    Ok(Spread::of(windows.collect::<Result<Vec<_>>>()?))
}

fn window(cgroup: &Path, links: &Path) -> Result<f64> {
    let start = Instant::now();
    fs::create_dir(cgroup)?;
    let link = links.join(fs::metadata(cgroup)?.ino().to_string()).join(program::SOCK_CREATE);
    while !link.exists() {
        if start.elapsed() > PATIENCE {
            bail!("{} was not attached", cgroup.display());
        }
    }
    let window = start.elapsed();
    ensure!(window.as_micros() > 0, "the clock did not advance");
    Ok(window.as_secs_f64() * 1e6)
}
