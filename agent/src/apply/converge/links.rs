//! Follows the links of the daemon's own network namespace, and of those of containers.

use std::{os::fd::AsFd as _, time::Duration};

use steer_common::policy_flags;

use super::{Steering, report};
use crate::{
    apply::{
        failover::Moved,
        follow,
        resolve::{self, Namespace},
        routes, takeover,
        uplinks::{self, ByHand, ByHandError},
    },
    host::{
        link::{self, Table},
        netns,
        probe::{Outcome, Round},
    },
    kernel::{self, Datapath, Error, Lock, PolicyEntry},
};

impl Steering {
    /// Handles added, removed and renamed links.
    pub(crate) fn links_changed(&mut self, links: Table) -> Result<(), Error> {
        self.table = links;
        let lock = self.datapath.lock()?;
        self.follow_uplinks(&lock)
    }

    pub(super) fn follow_uplinks(&mut self, lock: &Lock) -> Result<(), Error> {
        let namespace = Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks());
        let changed = resolve::follow(&mut self.datapath, lock, namespace)?;
        log_uplinks(&changed);
        // Groups that cannot be followed do not keep the other policies from being followed.
        let chosen = self.choose(lock);
        let routed = self.follow_routes(lock);
        self.untreated.extend(takeover::concerned(&self.datapath, &changed)?);
        chosen.and(routed)
    }

    /// Handles changed rules, routes and addresses.
    pub(crate) fn routes_changed(&mut self) -> Result<(), Error> {
        let lock = self.datapath.lock()?;
        let chosen = self.choose(&lock);
        self.follow_routes(&lock).and(chosen)
    }

    /// Looks at the members of groups, and chooses between them.
    pub(super) fn choose(&mut self, lock: &Lock) -> Result<(), Error> {
        let namespace = Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks());
        let switches = self.groups.follow(&mut self.datapath, lock, namespace, &mut self.routes)?;
        uplinks::report(&uplinks::move_sockets(lock, &mut self.datapath, &self.hierarchy, &switches)?);
        Ok(())
    }

    /// Takes the results of probes in, and alarms about failing connections. Chooses again if one has changed the health of a member, or
    /// if it is time.
    pub(crate) fn probed(
        &mut self,
        outcomes: &[(uplinks::Key, Outcome)],
        alarms: &[kernel::Alarm],
    ) -> Result<(), Error> {
        let mut changed = self.groups.is_due();
        for alarm in alarms {
            changed |= self.groups.traffic_fails(alarm.slot, alarm.member, uplinks::family(alarm.family));
        }
        for (key, outcome) in outcomes {
            changed |= self.groups.take_in(*key, outcome);
        }
        if changed {
            let lock = self.datapath.lock()?;
            self.choose(&lock)?;
        }
        Ok(())
    }

    /// Carries out what an administrator has decided about a member.
    pub(crate) fn set_by_hand(&mut self, by_hand: &ByHand<'_>) -> Result<Vec<Moved>, ByHandError> {
        let lock = self.datapath.lock()?;
        let namespace = Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks());
        uplinks::check_by_hand(&self.datapath, namespace, by_hand)?;
        let (groups, routes) = (&mut self.groups, &mut self.routes);
        let moved =
            uplinks::carry_out_by_hand(groups, &mut self.datapath, &lock, &self.hierarchy, namespace, routes, by_hand)?;
        uplinks::report(&moved);
        Ok(moved)
    }

    /// The last results of probes.
    pub(crate) fn probe_results(&self) -> Vec<uplinks::Probed> {
        self.groups.probed()
    }

    /// The rounds of probes that are due.
    pub(crate) fn rounds(&mut self) -> Vec<(uplinks::Key, Round)> {
        self.groups.rounds()
    }

    /// The time until the next round of probes or choice is due.
    pub(crate) fn next_choice(&self) -> Option<Duration> {
        self.groups.wake()
    }

    /// Looks whether cgroups use the groups that are probed.
    pub(crate) fn look_at_use(&mut self) -> Result<(), Error> {
        self.groups.look_at_use(&self.datapath)
    }

    /// Writes rules and routes, and follows what else the policies ask of this network namespace.
    pub(super) fn follow_routes(&mut self, lock: &Lock) -> Result<(), Error> {
        let namespace = Namespace::own(&self.table, self.netns_cookie, self.wanted.marks(), self.wanted.uplinks());
        let followed = routes::follow(&mut self.datapath, lock, namespace, &mut self.routes);
        self.note_leftovers();
        let asks = self.datapath.policies()?.iter().any(|entry| entry.record.flags & policy_flags::DNS_LINK != 0);
        self.asks_resolvers.send_if_modified(|asked| std::mem::replace(asked, asks) != asks);
        followed
    }

    /// Handles added, removed and renamed links in the network namespace of a container.
    pub(crate) fn namespace_changed(&mut self, change: &follow::Change) -> Result<(), Error> {
        if !self.namespaces.take_in(change) {
            return Ok(());
        }
        let lock = self.datapath.lock()?;
        self.follow_namespace(&lock, change)
    }

    pub(super) fn follow_namespace(&mut self, lock: &Lock, change: &follow::Change) -> Result<(), Error> {
        let cookie = change.netns_cookie;
        let inside = Some(change.netns.as_fd());
        let namespace = Namespace {
            links: &change.links,
            cookie,
            marks: self.wanted.marks(),
            groups: self.wanted.uplinks(),
            inside,
        };
        let changed = resolve::follow(&mut self.datapath, lock, namespace)?;
        let switches = self.groups.follow(&mut self.datapath, lock, namespace, &mut self.routes)?;
        routes::follow(&mut self.datapath, lock, namespace, &mut self.routes)?;
        self.note_leftovers();
        if changed.is_empty() && switches.is_empty() {
            return Ok(());
        }
        log_uplinks(&changed);
        let (pins, hierarchy) = (self.datapath.pins(), &self.hierarchy);
        let followed = netns::inside(change.netns.as_fd(), || match Datapath::open(pins)? {
            Some(mut datapath) => {
                uplinks::report(&uplinks::move_sockets(lock, &mut datapath, hierarchy, &switches)?);
                takeover::follow_uplinks(lock, &datapath, hierarchy, cookie, &changed)
            }
            None => Ok(Vec::new()),
        });
        report(&followed.map_err(link::Error::Socket)??);
        Ok(())
    }
}

/// Logs the new indexes of uplinks.
fn log_uplinks(changed: &[PolicyEntry]) {
    for entry in changed {
        let (name, interface) = (entry.name(), entry.interface());
        if entry.record.ifindex > 0 {
            log::info!("policy {name}: uplink {interface} has index {}", entry.record.ifindex);
        } else {
            log::warn!("policy {name}: uplink {interface} is missing; its sockets are closed until it exists");
        }
    }
}
