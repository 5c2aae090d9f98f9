//! `--interface` or `--policy`: what `exec` and `attach` steer by.

use clap::ValueEnum;
use steer_common::{Kind, Owner, PolicyRecord, policy_flags};

use crate::{
    host::{link, resolver},
    kernel::{self, Datapath, Lock},
    model::{
        config::{Enforce, Existing, Ingress, Manner, OtherNetns, Resolvers},
        policy::Target,
    },
};

/// What to steer by.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct By {
    /// Name or alternative name of the uplink, in the network namespace of the caller; "none" exempts
    #[arg(long, short, value_name = "IF")]
    pub(super) interface: Option<String>,
    /// A policy of the daemon's configuration
    #[arg(long, short, value_name = "NAME")]
    pub(super) policy: Option<String>,
}

/// How to steer; a policy of the configuration says that itself.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct How {
    /// How far to go against a program that wants out
    #[arg(long, value_name = "LEVEL", default_value = "strict", conflicts_with = "policy")]
    enforce: Enforce,
    /// By which links packets may come in; "uplink" needs --enforce strict
    #[arg(long, value_name = "LINKS", default_value = "any", conflicts_with = "policy")]
    ingress: Ingress,
    /// What is done with sockets of other network namespaces
    #[arg(long, value_name = "WHAT", default_value = "leave", conflicts_with = "policy")]
    other_netns: OtherNetns,
    /// Resolver behind the uplink, asked whomever the program asks; one of each family at most
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', conflicts_with = "policy")]
    dns: Vec<String>,
    /// What is done with sockets that are bound elsewhere already, and when the uplink comes back with another index
    #[arg(long, value_name = "WHAT", default_value = "keep", conflicts_with = "policy")]
    existing: Existing,
}

/// What `By` means here and now.
pub(super) enum Resolved {
    /// A policy to be made.
    Record(Box<PolicyRecord>),
    /// The name of a policy that should be in force.
    Policy(String),
}

impl By {
    /// The arguments that say the same, for a command line.
    pub(super) fn arguments(&self, how: &How) -> Vec<String> {
        let How { enforce, ingress, other_netns, existing, dns } = how;
        let by = [("--interface", &self.interface), ("--policy", &self.policy)];
        let by = by.into_iter().filter_map(|(option, name)| Some(format!("{option}={}", name.as_ref()?)));
        let how = [
            other("--enforce", enforce),
            other("--ingress", ingress),
            other("--other-netns", other_netns),
            other("--existing", existing),
            (!dns.is_empty()).then(|| format!("--dns={}", dns.join(","))),
        ];
        by.chain(how.into_iter().flatten()).collect()
    }

    /// Looks the interface up, before anything is changed.
    pub(super) fn resolve(&self, how: &How) -> anyhow::Result<Resolved> {
        let How { enforce, ingress, other_netns, existing, .. } = *how;
        anyhow::ensure!(
            ingress == Ingress::Any || enforce == Enforce::Strict,
            "--ingress uplink needs --enforce strict"
        );
        let mut dns = Resolvers::default();
        how.dns
            .iter()
            .try_for_each(|resolver| dns.add(resolver))
            .map_err(|problem| anyhow::anyhow!("--dns: {problem}"))?;
        let exempts = self.interface.as_deref() == Some("none");
        anyhow::ensure!(dns.is_empty() || !exempts, "--dns needs an uplink: an exemption asks whom it likes");
        anyhow::ensure!(
            existing == Existing::Keep || !exempts,
            "--existing needs an uplink: an exemption binds no socket"
        );
        let manner = Manner { enforce, ingress, other_netns, dns, existing };
        let Some(interface) = &self.interface else {
            return Ok(Resolved::Policy(self.policy.clone().unwrap_or_default()));
        };
        let record = if exempts {
            Target { interface: None, manner }.record("none", Owner::Manual, None, 0)
        } else {
            let ifindex = super::block_on(link::read())??.require(interface)?;
            let target = Target { interface: Some(interface.clone()), manner };
            target.record(interface, Owner::Manual, Some(ifindex), kernel::netns_cookie()?)
        };
        Ok(Resolved::Record(Box::new(record)))
    }
}

/// An option that has another value than it has by default.
fn other<V: ValueEnum + Default + PartialEq>(option: &str, value: &V) -> Option<String> {
    let said = value.to_possible_value().filter(|_| *value != V::default())?;
    Some(format!("{option}={}", said.get_name()))
}

impl Resolved {
    /// Says what will not be looked up, or not by the uplink. What a configured policy does, `steer status` says.
    pub(super) fn warn(&self) {
        if let Self::Record(record) = self
            && record.kind == Kind::Steer as u32
        {
            let asks_its_own = record.flags & (policy_flags::DNS4 | policy_flags::DNS6) != 0;
            for detour in resolver::detours().iter().filter(|detour| !(asks_its_own && detour.ends_with_dns())) {
                log::warn!("{detour}");
            }
        }
    }

    /// Whether it names the configured policy that is in this slot.
    pub(super) fn is_policy_in(&self, datapath: &Datapath, slot: u32) -> Result<bool, kernel::Error> {
        match self {
            Self::Record(_) => Ok(false),
            Self::Policy(name) => Ok(kernel::text(&datapath.policy(slot)?.name) == *name),
        }
    }

    /// The slot that does it.
    pub(super) fn slot(&self, datapath: &mut Datapath, lock: &Lock) -> Result<u32, kernel::Error> {
        match self {
            Self::Record(record) => Ok(datapath.put_policies(lock, std::slice::from_ref(record))?[0]),
            Self::Policy(name) => datapath
                .policies()?
                .iter()
                .find(|entry| entry.is_owned_by(Owner::Config) && entry.name() == *name)
                .map(|entry| entry.slot)
                .ok_or_else(|| kernel::Error::NoPolicy { name: name.clone() }),
        }
    }
}
