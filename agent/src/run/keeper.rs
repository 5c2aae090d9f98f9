//! The keeper of one `steer exec`: follows the uplink while the command runs, and then removes the cgroup and its pins.
//!
//! **Invariant:** clean-up is the same whether the command ended, was never started, or its wrapper was killed before it
//! started the command. Repeating it is no error.

use std::{
    fs,
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::Context as _;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    apply::{
        resolve::{self, Namespace},
        takeover,
    },
    host::{
        cgroup::{Hierarchy, scope},
        link,
    },
    kernel::{self, Datapath, Pins},
    model::cgroup_path::CgroupPath,
};

/// Waits for the wrapper to become its command, then for the cgroup to be empty, then cleans up.
pub async fn keep(path: &CgroupPath, wrapper_fd: i32, lock_fd: i32, pins: &Pins) -> anyhow::Result<()> {
    // SAFETY: `steer exec` made this descriptor for its keeper alone.
    let wrapper = unsafe { OwnedFd::from_raw_fd(wrapper_fd) };
    // SAFETY: likewise. Held until this process ends: the lock shows that the cgroup has a keeper.
    let _lock = unsafe { OwnedFd::from_raw_fd(lock_fd) };
    let hierarchy = Hierarchy::find()?;
    let cgroup_id = hierarchy.open(path)?.id;
    // The wrapper writes nothing. The end of the pipe is the signal.
    fs::File::from(wrapper).read_to_end(&mut Vec::new()).context("wait for the wrapper")?;
    loop {
        wait_until_empty(&hierarchy, path, pins).await?;
        if clean_up(&hierarchy, pins, path, cgroup_id)? {
            return Ok(());
        }
    }
}

/// Follows the uplink while any process is in the cgroup. After a failure it reads the links again and retries.
async fn wait_until_empty(hierarchy: &Hierarchy, path: &CgroupPath, pins: &Pins) -> anyhow::Result<()> {
    let events = match fs::File::open(hierarchy.directory(path).join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("open cgroup.events"),
    };
    // cgroup.events signals a change by POLLPRI.
    // SAFETY: the file stays open and the same while the `AsyncFd` owns it.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }?;
    let mut uplinks = Uplinks::new();
    while scope::is_populated(hierarchy, path)? {
        tokio::select! {
            ready = events.ready(Interest::PRIORITY) => ready?.clear_ready(),
            followed = follow(&mut uplinks, hierarchy, pins) => {
                if let Err(error) = followed {
                    log::error!("{error:#}");
                    uplinks = Uplinks::new();
                }
            }
        }
    }
    Ok(())
}

/// The state that is needed to follow the uplinks of this network namespace.
struct Uplinks {
    links: link::Watch,
    netns_cookie: u64,
}

impl Uplinks {
    fn new() -> Result<Self, anyhow::Error> {
        Ok(Self { links: link::Watch::new()?, netns_cookie: kernel::netns_cookie()? })
    }

    async fn follow(&mut self, hierarchy: &Hierarchy, pins: &Pins) -> anyhow::Result<()> {
        let links = self.links.next().await?;
        Ok(follow_uplinks(hierarchy, pins, links, self.netns_cookie)?)
    }
}

/// Waits for a change of links and applies it. After a failure it waits before the next attempt.
async fn follow(uplinks: &mut anyhow::Result<Uplinks>, hierarchy: &Hierarchy, pins: &Pins) -> anyhow::Result<()> {
    let followed = match uplinks {
        Ok(uplinks) => uplinks.follow(hierarchy, pins).await,
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    if followed.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    followed
}

/// Updates every policy of this network namespace, and then existing sockets. After `steer off` there is nothing to update,
/// which is no error.
fn follow_uplinks(
    hierarchy: &Hierarchy,
    pins: &Pins,
    table: &link::Table,
    netns_cookie: u64,
) -> Result<(), kernel::Error> {
    let Some(mut datapath) = Datapath::open(pins)? else { return Ok(()) };
    let lock = match datapath.lock() {
        Err(kernel::Error::SwitchedOff { .. }) => return Ok(()),
        lock => lock?,
    };
    let namespace = Namespace { links: table, cookie: netns_cookie };
    let changed = resolve::follow(&mut datapath, &lock, namespace)?;
    takeover::follow_uplinks(&lock, &datapath, hierarchy, netns_cookie, &changed).map(drop)
}

/// Removes a cgroup that `steer exec` made, then everything that belongs to it: no process can enter a removed cgroup.
/// Returns false if a process entered it before.
fn clean_up(hierarchy: &Hierarchy, pins: &Pins, path: &CgroupPath, cgroup_id: u64) -> anyhow::Result<bool> {
    if !scope::remove(hierarchy, path)? {
        return Ok(false);
    }
    if let Some(lock) = pins.lock()? {
        if let Some(mut datapath) = Datapath::open(pins)? {
            datapath.forget(&lock, cgroup_id)?;
        }
        kernel::tidy(pins, lock, hierarchy)?;
    }
    Ok(true)
}
