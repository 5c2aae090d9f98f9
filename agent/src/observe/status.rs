//! Reads what is in force from the pinned maps. The result is the same with and without a daemon.

use std::{collections::BTreeMap, io, net::IpAddr};

use serde::{Deserialize, Serialize};
use steer_common::{COUNTERS, Counter, Owner, policy_flags};
use utoipa::ToSchema;

use crate::{
    apply::{
        blind_spots::BlindSpot,
        resolve::{self, Namespace},
    },
    host::{
        cgroup::{Hierarchy, scope},
        link,
        policy_files::{self, Store},
        resolver::{self, Detour},
    },
    kernel::{self, Datapath, Pins, PolicyEntry},
    model::{
        cgroup_path::CgroupPath,
        policy::Policies,
        spec::{Enforce, Exception, Existing, Near},
    },
    observe::{
        doubts,
        elsewhere::{self, Elsewhere},
        link_resolver, not_covered,
        state::{self, MemberStatus, UplinkState},
        unsteered::{self, Unsteered},
    },
};

/// Everything `steer status` shows. The field names are stable.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// What is in force and what is wrong, in one line.
    #[serde(default)]
    pub verdict: String,
    /// Whether a daemon is running on this pin directory.
    pub daemon: bool,
    /// What to do, if the daemon that runs does not answer. Only a command asks it.
    #[serde(default)]
    pub silent: Option<String>,
    /// What is wrong with the files of the configuration: a line for the verdict, then the mistakes.
    #[serde(default)]
    pub configuration: Option<String>,
    /// Policies, by name.
    pub policies: Vec<PolicyStatus>,
    /// Cgroups steered by another version of steer, whose records this one cannot read.
    pub other_versions: Vec<CgroupStatus>,
    /// Traffic that strict enforcement does not stop.
    pub not_covered: Vec<String>,
    /// Cgroups that the configuration names and nothing steers.
    #[serde(default)]
    pub unsteered: Vec<Unsteered>,
    /// Where the daemon that runs does not see new cgroups, at most 32.
    #[serde(default)]
    pub blind_spots: Vec<BlindSpot>,
    /// Settings of this host that break name resolution of steered programs, or let it bypass the uplink.
    pub warnings: Vec<String>,
}

/// One policy.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// Its slot in the map `POLICIES`.
    pub slot: u32,
    /// Its name. A manual policy has the name of its interface.
    pub name: String,
    /// Whether it comes from the configuration, or from `exec` or `attach`.
    pub origin: Origin,
    /// The uplink's name, or that of its group, which is in `uplink`, too; absent for an exemption.
    pub interface: Option<String>,
    /// The name of its group of uplinks. Absent: it has one uplink.
    #[serde(default)]
    pub uplink: Option<String>,
    /// The uplink's index; absent while it is missing, for a group, and for an exemption.
    pub ifindex: Option<i32>,
    /// The members of its group of uplinks. Empty: it has one uplink.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// Why the index is not that of the uplink: no daemon has followed it. Only a command in the policy's network namespace
    /// compares them.
    #[serde(default)]
    pub stale: Option<String>,
    /// The state of the uplink, or the best one of the chosen members; absent for an exemption, and for what is closed by intention.
    #[serde(default)]
    pub state: Option<UplinkState>,
    /// Cookie of the network namespace that the index belongs to.
    pub netns_cookie: Option<u64>,
    /// The cgroups that it is attached to, by path.
    pub cgroups: Vec<CgroupStatus>,
    /// The resolvers that all DNS queries go to, with those of all members. If empty, queries go to the server that the program asks.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// Whether these are the resolvers that systemd-resolved has for the uplink. Without one, queries are stopped.
    #[serde(default)]
    pub dns_of_link: bool,
    /// What happens to sockets that are bound elsewhere when it is attached, or when its uplink is created again.
    pub existing: Existing,
    /// How it is enforced. It has no effect for an exemption.
    pub enforce: Enforce,
    /// What of this host and its networks its sockets reach besides the uplink.
    #[serde(default)]
    pub local: Vec<Near>,
    /// Destinations that do not go by the uplink.
    #[serde(default)]
    pub except: Vec<Exception>,
    /// Counts of sockets, calls and packets, by what was done with them.
    pub counters: BTreeMap<String, u64>,
    /// Whether its traffic is counted.
    #[serde(default)]
    pub account: bool,
    /// The traffic that was counted since, by link.
    #[serde(default)]
    pub traffic: Vec<LinkTraffic>,
}

/// What the cgroups of a policy have sent and received by one link. Bytes are those of IP packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkTraffic {
    /// The index of the link.
    pub ifindex: u32,
    /// Its name. Absent: it is gone, or in another network namespace than the reader.
    pub interface: Option<String>,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
    /// Packets that came in.
    pub received_packets: u64,
}

impl LinkTraffic {
    /// The name of the link, or what stands for it.
    pub fn link(&self) -> String {
        self.interface.clone().unwrap_or_else(|| format!("index {}", self.ifindex))
    }
}

/// Where a policy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The daemon's configuration.
    Config,
    /// `steer exec` or `steer attach`.
    Manual,
}

/// One steered cgroup.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct CgroupStatus {
    /// Its path; absent once it has been removed. Its programs stay until its last socket is closed.
    pub path: Option<CgroupPath>,
    /// Its id.
    pub id: u64,
    /// Whether all programs that the policy needs are attached.
    pub complete: bool,
    /// The programs that are attached.
    pub programs: Vec<String>,
    /// Whether it was attached by `exec` or `attach`.
    pub manual: bool,
    /// Its processes that are in other network namespaces, and so are not steered.
    #[serde(default)]
    pub elsewhere: Vec<Elsewhere>,
}

impl Origin {
    /// Where a policy in force comes from.
    pub fn of(policy: &PolicyEntry) -> Self {
        if policy.is_owned_by(Owner::Config) { Self::Config } else { Self::Manual }
    }
}

impl PolicyStatus {
    /// Whether it holds only commands of `steer exec`, which have a filter of their own where they need one.
    fn is_of_exec_only(&self) -> bool {
        let mut paths = self.cgroups.iter().map(|cgroup| cgroup.path.as_ref());
        !self.cgroups.is_empty() && paths.all(|path| path.is_some_and(scope::is_scope))
    }

    /// Whether this is the index of its uplink, or of one of them.
    pub fn is_uplink(&self, ifindex: u32) -> bool {
        let members = self.members.iter().filter_map(|member| member.ifindex);
        members.chain(self.ifindex).any(|known| known.cast_unsigned() == ifindex)
    }

    /// The uplinks as names and indexes.
    pub fn uplinks(&self) -> Vec<(&str, Option<i32>)> {
        if self.members.is_empty() {
            return self.interface.iter().map(|name| (name.as_str(), self.ifindex)).collect();
        }
        self.members.iter().map(|member| (member.interface.as_str(), member.ifindex)).collect()
    }

    fn group(&self) -> String {
        let chosen = self.members.iter().filter(|member| member.chosen);
        let chosen: Vec<_> = chosen
            .map(|member| {
                let index = member.ifindex.map_or_else(|| "missing".to_owned(), |index| index.to_string());
                format!("{} ({index})", member.interface)
            })
            .collect();
        let name = self.interface.as_deref().unwrap_or_default();
        if chosen.is_empty() { format!("{name} (missing)") } else { format!("{name}: {}", chosen.join(", ")) }
    }

    /// The uplink as text for people.
    pub fn uplink(&self) -> String {
        if !self.members.is_empty() {
            return self.group();
        }
        match (&self.interface, self.ifindex) {
            (None, _) => "none (exempt)".to_owned(),
            (Some(interface), Some(ifindex)) => format!("{interface} ({ifindex})"),
            // No link has an empty name, so this policy stays closed.
            (Some(interface), None) if interface.is_empty() => "none (closed)".to_owned(),
            (Some(interface), None) => format!("{interface} (missing)"),
        }
    }
}

/// Reads the status. It is empty if nothing is pinned. Only the daemon knows its blind spots.
pub fn read(pins: &Pins, hierarchy: &Hierarchy) -> Result<Status, kernel::Error> {
    let other_versions = kernel::steered_by_other_versions(pins)?
        .into_iter()
        .map(|id| CgroupStatus {
            path: hierarchy.path_of(id),
            id,
            complete: true,
            manual: false,
            programs: Vec::new(),
            elsewhere: Vec::new(),
        })
        .collect();
    let daemon = pins.daemon_runs()?;
    let Some(datapath) = Datapath::open(pins)? else {
        return Ok(Status { daemon, other_versions, ..Status::default() });
    };
    let mut cgroups: BTreeMap<u32, Vec<CgroupStatus>> = BTreeMap::new();
    for attachment in datapath.attachments()? {
        cgroups.entry(attachment.record.policy).or_default().push(CgroupStatus {
            path: hierarchy.path_of(attachment.cgroup_id),
            id: attachment.cgroup_id,
            complete: attachment.complete,
            manual: attachment.is_manual(),
            programs: attachment.hooks.into_iter().map(str::to_owned).collect(),
            elsewhere: Vec::new(),
        });
    }
    let mut policies = datapath
        .policies()?
        .into_iter()
        .map(|entry| {
            let cgroups = cgroups.remove(&entry.slot).unwrap_or_default();
            policy_status(&datapath, &entry, cgroups)
        })
        .collect::<Result<Vec<_>, _>>()?;
    add_traffic(&datapath, &mut policies)?;
    policies.sort_by(|a, b| (&a.name, a.netns_cookie).cmp(&(&b.name, b.netns_cookie)));
    let strict = || policies.iter().filter(|policy| policy.enforce == Enforce::Strict);
    let mut uncovered = Vec::new();
    if strict().any(|policy| !policy.is_of_exec_only()) {
        uncovered.extend(not_covered::traffic(pins));
    }
    if strict().next().is_some() {
        uncovered.extend(not_covered::reports(pins));
    }
    let mut warnings = warnings(&policies, &resolver::detours());
    warnings.extend(policies.iter().filter_map(link_resolver::warning));
    warnings.extend(policies.iter().filter_map(moved_out));
    Ok(Status { daemon, policies, other_versions, not_covered: uncovered, warnings, ..Status::default() })
}

impl Status {
    /// Whether a policy of the configuration is in force.
    fn is_configured(&self) -> bool {
        let has_uplink = |policy: &PolicyStatus| policy.interface.as_ref().is_none_or(|name| !name.is_empty());
        self.policies.iter().any(|policy| policy.origin == Origin::Config && has_uplink(policy))
    }

    /// Compares the policies of a network namespace with its links.
    #[must_use]
    pub fn compared(mut self, Namespace { links, cookie, .. }: Namespace<'_>) -> Self {
        for policy in self.policies.iter_mut().filter(|policy| policy.netns_cookie == Some(cookie)) {
            let mut uplinks = policy.uplinks().into_iter();
            let stale = uplinks.find_map(|(interface, ifindex)| resolve::stale(interface, ifindex, links));
            policy.stale = stale.map(|stale| format!("{}: {}", stale.what, stale.why));
        }
        self
    }
}

/// Adds the state of the uplinks, and the verdict about all. Needs a tokio runtime.
pub async fn judge(status: &mut Status, netns_cookie: u64) {
    if let Err(error) = state::add(status, netns_cookie).await {
        status.warnings.push(format!("the state of uplinks is unknown: {error}"));
    }
    status.verdict = status.verdict_line();
}

/// Adds what is not steered: processes in other network namespaces, and cgroups that the configuration names. For that, it reads
/// the host's processes and cgroups, and the files.
pub fn add_unsteered(
    status: &mut Status,
    pins: Option<&Pins>,
    hierarchy: &Hierarchy,
    store: &Store,
) -> Result<(), kernel::Error> {
    let datapath = pins.map_or(Ok(None), Datapath::open)?;
    if let Some(datapath) = &datapath {
        let entries: BTreeMap<_, _> = datapath.policies()?.into_iter().map(|entry| (entry.slot, entry)).collect();
        let attached =
            status.policies.iter().flat_map(|policy| policy.cgroups.iter().map(|cgroup| (policy.slot, cgroup)));
        let attached = attached.filter_map(|(slot, cgroup)| Some((cgroup.path.clone()?, entries.get(&slot)?.clone())));
        let finder = elsewhere::Finder::new(hierarchy, attached)?;
        for cgroup in status.policies.iter_mut().flat_map(|policy| &mut policy.cgroups) {
            cgroup.elsewhere = cgroup.path.as_ref().map(|path| finder.in_cgroup(path)).unwrap_or_default();
        }
    }
    let attached: BTreeMap<CgroupPath, bool> = status
        .policies
        .iter()
        .flat_map(|policy| &policy.cgroups)
        .chain(&status.other_versions)
        .filter_map(|cgroup| Some((cgroup.path.clone()?, cgroup.manual)))
        .collect();
    match unsteered::released(store, hierarchy, |path| attached.contains_key(path)) {
        Ok(released) => status.unsteered = released,
        Err(error) => status.warnings.push(format!(
            "what `steer off` has released may be unsteered: read {}: {error}",
            store.released().display()
        )),
    }
    let config = match store.read() {
        Err(error) => {
            status.configuration = wrong(&error, store, status.is_configured(), status.daemon);
            return Ok(());
        }
        Ok(config) => config,
    };
    if config.policies.is_empty() && status.is_configured() {
        let file = store.file().display();
        status.configuration = Some(format!("{file} has no policy, and the previous policies stay in force"));
    }
    let policies = Policies::new(config);
    let candidates = unsteered::candidates(&policies, hierarchy);
    let named: Vec<_> = policies.configured().iter().map(|policy| (policy.name.as_str(), &*policy.cgroups)).collect();
    let shadowed = doubts::shadowed(&named, &candidates);
    status.warnings.extend(shadowed.iter().map(ToString::to_string));
    status.unsteered.extend(unsteered::among(&policies, candidates.iter(), |path| attached.get(path).copied()));
    Ok(())
}

/// What is wrong with files that cannot be read. A missing file is wrong only if a daemon runs, whose file it is.
fn wrong(error: &policy_files::Error, store: &Store, is_configured: bool, daemon: bool) -> Option<String> {
    let stays = if is_configured { ", and the previous policies stay in force" } else { "" };
    match error {
        policy_files::Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (is_configured && daemon).then(|| format!("{} does not exist{stays}", store.file().display()))
        }
        policy_files::Error::Invalid(problems) => Some(format!("the configuration has mistakes{stays}\n{problems}")),
        error => Some(format!("the configuration cannot be read{stays}\n{error}")),
    }
}

/// The processes that have left the policy's cgroups.
fn moved_out(policy: &PolicyStatus) -> Option<String> {
    let name = &policy.name;
    let count = policy.counters.get(Counter::MovedOut.name()).filter(|count| **count > 0)?;
    Some(format!(
        "{name}: processes that were moved out of its cgroups, and are not steered since: {count} (only sockets that they had before are held)"
    ))
}

/// Each detour of name resolution, with the policies that it concerns.
fn warnings(policies: &[PolicyStatus], detours: &[Detour]) -> Vec<String> {
    let mut warnings: BTreeMap<(usize, String), Vec<&str>> = BTreeMap::new();
    for policy in policies.iter().filter(|policy| policy.interface.is_some()) {
        for (position, detour) in detours.iter().enumerate() {
            let asks_any = policy.dns.is_empty() && !policy.dns_of_link
                || policy.members.iter().any(|member| member.dns.is_empty());
            if asks_any || !detour.ends_with_dns() {
                let reaches_host = policy.local.contains(&Near::Host);
                let text = if reaches_host { detour.from_this_host() } else { detour.to_string() };
                warnings.entry((position, text)).or_default().push(&policy.name);
            }
        }
    }
    warnings.into_iter().map(|((_, text), names)| format!("{}: {text}", names.join(", "))).collect()
}

fn policy_status(
    datapath: &Datapath,
    entry: &PolicyEntry,
    mut cgroups: Vec<CgroupStatus>,
) -> Result<PolicyStatus, kernel::Error> {
    cgroups.sort();
    let counts = datapath.counters(entry.slot)?;
    let steers = !entry.exempts();
    let reach = resolve::target(&entry.record, &entry.exceptions).reach;
    Ok(PolicyStatus {
        slot: entry.slot,
        name: entry.name(),
        origin: Origin::of(entry),
        interface: steers.then(|| entry.interface()),
        uplink: entry.group.as_ref().map(|group| kernel::text(&group.name)),
        ifindex: (steers && entry.record.ifindex > 0).then_some(entry.record.ifindex),
        members: state::members(entry),
        stale: None,
        state: None,
        netns_cookie: steers.then_some(entry.record.netns_cookie),
        cgroups,
        dns: entry.resolvers(),
        dns_of_link: entry.record.flags & policy_flags::DNS_LINK != 0,
        existing: resolve::existing(entry.record.flags),
        enforce: resolve::enforce(entry.record.flags),
        local: reach.local.words().collect(),
        except: reach.except.iter().cloned().collect(),
        counters: COUNTERS.iter().map(|counter| counter.name().to_owned()).zip(counts).collect(),
        account: entry.record.flags & policy_flags::ACCOUNT != 0,
        traffic: Vec::new(),
    })
}

/// The traffic of each policy that counts it.
fn add_traffic(datapath: &Datapath, policies: &mut [PolicyStatus]) -> Result<(), kernel::Error> {
    if policies.iter().all(|policy| !policy.account) {
        return Ok(());
    }
    let (mut accounts, own) = (datapath.accounts()?, kernel::netns_cookie()?);
    for policy in policies.iter_mut().filter(|policy| policy.account) {
        let is_here = policy.netns_cookie == Some(own);
        let links = accounts.remove(&policy.slot).unwrap_or_default().into_iter();
        let traffic = links.map(|(ifindex, record)| LinkTraffic {
            ifindex,
            interface: i32::try_from(ifindex).ok().filter(|_| is_here).and_then(link::name_of),
            sent_bytes: record.sent_bytes,
            sent_packets: record.sent_packets,
            received_bytes: record.received_bytes,
            received_packets: record.received_packets,
        });
        policy.traffic = traffic.collect();
    }
    Ok(())
}
