//! The daemon: re-enters the pipe at `config` when the file changes, at `interface` when a link does, at `cgroup` when one
//! comes or goes.
//!
//! It holds nothing that is not pinned or read from the host, so it may be killed at any moment; the next one adopts what
//! it finds.
//!
//! **Invariant:** one event at a time, each carried to its end under the lock. One that cannot be is logged, leaves in force
//! what was, and is not forgotten: everything is looked at again until it succeeds.

mod answering;
mod event;
mod files;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;
use steer_common::Owner;
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    apply::{converge::Steering, follow::Namespaces},
    host::{
        cgroup::{self, Hierarchy},
        policy_files::Store,
    },
    kernel::{self, Datapath, LogLevel, Pins},
    model::{config::Config, policy::Policies},
    run::api::{self, Control, Serving, Socket},
};
use answering::Answering;
use event::{Event, Sources};

/// How long after a failure everything is looked at again.
const PATIENCE: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// The configuration, read again when it changes.
    pub store: Store,
    /// Where the API listens.
    pub socket: PathBuf,
    /// The group that may read by the API.
    pub socket_group: Option<String>,
    /// Where metrics are served beside, without asking who wants them.
    pub metrics: Option<SocketAddr>,
    /// What the kernel programs log.
    pub kernel_log: LogLevel,
}

/// The configuration has no policy although policies are in force: more likely cut off than meant.
#[derive(Debug, Error)]
#[error(
    "{} has no policy, but policies of an earlier one are in force and stay so: name them again, or end steering by `steer off`",
    .0.display()
)]
pub struct Emptied(PathBuf);

/// Runs until SIGTERM, SIGINT or `steer off`.
pub async fn run(options: Options, config: Config, pins: Pins) -> anyhow::Result<()> {
    let hierarchy = Hierarchy::find()?;
    let lock = pins.create_and_lock()?;
    let Some(_daemon) = pins.daemon_lock(&lock)? else {
        bail!("another steer daemon is running on {}; stop it first, or use another --bpffs", pins.root().display());
    };
    let mut object = kernel::load(&pins, &lock, options.kernel_log)?;
    let mut datapath = Datapath::open(&pins)?.context("the pins just made are gone")?;
    if config.policies.is_empty() && datapath.policies()?.iter().any(|entry| entry.is_owned_by(Owner::Config)) {
        // What is attached runs the programs that are pinned now, all the same.
        datapath.refresh(&lock, &hierarchy)?;
        return Err(Emptied(options.store.file().to_owned()).into());
    }
    drop(lock);
    let _logger = match options.kernel_log {
        LogLevel::Off => None,
        LogLevel::Trace => Some(spawn_kernel_log(&mut object)?),
    };

    let (control, requests) = Control::new();
    let (namespaces, their_links) = Namespaces::new();
    let mut sources = Sources::new(&options.store, &pins, their_links, requests)?;
    let mut steering = Steering::new(datapath, hierarchy, Policies::new(config), namespaces)?;
    // The first event is the table of all links; without it every uplink would look missing.
    steering.links_changed(sources.links.next().await?)?;
    steering.converge(&mut sources.cgroups)?;
    steering.replace_other_versions()?;
    let _serving = serve(&options, control, &pins);
    give_back_memory();
    sd_notify::notify(&[NotifyState::Ready]).context("notify the service manager")?;
    log::info!("ready: steering by {}", options.store.file().display());

    let mut behind = false;
    loop {
        let event = tokio::select! {
            event = sources.next() => event?,
            () = tokio::time::sleep(PATIENCE), if behind => Event::Behind,
        };
        let caught_up = matches!(event, Event::Behind);
        let hangup = matches!(event, Event::Hangup);
        let handled = match event {
            Event::Behind | Event::ChangedByHand => steering.catch_up(&mut sources.cgroups),
            Event::Links(change) => steering.links_changed(change),
            Event::TheirLinks(change) => steering.namespace_changed(change),
            Event::Cgroups(change) => steering.cgroups_changed(change, &mut sources.cgroups),
            Event::ConfigChanged | Event::Hangup => reload(&options.store, &mut steering, &mut sources.cgroups, hangup),
            Event::Asked(request) => {
                let (store, steering, cgroups) = (&options.store, &mut steering, &mut sources.cgroups);
                Answering { store, pins: &pins, steering, cgroups, behind }.answer(request)
            }
            Event::Terminate => {
                log::info!("ending; what is steered stays steered (`steer off` ends that)");
                return Ok(());
            }
            Event::PinsRemoved => Err(kernel::Error::SwitchedOff { path: pins.root().to_owned() }),
        };
        match handled {
            Ok(()) => behind &= !caught_up,
            Err(kernel::Error::SwitchedOff { .. }) => {
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

/// What loading the programs took, mostly for the kernel's types, is not needed again.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; glibc only gives free pages back.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Begins to answer. Without an API there is still steering.
fn serve(options: &Options, control: Control, pins: &Pins) -> Option<Serving> {
    let metrics = options.metrics.and_then(|address| match api::bind_metrics(address) {
        Ok(listener) => Some(listener),
        Err(error) => {
            log::error!("there are no metrics at {address}: {error}");
            None
        }
    });
    let serving = Socket::bind(&options.socket, options.socket_group.as_deref())
        .and_then(|socket| Serving::start(socket, metrics, control, pins.clone()));
    match serving {
        Ok(serving) => {
            log::info!("answering at {}", options.socket.display());
            Some(serving)
        }
        Err(error) => {
            log::error!(
                "there is no API, and steering goes on without: listen at {}: {error}",
                options.socket.display()
            );
            None
        }
    }
}

/// A bad file is reported and changes nothing. Unless it must be done `always`, what is as before is not carried out again.
fn reload(
    store: &Store,
    steering: &mut Steering,
    cgroups: &mut cgroup::Watch,
    always: bool,
) -> Result<(), kernel::Error> {
    let file = store.file().display();
    match store.read() {
        // More likely cut off than meant; and what it would mean is that nothing is steered any more.
        Ok(config) if config.policies.is_empty() && steering.has_policies() => log::error!(
            "{file} has no policy and was not reloaded; what was in force stays so (`steer off` ends steering)"
        ),
        Ok(config) => {
            let policies = Policies::new(config);
            if always || policies != *steering.policies() {
                steering.set_policies(policies);
                steering.converge(cgroups)?;
                log::info!("reloaded {file}");
            }
        }
        Err(error) => {
            for line in error.to_string().lines() {
                log::error!("{line}");
            }
            log::error!("{file} was not reloaded; what was in force stays so");
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
