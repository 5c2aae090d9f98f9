//! Reads the state of the host for the other files of this module.

use std::{io, net::IpAddr};

use anyhow::{anyhow, bail};
use steer_common::{Line, Verdict, decide, program};

use super::{
    Options, Target,
    chain::{Attached, Deciding, Level},
    document::{Configuration, Netns, Process, Sockets},
    packet::{Answer, Look, Socket},
};
use crate::{
    host::{
        cgroup::Hierarchy,
        link::{
            self, Table,
            network::{self, FAR_IPV4, FAR_IPV6, Link, Network},
        },
        resolver::{self, Detour},
        route,
        sockets::{self, holder},
    },
    kernel::{
        self, Datapath, Passes, Pins, PolicyEntry, inspect,
        others::{self, OnHook},
    },
    model::{cgroup_path::CgroupPath, policy::Policies},
    observe::{
        elsewhere::{Elsewhere, Finder},
        loose, not_covered,
    },
};

/// The state that does not depend on the attachment that decides.
pub(super) struct Facts {
    pub(super) process: Option<Process>,
    pub(super) cgroup: CgroupPath,
    pub(super) netns: Netns,
    /// Whether the process has another mount namespace, where files may differ.
    pub(super) sees_other_files: bool,
    pub(super) daemon: bool,
    pub(super) configuration: Configuration,
    pub(super) policies: Policies,
    /// The cgroups from the root to the target.
    pub(super) levels: Vec<Level>,
    pub(super) table: Table,
    /// Traffic that strict policies do not stop on this kernel.
    pub(super) unguarded: Option<String>,
    pub(super) detours: Vec<Detour>,
    /// The processes that the policy leaves alone.
    pub(super) elsewhere: Vec<Elsewhere>,
}

/// The state that depends on it.
#[derive(Default)]
pub(super) struct Surroundings {
    /// The link that sockets are bound to.
    pub(super) link: Option<Link>,
    pub(super) routes: Vec<Routes>,
    /// What was read about the packet that the user asks about.
    pub(super) packet: Option<Look>,
    pub(super) sockets: Option<Sockets>,
}

/// The routes to an address.
pub(super) struct Routes {
    pub(super) destination: IpAddr,
    /// The route of a steered socket; `None` without one.
    pub(super) steered: Option<Vec<network::Hop>>,
    pub(super) unsteered: Vec<network::Hop>,
}

pub(super) async fn read(options: &Options, hierarchy: &Hierarchy, target: &Target) -> anyhow::Result<Facts> {
    let pins = Pins::find(&options.pin_directory)?;
    let (configuration, policies) = configuration(options);
    if let Some(pins) = &pins
        && inspect::leftovers(pins)?.partial
    {
        bail!(
            "the pins below {} are incomplete and cannot be read: steer is creating them now, or their removal was \
             interrupted; try again, and if this error persists, remove the rest with `steer off`",
            options.pin_directory.display()
        );
    }
    Ok(Facts {
        process: target.process.clone(),
        cgroup: target.cgroup.clone(),
        netns: Netns { inode: target.netns_inode, cookie: kernel::netns_cookie()?, own: target.netns_is_own },
        sees_other_files: target.sees_other_files,
        daemon: pins.as_ref().map_or(Ok(false), Pins::daemon_runs)?,
        configuration,
        policies,
        levels: levels(pins.as_ref(), hierarchy, &target.cgroup)?,
        table: link::read().await?,
        unguarded: pins.as_ref().and_then(not_covered::traffic),
        detours: resolver::detours(),
        elsewhere: elsewhere(pins.as_ref(), hierarchy, target)?,
    })
}

fn elsewhere(pins: Option<&Pins>, hierarchy: &Hierarchy, target: &Target) -> Result<Vec<Elsewhere>, kernel::Error> {
    let Some(datapath) = pins.map_or(Ok(None), Datapath::open)? else { return Ok(Vec::new()) };
    let finder = Finder::read(&datapath, hierarchy)?;
    Ok(match &target.process {
        Some(process) => finder.process(process.pid).into_iter().collect(),
        None => finder.in_cgroup(&target.cgroup),
    })
}

fn configuration(options: &Options) -> (Configuration, Policies) {
    let file = options.store.file().display().to_string();
    let without = |problem: String| {
        (Configuration { file: file.clone(), policies: 0, problem: Some(problem) }, Policies::default())
    };
    if !options.config_is_named && !options.store.file().exists() {
        return without("the file does not exist".to_owned());
    }
    match options.store.read() {
        Ok(config) => {
            let policies = Policies::new(config);
            (Configuration { file, policies: policies.configured().len(), problem: None }, policies)
        }
        Err(error) => without(error.to_string()),
    }
}

fn levels(pins: Option<&Pins>, hierarchy: &Hierarchy, target: &CgroupPath) -> anyhow::Result<Vec<Level>> {
    let datapath = pins.map_or(Ok(None), Datapath::open)?;
    let other_versions = pins.map_or(Ok(Vec::new()), kernel::steered_by_other_versions)?;
    let mut levels = Vec::new();
    for path in target.self_and_ancestors().into_iter().rev() {
        let cgroup = hierarchy.open(&path)?;
        let attached = datapath.as_ref().map_or(Ok(None), |datapath| attached(datapath, cgroup.id))?;
        let mut hooks = others::programs_on(pins, &cgroup).into_iter();
        levels.push(Level {
            attached,
            other_version: other_versions.contains(&cgroup.id),
            sock_create: hooks.find(|on: &OnHook| on.hook == program::SOCK_CREATE),
            path,
        });
    }
    Ok(levels)
}

fn attached(datapath: &Datapath, cgroup_id: u64) -> Result<Option<Attached>, kernel::Error> {
    let Some(attachment) = datapath.attachment(cgroup_id)? else { return Ok(None) };
    let policy = datapath.policies()?.into_iter().find(|policy| policy.slot == attachment.record.policy);
    let flags = policy.as_ref().map_or(0, |policy| policy.record.flags);
    let difference = inspect::difference(&attachment, flags, Some(datapath.pins()));
    Ok(Some(Attached { attachment, policy, difference }))
}

pub(super) async fn read_network(
    options: &Options,
    facts: &Facts,
    deciding: Deciding<'_>,
) -> anyhow::Result<Surroundings> {
    let policy = match deciding {
        Deciding::Attachment(_, attached) => attached.policy.as_ref(),
        Deciding::OtherVersion(_) | Deciding::Nobody => None,
    };
    let decided = match deciding {
        Deciding::Attachment(_, attached) => attached.line(),
        Deciding::OtherVersion(_) | Deciding::Nobody => Line::CLOSED,
    };
    let verdict = policy.map(|policy| decide(Some(&policy.record), decided, facts.netns.cookie));
    let network = Network::new()?;
    let link = match (verdict, Some(decided.ifindex)) {
        (Some(Verdict::Bind(_) | Verdict::Mark(_)), Some(ifindex)) if ifindex > 0 => {
            Network::link(ifindex.unsigned_abs())?
        }
        _ => None,
    };
    let socket = Socket::of(policy, decided, facts.netns.cookie, link.is_some());
    let is_held = matches!(socket, Socket::Bound(_) | Socket::Marked(_));
    let (mut routes, mut packet) = (Vec::new(), None);
    for destination in options.to.map_or_else(|| vec![FAR_IPV4, FAR_IPV6], |to| vec![to]) {
        let answer = Answer::ask(&network, socket, destination).await?;
        let free = Answer::ask(&network, Socket::Free, destination).await?;
        routes.push(Routes {
            destination,
            steered: is_held.then(|| answer.hops().to_vec()),
            unsteered: free.hops().to_vec(),
        });
        if options.to.is_some() {
            let rules = route::State::read().map_err(|error| anyhow!("read rules and routes: {error}"))?;
            let (passes, is_own) = known_to_programs(options, policy, destination)?;
            packet = Some(Look { destination, socket, answer, free, rules, passes, is_own });
        }
    }
    let sockets = match (&facts.process, policy, verdict) {
        (Some(process), Some(policy), Some(Verdict::Bind(_) | Verdict::Mark(_) | Verdict::Close(_))) => {
            let held = held(process.pid, policy, &facts.table);
            Some(held.unwrap_or_else(|error| Sockets { problem: Some(error.to_string()), ..Sockets::default() }))
        }
        _ => None,
    };
    Ok(Surroundings { link, routes, packet, sockets })
}

/// What passes on other links for a policy, and whether the destination is an address of this host.
fn known_to_programs(
    options: &Options,
    policy: Option<&PolicyEntry>,
    destination: IpAddr,
) -> Result<(Passes, bool), kernel::Error> {
    let pins = Pins::find(&options.pin_directory)?;
    let datapath = pins.as_ref().map_or(Ok(None), Datapath::open)?;
    let (Some(datapath), Some(policy)) = (datapath, policy) else {
        return Ok((Passes::new(), false));
    };
    let passes = datapath.passes()?.remove(&policy.slot).unwrap_or_default();
    Ok((passes, datapath.is_own(policy.record.netns_cookie, destination)?))
}

/// The sockets that a process has open.
fn held(pid: u32, policy: &PolicyEntry, table: &Table) -> io::Result<Sockets> {
    let (all, host) = (sockets::by_inode()?, sockets::read_host()?);
    let uplink = loose::Uplink { policy, table, host: &host };
    let held = holder::sockets_of(pid.cast_signed())?;
    let inodes: std::collections::BTreeSet<_> = held.into_iter().map(|(_, inode)| inode).collect();
    let open: Vec<_> = inodes.iter().filter_map(|inode| all.get(inode)).collect();
    let elsewhere = open.iter().filter(|socket| uplink.is_loose(socket)).map(|socket| uplink.describe(socket));
    Ok(Sockets { open: open.len(), elsewhere: elsewhere.collect(), problem: None })
}
