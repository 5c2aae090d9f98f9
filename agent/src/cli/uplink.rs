//! `steer uplink`: takes a member of a group out of use, and back.

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    output::{note, say},
    target::links,
};
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
    let cookie = kernel::netns_cookie()?;
    let read = || {
        let groups = observe::uplinks::read(&pins, &[])?;
        anyhow::Ok(groups.into_iter().find(|group| group.name == *uplink && group.netns_cookie == cookie))
    };
    let before = read()?;
    for moved in uplinks::set_by_hand(&pins, &Hierarchy::find()?, namespace, &by_hand)? {
        for remaining in &moved.remaining {
            say!("{remaining}")?;
        }
    }
    let Some(group) = read()? else { return Ok(ExitCode::SUCCESS) };
    let Some(status) = of(&group, member) else { return Ok(ExitCode::SUCCESS) };
    let was_by_hand = before.as_ref().and_then(|group| of(group, member)).is_some_and(|status| status.hand != "auto");
    let (warning, line) = described(&group, status, hand, was_by_hand);
    if let Some(warning) = warning {
        note(&format!("warning: {}", shown(&warning)));
    }
    say!("{}", shown(&line))?;
    Ok(ExitCode::SUCCESS)
}

fn of<'a>(group: &'a UplinkStatus, member: &str) -> Option<&'a MemberStatus> {
    group.members.iter().find(|status| status.interface == member)
}

/// A warning if the group goes on without a member that works; and what is in force now: the member's state, who decides about it,
/// and which members sockets get.
fn described(group: &UplinkStatus, status: &MemberStatus, hand: Hand, was_by_hand: bool) -> (Option<String>, String) {
    let (name, member, families) = (&group.name, &status.interface, group.families());
    let of_each = |of: &dyn Fn(Family) -> String| {
        let each: Vec<_> = families.iter().map(|family| (of(*family), family)).collect();
        match &each[..] {
            [(v4, _), (v6, _)] if v4 != v6 => format!("{v4} for IPv4, {v6} for IPv6"),
            each => each.first().map(|(one, _)| one.clone()).unwrap_or_default(),
        }
    };
    let state = of_each(&|family| {
        let health = status.health(family);
        let is_plain = [Reason::Works, Reason::ByHand].iter().any(|reason| health.reason == reason.to_string());
        if is_plain { health.state.clone() } else { format!("{} ({})", health.state, health.reason) }
    });
    let chosen = of_each(&|family| {
        let chosen = group.members.iter().filter(|member| member.health(family).share > 0.0);
        let names: Vec<_> = chosen.map(|member| member.interface.as_str()).collect();
        if names.is_empty() { "no member".to_owned() } else { names.join(" and ") }
    });
    let is_up = families.iter().any(|family| status.health(*family).state == State::Up.to_string());
    let decided = match hand {
        Hand::Auto if was_by_hand => {
            format!("link, probes and connections decide about {member} again; it is {state} now")
        }
        Hand::Auto => format!("{member} was not set by hand; it is {state}"),
        Hand::Up if is_up => format!("{member} is {state}, set by hand: probes and connections do not count"),
        Hand::Up => format!("{member} is set to up by hand, but it is {state}"),
        Hand::Down => format!("{member} is down, set by hand"),
    };
    let is_down =
        |member: &MemberStatus| families.iter().all(|family| member.health(*family).state == State::Down.to_string());
    if !group.members.iter().all(is_down) {
        return (None, format!("{name}: {decided}; new sockets get {chosen}"));
    }
    let warning = if chosen == "no member" {
        format!("{name} is closed, because no member works")
    } else {
        format!(
            "traffic of {name} still uses {chosen}, because no member works; all_down = \"close\" in the [[uplink]] stops it"
        )
    };
    (Some(warning), format!("{name}: {decided}"))
}
