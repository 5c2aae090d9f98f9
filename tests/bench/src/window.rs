//! How long a cgroup that the daemon's configuration names is there before it is steered.
//!
//! **Invariant:** measured from before the directory is made to the moment the pinned link is there, so the figure errs on
//! the long side.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use steer_common::{ABI_VERSION, program};

use crate::{daemon::Daemon, interrupt, statistic::Spread};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes `count` cgroups in `base`, one after the other, and returns how long each was unsteered, in microseconds.
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
    ensure!(window.as_micros() > 0, "the clock stands still");
    Ok(window.as_secs_f64() * 1e6)
}
