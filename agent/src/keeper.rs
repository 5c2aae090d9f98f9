//! The keeper of one `steer exec`: follows the uplink while the command runs, and removes what was made for it afterwards.
//!
//! **Invariant:** cleaning up is the same whether the command ended, was never started, or its wrapper was killed half-way;
//! and doing it twice is no error.

use std::{
    fs,
    io::Read as _,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::Context as _;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    cgroup::{CgroupPath, Hierarchy, scope},
    datapath::{self, Datapath, Pins},
    interface,
};

/// Waits for the wrapper to become its command, then for the cgroup to be empty, then cleans up.
pub async fn keep(path: &CgroupPath, wrapper_fd: i32, lock_fd: i32, pins: &Pins) -> anyhow::Result<()> {
    // SAFETY: `steer exec` made this descriptor for its keeper alone.
    let wrapper = unsafe { OwnedFd::from_raw_fd(wrapper_fd) };
    // SAFETY: likewise. Held until this process ends: it says that the cgroup is looked after.
    let _lock = unsafe { OwnedFd::from_raw_fd(lock_fd) };
    let hierarchy = Hierarchy::find()?;
    let cgroup_id = hierarchy.open(path)?.id;
    // The wrapper writes nothing: the end of the pipe is the message.
    fs::File::from(wrapper).read_to_end(&mut Vec::new()).context("wait for the wrapper")?;
    wait_until_empty(&hierarchy, path, pins).await?;
    clean_up(&hierarchy, pins, path, cgroup_id)
}

/// Follows the uplink for as long as any process is in the cgroup. Should netlink fail, the uplink is no longer followed,
/// which closes the cgroup when the uplink goes; the waiting goes on.
async fn wait_until_empty(hierarchy: &Hierarchy, path: &CgroupPath, pins: &Pins) -> anyhow::Result<()> {
    let events = fs::File::open(hierarchy.directory(path).join("cgroup.events")).context("open cgroup.events")?;
    // cgroup.events signals a change by POLLPRI.
    // SAFETY: the file stays open, and the same, for as long as the `AsyncFd` owns it.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) }?;
    let mut uplinks = Uplinks::new();
    while scope::is_populated(hierarchy, path)? {
        tokio::select! {
            ready = events.ready(Interest::PRIORITY) => ready?.clear_ready(),
            followed = follow(&mut uplinks, pins) => {
                if let Err(error) = followed {
                    log::error!("{error:#}");
                    uplinks = Err(error);
                }
            }
        }
    }
    Ok(())
}

/// What is needed to follow the uplinks of this network namespace.
struct Uplinks {
    links: interface::Watch,
    table: interface::Table,
    netns_cookie: u64,
}

impl Uplinks {
    fn new() -> Result<Self, anyhow::Error> {
        Ok(Self {
            links: interface::Watch::new()?,
            table: interface::Table::default(),
            netns_cookie: datapath::netns_cookie()?,
        })
    }
}

/// Waits for a change of links and carries it over. Never ends when it cannot.
async fn follow(uplinks: &mut anyhow::Result<Uplinks>, pins: &Pins) -> anyhow::Result<()> {
    let Ok(uplinks) = uplinks else { return std::future::pending().await };
    if uplinks.table.apply(uplinks.links.next().await?) {
        follow_uplinks(pins, &uplinks.table, uplinks.netns_cookie)?;
    }
    Ok(())
}

/// Brings every policy of this network namespace up to date. Nothing is steered any more after `steer off`: no error.
fn follow_uplinks(pins: &Pins, table: &interface::Table, netns_cookie: u64) -> Result<(), datapath::Error> {
    let Some(mut datapath) = Datapath::open(pins)? else { return Ok(()) };
    match datapath.lock() {
        Ok(lock) => datapath.follow_uplinks(&lock, table, netns_cookie).map(drop),
        Err(datapath::Error::SwitchedOff { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a cgroup made by `steer exec` and everything that was made for it. It must be empty: nobody can enter it
/// afterwards but by its name, and then the kernel refuses to remove it.
pub fn clean_up(hierarchy: &Hierarchy, pins: &Pins, path: &CgroupPath, cgroup_id: u64) -> anyhow::Result<()> {
    if let Some(lock) = pins.lock()? {
        if let Some(mut datapath) = Datapath::open(pins)? {
            datapath.detach(&lock, hierarchy, cgroup_id)?;
        }
        datapath::tidy(pins, lock)?;
    }
    Ok(scope::remove(hierarchy, path)?)
}
