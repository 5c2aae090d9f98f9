//! What happens to lines, and what the daemon says of groups of uplinks.

use anyhow::Context as _;
use steer_lab::{
    Direction, Family, Kind, Packet, SERVER_V4, SERVER_V6, client_v4, client_v6, gateway_v4, gateway_v6, wait_until,
};
use steer_tests::{Outcome, output};

use std::{collections::BTreeSet, process::Command};

use super::World;
use crate::model::reference::{
    LINES, Reference, SPACES, Space,
    groups::{FAMILIES, Lack, Lines},
};

impl World {
    /// ip(8) at the server's end.
    fn ip_of_server(&mut self, space: Space, arguments: &str) -> Outcome {
        let mut command = Command::new("ip");
        let net = self.net(space);
        let done = output(net.server.enter(command.args(arguments.split_whitespace())))?;
        anyhow::ensure!(done.code == 0, "ip {arguments}: {done:?}");
        Ok(())
    }

    /// A link loses something.
    pub(crate) fn take_away(&mut self, space: Space, number: u8, lack: Lack) -> Outcome {
        let (link, far) = (self.net(space).link(number).to_owned(), self.net(space).server_link(number));
        let arguments = match lack {
            Lack::Carrier => return self.ip_of_server(space, &format!("link set {far} down")),
            Lack::Address(Family::V4) => format!("-4 addr del {}/24 dev {link}", client_v4(number)),
            Lack::Address(Family::V6) => format!("-6 addr del {}/64 dev {link}", client_v6(number)),
            Lack::Route(Family::V4) => format!("-4 route del default dev {link}"),
            Lack::Route(Family::V6) => format!("-6 route del default dev {link}"),
        };
        // With its address, a link may have lost its route.
        let mut command = Command::new("ip");
        let netns = match space {
            Space::Here => &self.bed.net.client,
            Space::There => &self.there.client,
        };
        let done = output(netns.enter(command.args(arguments.split_whitespace())))?;
        anyhow::ensure!(done.code == 0 || done.stderr.contains("No such process"), "ip {arguments}: {done:?}");
        Ok(())
    }

    /// It gets it back.
    pub(crate) fn give_back(&mut self, reference: &Reference, space: Space, number: u8, lack: Lack) -> Outcome {
        let net = self.net(space);
        if lack == Lack::Carrier {
            net.restore_server(number)?;
        } else {
            net.restore_client(number)?;
        }
        let known = reference.lines[&(space, number)].0;
        // The link may still lack another thing.
        let works = |family: &Family| {
            let lacks = reference.lacking.get(&known).into_iter().flatten();
            lack != Lack::Carrier
                || !lacks.clone().any(|it| matches!(it, Lack::Address(of) | Lack::Route(of) if of == family))
        };
        let to = FAMILIES.into_iter().filter(works).map(|family| match family {
            Family::V4 => SERVER_V4.into(),
            Family::V6 => SERVER_V6.into(),
        });
        let to: Vec<_> = to.collect();
        let link = self.net(space).link(number).to_owned();
        self.warm_up(space, &link, &to)
    }

    /// The server drops what it sends to a link's addresses, or does not.
    pub(crate) fn black_hole(&mut self, space: Space, number: u8, family: Family, is_on: bool) -> Outcome {
        let change = if is_on { "add" } else { "del" };
        let (flag, client) = match family {
            Family::V4 => ("-4", client_v4(number).to_string()),
            Family::V6 => ("-6", client_v6(number).to_string()),
        };
        self.ip_of_server(space, &format!("{flag} rule {change} pref 0 to {client} blackhole"))
    }

    /// Waits until the daemon has chosen between the members of groups.
    pub(crate) fn wait_for_uplinks(&self, now: &Reference) -> Outcome {
        let used = now.groups_in_use();
        if used.is_empty() || !now.daemon_runs {
            return Ok(());
        }
        let cookies = SPACES.map(|space| Ok((space, self.netns(space).cookie()?)));
        let cookies = cookies.into_iter().collect::<anyhow::Result<std::collections::BTreeMap<_, _>>>()?;
        let mut said = String::new();
        let waited = wait_until("the daemon to choose", self.patience, || {
            said = self.bed.succeed(&["uplinks", "--json"]).unwrap_or_else(|error| format!("{error:#}"));
            let groups: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap_or_default();
            used.iter().all(|(space, lines)| {
                let of = groups.iter().filter(|group| group["netns_cookie"] == cookies[space]);
                of.clone().any(|group| has_chosen(now, *space, group, lines))
            })
        });
        waited.with_context(|| format!("expected {used:?}; {said}"))?;
        Ok(())
    }
}

/// Whether this is the group with these lines, and has chosen one of them, or all of a tier.
fn has_chosen(now: &Reference, space: Space, said: &serde_json::Value, lines: &Lines) -> bool {
    let Some(group) = &lines.group else { return true };
    let members = said["members"].as_array().cloned().unwrap_or_default();
    let has_members = members.len() == group.members.len()
        && members.iter().zip(&group.members).all(|(said, member)| {
            said["interface"] == member.link && said["tier"] == member.tier && said["weight"] == member.weight
        });
    said["name"] == group.name
        && (group.is_auto() || has_members)
        && FAMILIES.into_iter().all(|family| {
            let key = if family == Family::V4 { "ipv4" } else { "ipv6" };
            let has_share = |said: &&serde_json::Value| said[key]["share"].as_f64().is_some_and(|share| share > 0.0);
            let names: BTreeSet<_> =
                members.iter().filter(has_share).filter_map(|said| said["interface"].as_str()).collect();
            let chosen: BTreeSet<_> = names.iter().filter_map(|name| now.line_called(space, name)).collect();
            let wanted = lines.chosen(family);
            wanted.is_empty()
                || chosen == wanted
                || group.name.contains('+') && !chosen.is_empty() && chosen.is_subset(&wanted)
        })
}

/// Whether the daemon asks a gateway by it. No other program of the model sends such packets.
pub(super) fn is_probe(packet: &Packet) -> bool {
    let is_gateway = |address| (0..LINES).any(|number| address == gateway_v4(number) || address == gateway_v6(number));
    matches!(packet.kind, Kind::Icmp4 | Kind::Icmp6)
        && packet.direction == Direction::Out
        && !packet.is_kernel_answer()
        && !packet.is_kernel_noise()
        && packet.dst.is_some_and(is_gateway)
}
