//! The daemon: re-enters the pipe at `config` when the file changes, at `interface` when a link does, at `cgroup` when one
//! comes or goes.
//!
//! It holds nothing that is not pinned or read from the host, so it may be killed at any moment; the next one adopts what
//! it finds.
//!
//! **Invariant:** one event at a time, each carried to its end under the lock. One that cannot be is logged, leaves in force
//! what was, and is not forgotten: everything is looked at again until it succeeds.

mod event;
mod files;
mod steering;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;
use steer_common::Owner;
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cgroup::Hierarchy,
    config::{self, Config},
    datapath::{self, Datapath, LogLevel, Pins},
    policy::Policies,
};
use event::{Event, Sources};
use steering::Steering;

/// How long after a failure everything is looked at again.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// The configuration, read again when it changes.
    pub config_file: PathBuf,
    /// What the kernel programs log.
    pub kernel_log: LogLevel,
}

/// The configuration has no policy although policies are in force: more likely cut off than meant.
#[derive(Debug, Error)]
#[error("{} has no policy, but policies of an earlier one are in force and stay so: name them again, or end steering by `steer off`", .0.display())]
pub struct Emptied(PathBuf);

/// Reads and parses the configuration.
pub fn read_config(file: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(config::parse(&file.display().to_string(), &text)?)
}

/// Runs until SIGTERM, SIGINT or `steer off`.
pub async fn run(options: Options, config: Config, pins: Pins) -> anyhow::Result<()> {
    let hierarchy = Hierarchy::find()?;
    let lock = pins.create_and_lock()?;
    let Some(_daemon) = pins.daemon_lock(&lock)? else {
        bail!("another steer daemon is running on {}; stop it first, or use another --bpffs", pins.root().display());
    };
    let mut object = datapath::load(&pins, &lock, options.kernel_log)?;
    let mut datapath = Datapath::open(&pins)?.context("the pins just made are gone")?;
    datapath.refresh(&lock, &hierarchy)?;
    if config.policies.is_empty() && datapath.policies()?.iter().any(|entry| entry.is_owned_by(Owner::Config)) {
        return Err(Emptied(options.config_file).into());
    }
    drop(lock);
    let _logger = match options.kernel_log {
        LogLevel::Off => None,
        LogLevel::Trace => Some(spawn_kernel_log(&mut object)?),
    };

    let mut sources = Sources::new(&options.config_file, &pins)?;
    let mut steering = Steering::new(datapath, hierarchy, Policies::new(config))?;
    // The first event is the table of all links; without it every uplink would look missing.
    steering.links_changed(sources.links.next().await?)?;
    steering.converge(&mut sources.cgroups)?;
    steering.replace_other_versions()?;
    sd_notify::notify(&[NotifyState::Ready]).context("notify the service manager")?;
    log::info!("ready: steering by {}", options.config_file.display());

    let mut behind = false;
    loop {
        let event = tokio::select! {
            event = sources.next() => event?,
            () = tokio::time::sleep(PATIENCE), if behind => Event::Behind,
        };
        let caught_up = matches!(event, Event::Behind);
        let handled = match event {
            Event::Behind | Event::ChangedByHand => steering.catch_up(&mut sources.cgroups),
            Event::Links(change) => steering.links_changed(change),
            Event::Cgroups(change) => steering.cgroups_changed(change, &mut sources.cgroups),
            Event::ConfigChanged => reload(&options, &mut steering, &mut sources),
            Event::Hangup => {
                let begun = announce_reload(true);
                let reloaded = reload(&options, &mut steering, &mut sources);
                if let Err(error) = begun.and_then(|()| announce_reload(false)) {
                    log::warn!("tell the service manager of a reload: {error}");
                }
                reloaded
            }
            Event::Terminate => {
                log::info!("ending; what is steered stays steered (`steer off` ends that)");
                return Ok(());
            }
            Event::PinsRemoved => Err(datapath::Error::SwitchedOff { path: pins.root().to_owned() }),
        };
        match handled {
            Ok(()) => behind &= !caught_up,
            Err(datapath::Error::SwitchedOff { .. }) => {
                log::info!("ending; steer was switched off");
                return Ok(());
            }
            Err(error) => {
                log::error!("{error}; trying again in {} s", PATIENCE.as_secs());
                behind = true;
            }
        }
    }
}

/// Tells the service manager, if there is one, that a reload begins or has ended.
pub fn announce_reload(begins: bool) -> io::Result<()> {
    if begins {
        sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
    } else {
        sd_notify::notify(&[NotifyState::Ready])
    }
}

/// A bad file is reported and changes nothing.
fn reload(options: &Options, steering: &mut Steering, sources: &mut Sources) -> Result<(), datapath::Error> {
    match read_config(&options.config_file) {
        // More likely cut off than meant; and what it would mean is that nothing is steered any more.
        Ok(config) if config.policies.is_empty() => log::error!(
            "{} has no policy and was not reloaded; what was in force stays so (`steer off` ends steering)",
            options.config_file.display()
        ),
        Ok(config) => {
            steering.set_policies(Policies::new(config));
            steering.converge(&mut sources.cgroups)?;
            log::info!("reloaded {}", options.config_file.display());
        }
        Err(error) => {
            for line in format!("{error:#}").lines() {
                log::error!("{line}");
            }
            log::error!("{} was not reloaded; what was in force stays so", options.config_file.display());
        }
    }
    Ok(())
}

fn spawn_kernel_log(object: &mut aya::Ebpf) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let logger = aya_log::EbpfLogger::init(object).context("open the kernel programs' log")?;
    // SAFETY: the ring stays open, and the same, for as long as the `AsyncFd` owns it.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
