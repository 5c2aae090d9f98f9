//! What other programs do with rules, routes and addresses, and what of steer's there is.
//!
//! **Invariant:** other programs delete by what is listed, as a person does with ip(8).

use std::{collections::BTreeSet, net::IpAddr, process::Command};

use anyhow::{Context as _, ensure};
use steer_lab::prober::FURTHER;
use steer_tests::{Outcome, output};

use super::World;
use crate::model::reference::{SPACES, Space};

const FAMILIES: [&str; 2] = ["-4", "-6"];
/// The last of the kernel's own tables; ip(8) shows no table for the main one.
const LAST_TABLE: u32 = 255;
/// The highest byte of the numbers of steer's tables.
const OURS: u32 = 0x73;

/// The table of a route, as `ip -N` lists it.
fn table_of(route: &str) -> Option<u32> {
    route.split_whitespace().skip_while(|word| *word != "table").nth(1)?.parse().ok()
}

impl World {
    fn ip(&self, space: Space, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("ip");
        let done = output(self.netns(space).enter(command.args(arguments)))?;
        ensure!(done.code == 0, "ip {arguments:?}: {done:?}");
        Ok(done.stdout.lines().map(str::to_owned).collect())
    }

    /// All rules of a namespace, with their families.
    pub(super) fn rules(&self, space: Space) -> anyhow::Result<Vec<String>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let listed = self.ip(space, &[family, "rule"])?;
            rules.extend(listed.into_iter().map(|rule| format!("{family} {}", rule.trim())));
        }
        Ok(rules)
    }

    /// What steer has in a namespace: rules that were not there in the beginning, and routes.
    pub(super) fn left(&self, space: Space) -> anyhow::Result<Vec<String>> {
        let mut left = self.own_rules(space)?;
        for family in FAMILIES {
            let routes = self.ip(space, &[family, "-N", "route", "show", "table", "all"])?;
            let is_own = |route: &String| table_of(route).is_some_and(|table| table > LAST_TABLE);
            left.extend(routes.into_iter().filter(is_own).map(|route| format!("{family} {route}")));
        }
        Ok(left)
    }

    pub(super) fn check_nothing_left(&self) -> Outcome {
        for space in SPACES {
            let left = self.left(space)?;
            ensure!(left.is_empty(), "off left in {space:?}: {}", left.join("; "));
        }
        Ok(())
    }

    fn own_rules(&self, space: Space) -> anyhow::Result<Vec<String>> {
        let foreign = &self.first_rules[&space];
        Ok(self.rules(space)?.into_iter().filter(|rule| !foreign.contains(rule)).collect())
    }

    /// Deletes one of steer's rules, if there is any.
    pub(crate) fn delete_rule(&self, space: Space, which: u8) -> Outcome {
        let own = self.own_rules(space)?;
        let Some(rule) = own.get(usize::from(which) % own.len().max(1)) else { return Ok(()) };
        // "-4 40001: from all fwmark ... lookup ...", as it was listed.
        let (family, rule) = rule.split_once(' ').context("a rule")?;
        let (preference, rule) = rule.split_once(':').context("a rule")?;
        let mut arguments = vec![family, "rule", "delete", "pref", preference];
        arguments.extend(rule.split_whitespace().filter(|word| !matches!(*word, "[unresolved]" | "[detached]")));
        let mut command = Command::new("ip");
        let done = output(self.netns(space).enter(command.args(&arguments)))?;
        // Steer may have removed it itself in between.
        ensure!(done.code == 0 || done.stderr.contains("No such file"), "ip {arguments:?}: {done:?}");
        Ok(())
    }

    /// Deletes all routes of steer, or those by a link.
    pub(crate) fn flush_routes(&mut self, space: Space, number: Option<u8>) -> Outcome {
        let link = number.map(|number| self.net(space).link(number).to_owned());
        for family in FAMILIES {
            let routes = self.ip(space, &[family, "-N", "route", "show", "table", "all"])?;
            let tables: BTreeSet<u32> =
                routes.iter().filter_map(|route| table_of(route)).filter(|table| table >> 24 == OURS).collect();
            for table in tables {
                let table = table.to_string();
                let mut arguments = vec![family, "route", "flush", "table", &table];
                arguments.extend(link.iter().flat_map(|link| ["dev", link]));
                // Steer may change them meanwhile.
                let mut command = Command::new("ip");
                let _ = output(self.netns(space).enter(command.args(&arguments)))?;
            }
        }
        Ok(())
    }

    /// Deletes the routes by a link in the main table, and adds them again.
    pub(crate) fn reroute(&mut self, space: Space, number: u8) -> Outcome {
        let link = self.net(space).link(number).to_owned();
        let mut had = Vec::new();
        for family in FAMILIES {
            let routes = self.ip(space, &[family, "route", "show", "dev", &link])?;
            had.extend(routes.into_iter().map(|route| (family, route)));
        }
        for family in FAMILIES {
            self.ip(space, &[family, "route", "flush", "dev", &link])?;
        }
        // A gateway is found by the routes without one.
        had.sort_by_key(|(_, route)| route.contains(" via "));
        for (family, route) in &had {
            let mut arguments = vec![*family, "route", "add"];
            arguments.extend(route.split_whitespace().filter(|word| *word != "linkdown"));
            arguments.extend(["dev", &link]);
            self.ip(space, &arguments)?;
        }
        Ok(())
    }

    /// A link gets the further network, with the server in it.
    pub(crate) fn add_network(&mut self, space: Space, number: u8) -> Outcome {
        let net = self.net(space);
        for (address, prefix_len) in [(IpAddr::V4(FURTHER.0), 24), (FURTHER.1.into(), 64)] {
            net.server.add_address(&net.server_link(number), address, prefix_len)?;
            net.client.add_address(net.link(number), next(address), prefix_len)?;
        }
        let link = self.net(space).link(number).to_owned();
        self.warm_up(space, &link, &[FURTHER.0.into(), FURTHER.1.into()])
    }

    /// A link loses it.
    pub(crate) fn remove_network(&mut self, space: Space, number: u8) -> Outcome {
        let net = self.net(space);
        let (ours, theirs) = (net.link(number).to_owned(), net.server_link(number));
        for (address, prefix_len) in [(IpAddr::V4(FURTHER.0), 24), (FURTHER.1.into(), 64)] {
            for (netns, link, address) in [(&net.client, &ours, next(address)), (&net.server, &theirs, address)] {
                let mut command = Command::new("ip");
                command.args(["address", "delete", &format!("{address}/{prefix_len}"), "dev", link]);
                let done = output(netns.enter(&mut command))?;
                ensure!(done.code == 0, "{done:?}");
            }
        }
        Ok(())
    }
}

/// The client's address in the network of this one of the server.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + 1).into()),
    }
}
