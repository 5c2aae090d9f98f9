//! The configuration as written: parsed, every mistake found at once, each with its place.
//!
//! **Invariant:** no I/O, and nothing of what the words mean on this host. Whoever reads the file hands its text in.

mod containers;
mod parse;
mod pattern;
mod problem;
mod reader;
mod resolvers;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::cgroup_path::CgroupPath;

pub use containers::{Containers, Interfaces, Missing};
pub use parse::{Source, parse, parse_all};
pub use pattern::Pattern;
pub use problem::{Problem, Problems};
pub use resolvers::Resolvers;

/// A configuration: one file, or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[[policy]]`, in the order of the files.
    pub policies: Vec<Policy>,
    /// `[containers]`.
    pub containers: Containers,
}

/// Name of the policy that holds `parent` of `[containers]` closed.
pub const UNCLASSIFIED: &str = "unclassified";

/// One `[[policy]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `name`: unique.
    pub name: String,
    /// `interface`: a name or alternative name; `None` for `"none"`, which exempts.
    pub interface: Option<String>,
    /// `cgroups`: where it holds.
    pub cgroups: Vec<Pattern>,
    /// What is done to sockets.
    pub manner: Manner,
    /// The file it is in.
    pub file: String,
}

impl Policy {
    /// Holds a cgroup closed, whatever network namespaces are in it: no link has an empty name.
    fn closed(name: &str, cgroup: &CgroupPath, file: &str) -> Option<Self> {
        let cgroups = vec![Pattern::parse(cgroup.as_str()).ok()?];
        let (name, file) = (name.to_owned(), file.to_owned());
        Some(Self { name, interface: Some(String::new()), cgroups, manner: Manner::CLOSED, file })
    }

    /// Whether no uplink will ever open it.
    pub fn is_closed(&self) -> bool {
        self.interface.as_deref() == Some("")
    }
}

/// How a policy holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// `enforce`: how far steer goes against programs that want out.
    pub enforce: Enforce,
    /// `ingress`: by which links packets may come in.
    pub ingress: Ingress,
    /// `other_netns`: what is done with sockets of other network namespaces.
    pub other_netns: OtherNetns,
    /// `dns`: who is asked for names, whomever the program asks.
    pub dns: Resolvers,
    /// `existing`: what is done with sockets that are bound elsewhere when the policy begins to hold.
    pub existing: Existing,
}

impl Manner {
    /// Nothing gets out, and no socket of any network namespace is made but for loopback.
    pub const CLOSED: Self = Self {
        enforce: Enforce::Strict,
        ingress: Ingress::Any,
        other_netns: OtherNetns::Refuse,
        dns: Resolvers::NONE,
        existing: Existing::Keep,
    };
}

/// `enforce`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize, Serialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Enforce {
    /// Sockets are bound when they are created, and `connect` restores a lost binding.
    Steer,
    /// Also, no packet gets out by another link, and no binding can be changed.
    #[default]
    Strict,
}

/// `ingress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ingress {
    /// By any.
    #[default]
    Any,
    /// By the uplink and loopback; needs `enforce = "strict"`.
    Uplink,
}

/// `other_netns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OtherNetns {
    /// Their sockets are left alone, and counted: the uplink's index means nothing there.
    #[default]
    Leave,
    /// They get no sockets.
    Refuse,
}

/// `existing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Existing {
    /// Nothing: they keep what they have, and a guard holds them.
    #[default]
    Keep,
    /// They are bound to the uplink; connections that could not go on there are ended.
    Rebind,
    /// Connections are ended, so that programs make new ones; other sockets are bound to the uplink.
    Destroy,
}
