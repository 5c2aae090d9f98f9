//! The daemon: reads the configuration again when a file changes, the links when a link changes, and the cgroups when a cgroup
//! is created or removed.
//!
//! ```text
//! links, namespaces, cgroups, files, signals, requests
//!         -> the loop (this file): collects events; it waits for nothing else
//!         -> work: the queue, collapsed and bounded; classes take turns
//!         -> the worker: one thread, one turn at a time, under the lock
//! ```
//!
//! Other threads read all links, find the namespaces of containers, watch files, and serve the API.
//!
//! All of its state is pinned or can be read from the host, so it may be killed at any moment. The next daemon adopts that
//! state.
//!
//! **Invariant:** nothing blocks the loop: it does not wait for a lock, read a file, or send a blocking request to the kernel.
//! Every queue has a bound.

mod answering;
mod event;
mod files;
mod work;
mod worker;

pub(super) use worker::describe_emptied;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use sd_notify::NotifyState;
use steer_common::Owner;
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
    time::timeout,
};

use crate::{
    apply::{converge::Steering, follow::Namespaces},
    host::{
        cgroup::{self, Hierarchy, Report},
        policy_files::Store,
    },
    kernel::{self, Datapath, LogLevel, Pins, PolicyEntry},
    model::{config::Config, policy::Policies},
    run::api::{self, Control, Serving, Socket},
};
use event::{Event, Sources};
use work::Queue;
use worker::{Worker, Working};

/// How long a change waits for the lock. It is shorter than a client of the API waits for its answer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a turn may take to end after SIGTERM. A turn that still waits for the lock is abandoned.
const GRACE: Duration = Duration::from_millis(250);

/// The options of a run.
#[derive(Debug)]
pub struct Options {
    /// The policy files, read again when they change.
    pub store: Store,
    /// The path of the API's socket.
    pub socket: PathBuf,
    /// The path of the socket for all users.
    pub users_socket: PathBuf,
    /// The group that may read through the API.
    pub socket_group: Option<String>,
    /// The additional TCP address of the metrics, without authentication.
    pub metrics: Option<SocketAddr>,
    /// The log level of the kernel programs.
    pub kernel_log: LogLevel,
}

/// The configuration has no policy although policies are in force. The file is more likely truncated than meant to be empty.
#[derive(Debug, Error)]
#[error(
    "{} has no policy, but policies of an earlier one are in force and stay in force: add them again, or end steering with `steer off`",
    .0.display()
)]
pub struct Emptied(PathBuf);

/// Which daemon is there already.
fn another(pins: &Pins) -> anyhow::Result<anyhow::Error> {
    let process = pins.running_daemon()?.and_then(|daemon| daemon.pid());
    let process = process.map_or_else(String::new, |pid| format!(" (PID {pid})"));
    let name = pins.name().display();
    Ok(anyhow::anyhow!("another steer daemon{process} is running on {name}; stop it first, or use another --bpffs"))
}

/// Runs until SIGTERM, SIGINT or `steer off`.
pub async fn run(options: Options, config: Config, pins: Pins) -> anyhow::Result<()> {
    let hierarchy = Hierarchy::find()?;
    let lock = pins.create_and_lock()?;
    let Some(daemon_lock) = pins.daemon_lock(&lock)? else {
        return Err(another(&pins)?);
    };
    let mut object = kernel::load(&pins, &lock, options.kernel_log)?;
    let pins = pins.with_patience(LOCK_TIMEOUT);
    let mut datapath = Datapath::open(&pins)?.context("the pins just made are gone")?;
    let is_configured = |entry: &PolicyEntry| entry.is_owned_by(Owner::Config) && !entry.is_retired();
    if config.policies.is_empty() && datapath.policies()?.iter().any(is_configured) {
        // Attached links run the pinned programs, which are current, in any case.
        datapath.refresh(&lock, &hierarchy)?;
        return Err(Emptied(options.store.file().to_owned()).into());
    }
    drop(lock);
    let _logger = match options.kernel_log {
        LogLevel::Off => None,
        LogLevel::Trace => Some(spawn_kernel_log(&mut object)?),
    };

    let (control, requests, view) = Control::new(pins.clone());
    let (namespaces, namespace_links) = Namespaces::new();
    let (watch, cgroups) = cgroup::watch()?;
    let (asks_resolvers, asked) = tokio::sync::watch::channel(false);
    let mut sources = Sources::new(&options.store, &pins, cgroups, namespace_links, requests, asked)?;
    let daemon = config.daemon.clone();
    let steering = Steering::new(
        datapath,
        hierarchy,
        watch,
        Policies::new(config),
        namespaces,
        options.store.released(),
        asks_resolvers,
    )?;
    let queue = Arc::new(Queue::default());
    let worker = Worker {
        steering,
        store: options.store.clone(),
        daemon,
        queue: Arc::clone(&queue),
        runtime: Handle::current(),
        view,
        is_behind: false,
        _daemon_lock: daemon_lock,
    };
    // Without the table of all links, every uplink would appear to be missing.
    let Some(links) = sources.first_links().await? else { return Ok(()) };
    let Working { mut ready, mut ended } = worker.start(links).context("start the worker")?;

    let mut serving = None;
    let mut is_ready = false;
    loop {
        let event = tokio::select! {
            event = sources.next() => event?,
            result = &mut ready, if !is_ready => {
                is_ready = true;
                // Otherwise the start failed, and the worker ends with the reason.
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
            Event::Routes => queue.add(work::Work::routes),
            Event::LinksUnread(error) => log::error!("{error}; retrying"),
            Event::NamespaceLinks(change) => queue.add(|work| work.namespace(change)),
            Event::Alarm(alarm) => queue.add(|work| work.alarm(alarm)),
            Event::Cgroups(Report::Changed(directory, name)) => queue.add(|work| work.cgroup(directory, name)),
            Event::Cgroups(Report::Closed(directory)) => queue.add(|work| work.close(directory)),
            Event::Cgroups(Report::Lost) => {
                log::warn!("the kernel dropped reports of new cgroups; reading all of them again");
                queue.add(work::Work::catch_up);
            }
            Event::Files(files::Change::Config) => queue.add(|work| work.files(false)),
            Event::Hangup => queue.add(|work| work.files(true)),
            Event::Files(files::Change::Manual) => queue.add(work::Work::catch_up),
            Event::Request(request) => {
                if let Err(request) = queue.add(|work| work.request(request)) {
                    request.refuse();
                }
            }
            Event::Files(files::Change::Pins) => {
                log::info!("ending; steer was switched off");
                break;
            }
            Event::Terminate => {
                log::info!("ending; steered cgroups stay steered (`steer off` ends steering)");
                break;
            }
        }
    }
    queue.stop();
    // Whether it ends in time or not, the changes that it has made are in force.
    let _ = timeout(GRACE, &mut ended).await;
    drop(serving);
    Ok(())
}

/// Returns memory that was needed only to load the programs, mostly for the kernel's types.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; glibc only returns free pages.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Starts the API. Without it, steering continues.
fn serve(options: &Options, control: Control, pins: &Pins) -> Option<Serving> {
    let metrics = options.metrics.and_then(|address| match api::bind_metrics(address) {
        Ok(listener) => Some(listener),
        Err(error) => {
            log::error!("there are no metrics at {address}: {error}");
            None
        }
    });
    let for_users = Socket::bind_for_all(&options.users_socket);
    if let Err(error) = &for_users {
        log::error!("`steer exec` needs root: listen at {}: {error}", options.users_socket.display());
    }
    let serving = Socket::bind(&options.socket, options.socket_group.as_deref()).and_then(|socket| {
        Serving::start((socket, for_users.ok()), metrics, control, options.store.clone(), pins.clone())
    });
    match serving {
        Ok(serving) => {
            log::info!("answering at {}", options.socket.display());
            Some(serving)
        }
        Err(error) => {
            log::error!("steering continues without the API: listen at {}: {error}", options.socket.display());
            None
        }
    }
}

fn spawn_kernel_log(object: &mut aya::Ebpf) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let logger = aya_log::EbpfLogger::init(object).context("open the kernel programs' log")?;
    // SAFETY: the ring stays open and the same while the `AsyncFd` owns it.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
