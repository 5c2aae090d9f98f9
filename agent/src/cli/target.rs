//! `--interface` or `--policy`: what `exec` and `attach` steer by.

use steer_common::{Owner, PolicyRecord};

use crate::{
    config::OtherNetns,
    datapath::{self, Datapath, Lock},
    interface,
    policy::Target,
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

/// What `By` means here and now.
pub(super) enum Resolved {
    /// A policy to be made.
    Record(Box<PolicyRecord>),
    /// The name of a policy that should be in force.
    Policy(String),
}

impl By {
    /// Looks the interface up, before anything is changed.
    pub(super) fn resolve(&self, other_netns: OtherNetns) -> anyhow::Result<Resolved> {
        let Some(interface) = &self.interface else {
            return Ok(Resolved::Policy(self.policy.clone().unwrap_or_default()));
        };
        let record = if interface == "none" {
            Target { interface: None, other_netns }.record("none", Owner::Manual, None, 0)
        } else {
            let ifindex = super::block_on(interface::read())??.require(interface)?;
            let target = Target { interface: Some(interface.clone()), other_netns };
            target.record(interface, Owner::Manual, Some(ifindex), datapath::netns_cookie()?)
        };
        Ok(Resolved::Record(Box::new(record)))
    }
}

impl Resolved {
    /// The slot that does it.
    pub(super) fn slot(&self, datapath: &mut Datapath, lock: &Lock) -> Result<u32, datapath::Error> {
        match self {
            Self::Record(record) => Ok(datapath.put_policies(lock, std::slice::from_ref(record))?[0]),
            Self::Policy(name) => datapath
                .policies()?
                .iter()
                .find(|entry| entry.is_owned_by(Owner::Config) && entry.name() == *name)
                .map(|entry| entry.slot)
                .ok_or_else(|| datapath::Error::NoPolicy { name: name.clone() }),
        }
    }
}
