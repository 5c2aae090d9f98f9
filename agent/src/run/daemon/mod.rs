//! The daemon: re-enters the pipe at `config` when the file changes, at `interface` when a link does, at `cgroup` when one
//! comes or goes.
//!
//! ```text
//! links, namespaces, cgroups, files, signals, requests
//!         -> the loop (this file): collects, never waits for anything else
//!         -> work: what waits, collapsed and bounded; classes take turns
//!         -> the worker: one thread, one turn at a time, under the lock
//! ```
//!
//! Threads of their own also read all links, look for the namespaces of containers, look at files, and answer the API.
//!
//! It holds nothing that is not pinned or read from the host, so it may be killed at any moment; the next one adopts what
//! it finds.
//!
//! **Invariant:** nothing blocks on the loop: no lock is waited for, no file is read, no request is sent to the kernel that
//! waits for others. Every queue has a bound.

mod answering;
mod event;
mod files;
mod work;
mod worker;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;
use steer_common::Owner;
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{
    apply::{converge::Steering, follow::Namespaces},
    host::{
        cgroup::{self, Hierarchy, Report},
        policy_files::Store,
    },
    kernel::{self, Datapath, LogLevel, Pins},
    model::{config::Config, policy::Policies},
    run::api::{self, Control, Serving, Socket},
};
use event::{Event, Sources};
use work::Queue;
use worker::{Worker, Working};

/// How long a change waits for the lock. Shorter than a client of the API waits for its answer.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a turn may take to end after SIGTERM. One that waits for the lock is left.
const GRACE: Duration = Duration::from_millis(250);

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
    let Some(daemon_lock) = pins.daemon_lock(&lock)? else {
        bail!("another steer daemon is running on {}; stop it first, or use another --bpffs", pins.root().display());
    };
    let mut object = kernel::load(&pins, &lock, options.kernel_log)?;
    let pins = pins.with_patience(LOCK_PATIENCE);
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

    let (control, requests, view) = Control::new(pins.clone());
    let (namespaces, their_links) = Namespaces::new();
    let (watch, cgroups) = cgroup::watch()?;
    let mut sources = Sources::new(&options.store, &pins, cgroups, their_links, requests)?;
    let steering = Steering::new(datapath, hierarchy, watch, Policies::new(config), namespaces)?;
    let queue = Arc::new(Queue::default());
    let worker =
        Worker { steering, store: options.store.clone(), queue: Arc::clone(&queue), view, _daemon_lock: daemon_lock };
    // Without the table of all links every uplink would look missing.
    let Some(links) = sources.first_links().await? else { return Ok(()) };
    let Working { mut ready, mut ended } = worker.start(links).context("start the worker")?;

    let mut serving = None;
    let mut is_ready = false;
    loop {
        let event = tokio::select! {
            event = sources.next() => event?,
            result = &mut ready, if !is_ready => {
                is_ready = true;
                // Otherwise the start has failed, and the worker ends with the reason.
                if result.is_err() {
                    continue;
                }
                serving = serve(&options, control.clone(), &pins);
                give_back_memory();
                sd_notify::notify(&[NotifyState::Ready]).context("notify the service manager")?;
                log::info!("ready: steering by {}", options.store.file().display());
                continue;
            }
            result = &mut ended => return result.context("the worker has failed")?,
        };
        match event {
            Event::Links(links) => queue.add(|work| work.links(links)),
            Event::LinksUnread(error) => log::error!("{error}; trying again"),
            Event::TheirLinks(change) => queue.add(|work| work.namespace(change)),
            Event::Cgroups(Report::Changed(directory, name)) => queue.add(|work| work.cgroup(directory, name)),
            Event::Cgroups(Report::Closed(directory)) => queue.add(|work| work.close(directory)),
            Event::Cgroups(Report::Lost) => {
                log::warn!("the kernel dropped reports of new cgroups; looking at all of them again");
                queue.add(work::Work::catch_up);
            }
            Event::Files(files::Change::Config) => queue.add(|work| work.files(false)),
            Event::Hangup => queue.add(|work| work.files(true)),
            Event::Files(files::Change::Manual) => queue.add(work::Work::catch_up),
            Event::Asked(request) => {
                if let Err(request) = queue.add(|work| work.request(request)) {
                    request.refuse();
                }
            }
            Event::Files(files::Change::Pins) => {
                log::info!("ending; steer was switched off");
                break;
            }
            Event::Terminate => {
                log::info!("ending; what is steered stays steered (`steer off` ends that)");
                break;
            }
        }
    }
    queue.stop();
    // Whether it ends in time or not, what it has done so far is in force.
    let _ = timeout(GRACE, &mut ended).await;
    drop(serving);
    Ok(())
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
        .and_then(|socket| Serving::start(socket, metrics, control, options.store.clone(), pins.clone()));
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
