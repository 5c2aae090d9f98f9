//! The documents of the API that differ from those of `steer status`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    host::{
        link::{Change, Names, Table},
        policy_files::Kept,
    },
    model::{
        config,
        spec::PolicySpec,
        uplink::group::{self, Group},
    },
};

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyDocument {
    /// Its name.
    pub name: String,
    /// Its options, complete. The interface "closed" is that of the policy that holds `parent` of `[containers]`.
    #[serde(flatten)]
    pub policy: PolicySpec,
    /// Where it is kept.
    pub kept: Kept,
    /// The file it is in.
    pub file: String,
}

impl PolicyDocument {
    /// The document of a configured policy.
    pub fn new(policy: &config::Policy, kept: Kept) -> Self {
        Self {
            name: policy.name.clone(),
            policy: PolicySpec { parent: policy.parent.clone(), ..policy.target.spec() }
                .with_patterns(&policy.cgroups)
                .with_allow(policy.allow.clone()),
            kept,
            file: policy.file.clone(),
        }
    }
}

/// A policy to be kept. Options that are left out have the defaults of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PolicyRequest {
    /// Its options.
    #[serde(flatten)]
    pub policy: PolicySpec,
    /// Remove it at the next boot.
    #[serde(default)]
    pub runtime: bool,
}

impl PolicyRequest {
    /// Where it is to be kept.
    pub fn kept(&self) -> Kept {
        if self.runtime { Kept::Runtime } else { Kept::Stored }
    }

    /// The policy as written in a configuration file with only this policy.
    pub fn from_toml(text: &str) -> Result<PolicySpec, toml::de::Error> {
        #[derive(Deserialize)]
        struct File {
            policy: [toml::Table; 1],
        }
        let File { policy: [mut table] } = toml::from_str(text)?;
        table.remove("name");
        PolicySpec::deserialize(table)
    }

    /// The text of a configuration file with only this policy.
    pub fn to_toml(&self, name: &str) -> Result<String, toml::ser::Error> {
        #[derive(Serialize)]
        struct File<'a> {
            policy: [Named<'a>; 1],
        }
        #[derive(Serialize)]
        struct Named<'a> {
            name: &'a str,
            #[serde(flatten)]
            policy: &'a PolicySpec,
        }
        let text = toml::to_string(&File { policy: [Named { name, policy: &self.policy }] })?;
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
    /// Policies whose uplink it is, or a member of their group of uplinks.
    pub policies: Vec<String>,
}

impl InterfaceDocument {
    /// The links as a table.
    pub fn table(all: &[Self]) -> Table {
        let mut table = Table::default();
        for Self { ifindex, name, alternative_names, .. } in all {
            let names = Names { name: name.clone(), alternative: alternative_names.clone() };
            table.apply(Change::Present(*ifindex, names));
        }
        table
    }

    /// Every link of the table. `groups`: those of the configuration. The lines of `auto` are not known here.
    pub fn all(table: &Table, policies: &[config::Policy], groups: &[Group]) -> Vec<Self> {
        let uplink_of = |names: &[&str]| {
            let uses = policies.iter().filter(|policy| {
                let group = policy.target.uplink.group().and_then(|name| group::named(groups, name));
                let members =
                    group.iter().flat_map(|group| group.members.iter().map(|member| member.interface.as_str()));
                members.chain(policy.interface()).any(|name| names.contains(&name))
            });
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

/// The daemon's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// False while a failed operation is retried.
    pub ok: bool,
    /// Its version.
    pub version: String,
    /// Where its pins are.
    pub pins: String,
    /// Its configuration file.
    pub config: String,
    /// Mistakes in the files. While they last, the previous configuration stays in force.
    pub config_error: Option<String>,
}
