//! The documents of the API that are not shown by `steer status` as they are.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    host::{link::Table, policy_files::Kept},
    model::config::{self, Enforce, Existing, Ingress, OtherNetns},
};

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDocument {
    /// Its name.
    pub name: String,
    /// The uplink's name; "none" exempts, "closed" is what holds `parent` of `[containers]`.
    pub interface: String,
    /// Paths and globs of cgroups.
    pub cgroups: Vec<String>,
    /// How far steer goes against programs that want out.
    pub enforce: Enforce,
    /// By which links packets may come in.
    pub ingress: Ingress,
    /// What is done with sockets of other network namespaces.
    pub other_netns: OtherNetns,
    /// What is done with sockets that are there already.
    pub existing: Existing,
    /// Who is asked for names, whomever a program asks.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// Where it is kept.
    pub kept: Kept,
    /// The file it is in.
    pub file: String,
}

impl PolicyDocument {
    /// What the configuration says, and where.
    pub fn new(policy: &config::Policy, kept: Kept) -> Self {
        Self {
            name: policy.name.clone(),
            interface: match policy.interface.as_deref() {
                None => "none".to_owned(),
                Some("") => "closed".to_owned(),
                Some(interface) => interface.to_owned(),
            },
            cgroups: policy.cgroups.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            enforce: policy.manner.enforce,
            ingress: policy.manner.ingress,
            other_netns: policy.manner.other_netns,
            existing: policy.manner.existing,
            dns: policy.manner.dns.iter().collect(),
            kept,
            file: policy.file.clone(),
        }
    }
}

/// A policy to be kept; what is left out is as in a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// The uplink's name; "none" exempts.
    pub interface: String,
    /// Paths and globs of cgroups.
    pub cgroups: Vec<String>,
    /// How far steer goes against programs that want out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce: Option<Enforce>,
    /// By which links packets may come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// What is done with sockets of other network namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_netns: Option<OtherNetns>,
    /// What is done with sockets that are there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<Existing>,
    /// Who is asked for names, whomever a program asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Forget it at the next boot.
    #[serde(default)]
    pub runtime: bool,
}

impl PolicyRequest {
    /// Where it is to be kept.
    pub fn kept(&self) -> Kept {
        if self.runtime { Kept::Runtime } else { Kept::Stored }
    }

    /// As the text of a configuration file with this one policy.
    pub fn to_toml(&self, name: &str) -> Result<String, toml::ser::Error> {
        #[derive(Serialize)]
        struct File<'a> {
            policy: [Named<'a>; 1],
        }
        #[derive(Serialize)]
        struct Named<'a> {
            name: &'a str,
            interface: &'a str,
            cgroups: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            enforce: Option<Enforce>,
            #[serde(skip_serializing_if = "Option::is_none")]
            ingress: Option<Ingress>,
            #[serde(skip_serializing_if = "Option::is_none")]
            other_netns: Option<OtherNetns>,
            #[serde(skip_serializing_if = "Option::is_none")]
            existing: Option<Existing>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            dns: &'a [String],
        }
        let Self { interface, cgroups, enforce, ingress, other_netns, existing, dns, runtime: _ } = self;
        let (enforce, ingress, other_netns, existing) = (*enforce, *ingress, *other_netns, *existing);
        let text = toml::to_string(&File {
            policy: [Named { name, interface, cgroups, enforce, ingress, other_netns, existing, dns }],
        })?;
        Ok(format!("# Kept by steer: `steer policy set` and `remove` change it.\n\n{text}"))
    }
}

/// A link, as the daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceDocument {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub alternative_names: Vec<String>,
    /// Policies whose uplink it is.
    pub policies: Vec<String>,
}

impl InterfaceDocument {
    /// Every link of the table.
    pub fn all(table: &Table, policies: &[config::Policy]) -> Vec<Self> {
        let uplink_of = |names: &[&str]| {
            let uses =
                policies.iter().filter(|policy| policy.interface.as_deref().is_some_and(|name| names.contains(&name)));
            uses.map(|policy| policy.name.clone()).collect()
        };
        let links = table.links().map(|(ifindex, names)| {
            let all: Vec<_> = [&names.name].into_iter().chain(&names.alternative).map(String::as_str).collect();
            Self {
                ifindex,
                name: names.name.clone(),
                alternative_names: names.alternative.clone(),
                policies: uplink_of(&all),
            }
        });
        links.collect()
    }
}

/// How the daemon does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// False while something that failed is tried again.
    pub ok: bool,
    /// Its version.
    pub version: String,
    /// Where its pins are.
    pub pins: String,
    /// Its configuration file.
    pub config: String,
    /// Mistakes that kept the files from being read again; what was in force before is in force.
    pub config_error: Option<String>,
}
