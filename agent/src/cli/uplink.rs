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
    model::{
        config::RouteConfig,
        quote::shown,
        uplink::{
            Family,
            health::{Hand, Reason, State},
        },
    },
    observe::{
        self,
        uplinks::{MemberStatus, UplinkStatus},
    },
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
    let groups = observe::uplinks::read(&pins, &[])?;
    let cookie = kernel::netns_cookie()?;
    if let Some(group) = groups.iter().find(|group| group.name == *uplink && group.netns_cookie == cookie) {
        say!("{}", shown(&described(group, member, hand)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What holds now: who decides about the member, its state, and which members sockets get.
fn described(group: &UplinkStatus, member: &str, hand: Hand) -> String {
    let Some(status) = group.members.iter().find(|status| status.interface == member) else { return String::new() };
    let of_both = |of: &dyn Fn(Family) -> String| {
        let [v4, v6] = Family::ALL.map(of);
        if v4 == v6 { v4 } else { format!("{v4} for IPv4, {v6} for IPv6") }
    };
    let state = of_both(&|family| {
        let health = status.health(family);
        let is_plain = health.state == State::Up.to_string() || health.reason == Reason::ByHand.to_string();
        if hand == Hand::Auto || is_plain {
            health.state.clone()
        } else {
            format!("{} ({})", health.state, health.reason)
        }
    });
    let chosen = of_both(&|family| {
        let chosen = group.members.iter().filter(|member| member.health(family).share > 0.0);
        let names: Vec<_> = chosen.map(|member| member.interface.as_str()).collect();
        if names.is_empty() { "no member".to_owned() } else { names.join(" and ") }
    });
    let decided = match hand {
        Hand::Auto => "its link, probes and connections decide again",
        Hand::Up => "set by hand, whatever probes and connections say",
        Hand::Down => "set by hand",
    };
    let is_down = |member: &MemberStatus| {
        Family::ALL.iter().all(|family| member.health(*family).state == State::Down.to_string())
    };
    let none_works = if !group.members.iter().all(is_down) {
        ""
    } else if chosen == "no member" {
        "; no member works, so the group is closed"
    } else {
        "; no member works, so traffic stays where it was (all_down = \"close\" in the [[uplink]] stops it)"
    };
    format!("{}: {member} is {state}, {decided}; new sockets get {chosen}{none_works}", group.name)
}
