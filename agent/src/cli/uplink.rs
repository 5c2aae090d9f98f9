//! `steer uplink`: takes a member of a group out of use, and back.

use std::process::ExitCode;

use clap::Subcommand;

use super::{output::say, target::links};
use crate::{
    apply::{
        resolve::Namespace,
        uplinks::{self, ByHand},
    },
    host::{capability::require_privilege, cgroup::Hierarchy},
    kernel,
    model::{config::RouteConfig, uplink::health::Hand},
    run::instance::Instance,
};

/// Arguments of `steer uplink`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    change: Change,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Take a member out of use: its connections end, and new sockets get another member
    Down(Member),
    /// Use a member as long as its link is there, whatever probes and connections say
    Up(Member),
    /// Let the link, probes and connections decide again
    Auto(Member),
}

#[derive(Debug, clap::Args)]
struct Member {
    /// The name of the group
    uplink: String,
    /// The interface of the member
    member: String,
}

pub(super) fn run(args: &Args, instance: &Instance) -> anyhow::Result<ExitCode> {
    require_privilege("uplink")?;
    let (hand, Member { uplink, member }) = match &args.change {
        Change::Down(member) => (Hand::Down, member),
        Change::Up(member) => (Hand::Up, member),
        Change::Auto(member) => (Hand::Auto, member),
    };
    let Some(pins) = instance.pins.to_look()? else { anyhow::bail!("nothing is steered") };
    let links = links()?;
    let namespace = Namespace::own(&links, kernel::netns_cookie()?, RouteConfig::default().marks(), &[]);
    let by_hand = ByHand { group: uplink, member, hand };
    for moved in uplinks::set_by_hand(&pins, &Hierarchy::find()?, namespace, &by_hand)? {
        for remaining in &moved.remaining {
            say!("{remaining}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
