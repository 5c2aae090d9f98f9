//! `steer attach --only`: steer one process and its children, in a cgroup of their own, as `steer exec` steers a command.
//!
//! **Invariant:** the policy is attached before a process is moved. If that fails, nobody has been moved.

use std::fs;

use anyhow::{Context as _, ensure};

use super::{
    attach::in_words,
    output::{note, say},
    target::{By, groups, links_for, marks},
};
use crate::{
    apply::{resolve::Namespace, takeover},
    host::{
        cgroup::{
            Hierarchy,
            scope::{self, Scope},
        },
        process,
    },
    kernel::{self, Datapath, Pins},
    model::{cgroup_path::CgroupPath, quote::shown},
    run::{
        command,
        instance::{CONFIG, PinDirectory},
    },
};

/// How often children are looked for that appear meanwhile. Those of a moved process are in its cgroup.
const PASSES: usize = 100;

pub(super) fn run(
    hierarchy: &Hierarchy,
    old: &CgroupPath,
    pid: u32,
    by: &By,
    pins: &PinDirectory,
) -> anyhow::Result<()> {
    let netns = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).context("read its network namespace");
    ensure!(
        netns(&pid.to_string())? == netns("self")?,
        "process {pid} is in another network namespace; run this command in it: nsenter -t {pid} -n steer attach ..."
    );
    ensure!(!scope::is_scope(old), "process {pid} is in {old}, a cgroup of its own already");
    let links = links_for(by)?;
    let cookie = kernel::netns_cookie()?;
    let groups = groups(CONFIG.as_ref())?;
    let pins = pins.to_change()?;
    let namespace = Namespace::own(&links, cookie, marks(&pins, cookie, CONFIG.as_ref())?, &groups);
    let wanted = by.clone().with_defaults(CONFIG.as_ref())?.wanted(namespace)?;
    let place = scope::place(hierarchy, old)?;
    let scope = Scope::create(hierarchy, &place)?;
    // The keeper begins when this descriptor closes, at the end.
    let _keeper = command::start_keeper(&scope, &pins, None)?;
    let is_unseen = command::attach(hierarchy, &pins, &scope, &wanted, namespace)?;
    let moved = take(hierarchy, &scope, old, pid)?;
    ensure!(!moved.is_empty(), "process {pid} has ended");
    let children = match moved.len() - 1 {
        0 => String::new(),
        1 => " and 1 child".to_owned(),
        many => format!(" and {many} children"),
    };
    say!("moved process {pid} ({}){children} to {}", shown(&process::name(pid)), scope.cgroup.path)?;
    let (cgroup, policy) = (&scope.cgroup.path, in_words(&wanted));
    say!(
        "attached {cgroup} to {policy}; the cgroup is removed when its last process ends; `steer detach {cgroup}` ends it before"
    )?;
    settle(hierarchy, &pins, &scope, old, cookie, &moved)?;
    if is_unseen {
        note(
            "a running process cannot be kept from making sockets past the IP stack (AF_PACKET and others) on this host",
        );
    }
    Ok(())
}

/// Moves a process and those of its descendants that are in the same cgroup.
fn take(hierarchy: &Hierarchy, scope: &Scope, old: &CgroupPath, pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut moved = Vec::new();
    for _ in 0..PASSES {
        let before = moved.len();
        for process in process::tree(pid) {
            let is_there = hierarchy.of_process(process).is_ok_and(|path| path == *old);
            if is_there && scope.take(hierarchy, process)? {
                moved.push(process);
            }
        }
        if moved.len() == before {
            break;
        }
    }
    Ok(moved)
}

/// Treats the sockets that the processes have made before, as `existing` says.
fn settle(
    hierarchy: &Hierarchy,
    pins: &Pins,
    scope: &Scope,
    old: &CgroupPath,
    cookie: u64,
    moved: &[u32],
) -> anyhow::Result<()> {
    let lock = pins.create_and_lock()?;
    let Some(datapath) = Datapath::open(pins)? else { return Ok(()) };
    let (older, taken) = takeover::take_over_moved(&lock, &datapath, hierarchy, cookie, scope.cgroup.id, moved)?;
    match (older, taken) {
        (0, _) => {}
        (_, Some(taken)) => say!("{taken}")?,
        (older, None) => note(&format!(
            "{older} sockets that they made before belong to {old}, and this policy does not hold them; `--existing destroy` ends them, or restart the program"
        )),
    }
    Ok(())
}
