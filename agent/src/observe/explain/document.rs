//! The JSON of `steer explain --json`. The field names are stable.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    members::Members,
    packet::{Method, Packet},
};
use crate::{
    model::{
        cgroup_path::CgroupPath,
        spec::{Enforce, Exception, Near},
    },
    observe::{elsewhere::Elsewhere, status::Origin},
};

/// The whole explanation.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The process or cgroup to explain.
    pub target: Subject,
    /// Whether a daemon runs.
    pub daemon: bool,
    /// The configuration that was read, for the reasons only.
    pub configuration: Configuration,
    /// The cgroups from the root to the target.
    pub chain: Vec<Cgroup>,
    /// Sentences: why this attachment decides, or why none does.
    pub reasons: Vec<String>,
    /// The attachment that decides about new sockets. Absent if there is none, or if it is from another version of steer.
    pub decision: Option<Decision>,
    /// Its uplink. Absent for an exemption, and if its index is not valid in the target's network namespace.
    pub uplink: Option<Uplink>,
    /// The members of its group of uplinks. Absent if it has one uplink.
    pub members: Option<Members>,
    /// Where packets would go, by family.
    pub routes: Vec<Route>,
    /// What happens to a packet to the address of `--to`. Absent without one.
    pub packet: Option<Packet>,
    /// The name resolution. Absent if the target is not steered.
    pub resolver: Option<Resolver>,
    /// Existing sockets of the process. Absent for a cgroup, and if it is not steered.
    pub sockets: Option<Sockets>,
    /// Processes of the target in other network namespaces than that of the policy, which it does not steer.
    pub elsewhere: Vec<Elsewhere>,
    /// What happens to new sockets.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub conclusion: String,
}

/// The process or cgroup to explain.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Absent for a cgroup.
    pub process: Option<Process>,
    /// The cgroup that was named, or the cgroup of the process.
    pub cgroup: CgroupPath,
    /// The network namespace of routes and indexes: that of the process, or for a cgroup that of the command.
    pub netns: Netns,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub comm: String,
    /// Its effective user.
    pub uid: u32,
}

/// A network namespace.
#[derive(Clone, Debug, Serialize)]
pub struct Netns {
    /// Its inode, as shown by `ls -l /proc/PID/ns/net`.
    pub inode: u64,
    /// Its cookie, as in a policy (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// Whether it is the namespace of the command.
    pub own: bool,
}

/// The configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    /// Its file.
    pub file: String,
    /// How many policies it has.
    pub policies: usize,
    /// Why it could not be read; absent if it was.
    pub problem: Option<String>,
}

/// A cgroup of the chain.
#[derive(Debug, Serialize)]
pub struct Cgroup {
    /// Its path.
    pub path: CgroupPath,
    /// Its attachment.
    pub attached: Option<Attached>,
    /// Whether it has an attachment of another version of steer, which this version cannot read.
    pub other_version: bool,
    /// The patterns of the configuration that match it.
    pub matches: Vec<Match>,
    /// The `sock_create` programs of other owners on it.
    pub foreign: Vec<Foreign>,
}

/// An attachment.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    /// The policy's name. A manual policy has the name of its interface. Absent: its record names no policy.
    pub policy: Option<String>,
    /// Where the policy comes from.
    pub origin: Option<Origin>,
    /// The uplink's name; absent for an exemption.
    pub interface: Option<String>,
    /// How the policy is enforced.
    pub enforce: Option<Enforce>,
    /// Whether `exec`, `attach` or a unit's drop-in attached it.
    pub manual: bool,
    /// Whether it has exactly the programs that the policy needs.
    pub complete: bool,
    /// The programs that are attached.
    pub programs: Vec<String>,
    /// Needed programs that are not attached.
    pub missing: Vec<String>,
    /// Attached programs that the policy does not need.
    pub superfluous: Vec<String>,
}

/// A pattern that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The policy's name.
    pub policy: String,
    /// The pattern as written.
    pub pattern: String,
    /// The key of the policy that has it.
    pub key: &'static str,
    /// A path takes precedence over a glob.
    pub kind: Kind,
    /// The file that contains it.
    pub file: String,
    /// Whether it selects the policy for this cgroup.
    pub wins: bool,
}

/// The kind of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It names one cgroup.
    Path,
    /// It may match several.
    Glob,
}

/// A program of another owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Its id.
    pub id: u32,
    /// The name that its loader gave it.
    pub name: String,
    /// The user that loaded it.
    pub uid: u32,
    /// Whether it prevents an attachment of steer here. It may also prevent one below.
    pub exclusive: bool,
    /// Whether it runs after the program that decides, and may bind the socket to another interface.
    pub last_word: bool,
}

/// The attachment that decides.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The cgroup that it is on.
    pub cgroup: CgroupPath,
    /// The attachment.
    #[serde(flatten)]
    pub attached: Attached,
    /// How it holds sockets to the uplink. Absent for an exemption.
    pub method: Option<Method>,
    /// Their mark. Absent if it binds them.
    pub mark: Option<u32>,
    /// What of this host and its networks they reach besides the uplink.
    pub local: Vec<Near>,
    /// Destinations that do not go by the uplink.
    pub except: Vec<Exception>,
    /// Traffic that it does not stop.
    pub not_covered: Vec<String>,
}

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// Its name, as in the policy.
    pub interface: String,
    /// The index in the policy. Absent while the policy records it as missing.
    pub ifindex: Option<i32>,
    /// The index that the name has now.
    pub present_ifindex: Option<i32>,
    /// The name of the link with the policy's index.
    pub link: Option<String>,
    /// The state of that link.
    pub state: LinkState,
}

/// The state of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Up, with a carrier.
    Up,
    /// Up, without a carrier.
    NoCarrier,
    /// Down.
    Down,
    /// It does not exist.
    Missing,
}

/// Where packets to an address go, by the routes of the network namespace.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    /// The address.
    pub destination: IpAddr,
    /// The hops of the route of a steered socket. Empty without a route, absent if nothing is steered to an uplink.
    pub steered: Option<Vec<Hop>>,
    /// The hops of the route of a socket that is not steered.
    pub unsteered: Vec<Hop>,
}

/// One next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The link.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// The gateway. Absent: packets go directly to their destination.
    pub gateway: Option<IpAddr>,
}

/// The name resolution of a steered program.
#[derive(Clone, Debug, Serialize)]
pub struct Resolver {
    /// The resolvers of the policy, which get all DNS queries. If empty, queries go to the server that the program asks.
    pub dns: Vec<IpAddr>,
    /// Whether there is none because the link of the uplink has none: DNS queries are stopped.
    pub stopped: bool,
    /// Settings of this host that break name resolution, or let it bypass the uplink.
    pub warnings: Vec<String>,
}

/// Sockets that a process has.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sockets {
    /// How many TCP and UDP sockets it has open.
    pub open: usize,
    /// Those that are not bound to the uplink, or without the policy's mark; each with what it has instead.
    pub elsewhere: Vec<String>,
    /// Why the sockets could not be read. Absent if they were.
    pub problem: Option<String>,
}

/// What happens to new sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// They are bound to the uplink.
    Bound,
    /// They are marked for the policy's routes, which lead to the uplink.
    Routed,
    /// They are bound to an index that no interface has: nothing leaves.
    Closed,
    /// `socket` fails.
    Refused,
    /// A policy exempts them.
    Exempt,
    /// They are not steered, because they are in another network namespace than the policy.
    OtherNetns,
    /// No policy applies to them.
    Unsteered,
    /// Another version of steer steers them, whose records this version cannot read.
    OtherVersion,
}
