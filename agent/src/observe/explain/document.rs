//! What `steer explain --json` prints. The field names are stable.

use std::net::IpAddr;

use serde::Serialize;

use crate::{
    model::{cgroup_path::CgroupPath, spec::Enforce},
    observe::status::Origin,
};

/// All of it.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// What was asked about.
    pub target: Subject,
    /// Whether a daemon runs.
    pub daemon: bool,
    /// The configuration that was read, for the reasons only.
    pub configuration: Configuration,
    /// The cgroups from the root to the target.
    pub chain: Vec<Cgroup>,
    /// Why this attachment decides, or none: sentences.
    pub reasons: Vec<String>,
    /// The attachment that decides about new sockets; absent if none does, or one of another version of steer.
    pub decision: Option<Decision>,
    /// Its uplink; absent for an exemption, and where its index means nothing to the target.
    pub uplink: Option<Uplink>,
    /// Where packets would go, by family.
    pub routes: Vec<Route>,
    /// Who is asked for names; absent if the target is not steered.
    pub resolver: Option<Resolver>,
    /// Sockets that the process has already; absent for a cgroup, and if it is not steered.
    pub sockets: Option<Sockets>,
    /// What becomes of new sockets.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub conclusion: String,
}

/// What was asked about.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Absent for a cgroup.
    pub process: Option<Process>,
    /// The cgroup that was named, or the process's.
    pub cgroup: CgroupPath,
    /// The network namespace that routes and indexes are told of: the process's, or for a cgroup that of the command.
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
    /// Its inode, as `ls -l /proc/PID/ns/net` shows.
    pub inode: u64,
    /// Its cookie, as in a policy (`SO_NETNS_COOKIE`).
    pub cookie: u64,
    /// Whether it is that of the command.
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
    /// What is attached to it.
    pub attached: Option<Attached>,
    /// Whether another version of steer has something attached, which this one cannot read.
    pub other_version: bool,
    /// The patterns of the configuration that match it.
    pub matches: Vec<Match>,
    /// The sock_create programs of others on it.
    pub foreign: Vec<Foreign>,
}

/// An attachment.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    /// The policy's name; for one made by hand, its interface. Absent: its record names none.
    pub policy: Option<String>,
    /// Where the policy comes from.
    pub origin: Option<Origin>,
    /// The uplink's name; absent for an exemption.
    pub interface: Option<String>,
    /// How the policy is enforced.
    pub enforce: Option<Enforce>,
    /// Whether `exec`, `attach` or a unit's drop-in attached it.
    pub manual: bool,
    /// Whether it has the programs that the policy asks for, no more and no fewer.
    pub complete: bool,
    /// The programs that are attached.
    pub programs: Vec<String>,
    /// Those that the policy asks for, and that are not.
    pub missing: Vec<String>,
    /// Those that are, and that the policy does not ask for.
    pub superfluous: Vec<String>,
}

/// A pattern that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The policy's name.
    pub policy: String,
    /// As written.
    pub pattern: String,
    /// A path goes before a glob.
    pub kind: Kind,
    /// The file that it is in.
    pub file: String,
    /// Whether its policy is the one that the configuration has for this cgroup.
    pub wins: bool,
}

/// What a pattern is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It names one cgroup.
    Path,
    /// It may match several.
    Glob,
}

/// A program of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Its id.
    pub id: u32,
    /// The name that its loader gave it.
    pub name: String,
    /// The user that loaded it.
    pub uid: u32,
    /// Whether it keeps steer's from being attached here, and where it admits nothing below it, there.
    pub exclusive: bool,
    /// Whether it runs after the program that decides, and may bind the socket to something else.
    pub last_word: bool,
}

/// The attachment that decides.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The cgroup that it is on.
    pub cgroup: CgroupPath,
    /// What it is.
    #[serde(flatten)]
    pub attached: Attached,
    /// What gets past its guards.
    pub not_covered: Vec<String>,
}

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uplink {
    /// Its name, as in the policy.
    pub interface: String,
    /// The index that the policy has for it; absent while it has it as missing.
    pub ifindex: Option<i32>,
    /// The index that the name has now.
    pub present_ifindex: Option<i32>,
    /// The name of the link with the policy's index.
    pub link: Option<String>,
    /// How that link is.
    pub state: LinkState,
}

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Up, and somebody is at the other end.
    Up,
    /// Up, and nobody is.
    NoCarrier,
    /// Down.
    Down,
    /// Not there.
    Missing,
}

/// Where packets to an address go, by the routes of the network namespace.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    /// The address.
    pub destination: IpAddr,
    /// The route of a socket that is bound to the uplink, by its ways: empty if there is none, absent without an uplink.
    pub steered: Option<Vec<Hop>>,
    /// The route of a socket that is not bound.
    pub unsteered: Vec<Hop>,
}

/// One of the ways that a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The link.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Whom packets are handed to; absent: to their destination.
    pub gateway: Option<IpAddr>,
}

/// Who is asked for names.
#[derive(Clone, Debug, Serialize)]
pub struct Resolver {
    /// Whom the policy asks, whomever a program asks; none: whom the program likes.
    pub dns: Vec<IpAddr>,
    /// What keeps programs from names, or lets them be asked beside the uplink.
    pub warnings: Vec<String>,
}

/// Sockets that a process has.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sockets {
    /// How many TCP and UDP sockets it has open.
    pub open: usize,
    /// Those that are not bound to the uplink, each with what it is bound to.
    pub elsewhere: Vec<String>,
    /// Why they could not be looked at; absent if they were.
    pub problem: Option<String>,
}

/// What becomes of new sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// They are bound to the uplink.
    Bound,
    /// They are bound to what no interface is: nothing leaves.
    Closed,
    /// `socket` fails.
    Refused,
    /// A policy exempts them.
    Exempt,
    /// They are left alone, being of another network namespace than the policy.
    OtherNetns,
    /// No policy holds them.
    Unsteered,
    /// Another version of steer holds them, which cannot be read.
    OtherVersion,
}
