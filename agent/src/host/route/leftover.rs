//! Rules that connections need longer than a policy.
//!
//! When a program has closed a connection, the kernel answers for it without its socket, up to a minute longer (TIME_WAIT). The
//! answer has the binding or the mark that the socket had. Without its rule, it would leave by the default route.
//!
//! The same holds while the policy is there and its uplink has no default route: the answer would go by the rules behind.
//!
//! **Invariant:** a rule with its table stays while sock_diag lists a connection for it. The number of its mark and its
//! table are given to nobody else. The table of a bound uplink with such a connection has an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink_packet_sock_diag::{AF_INET, AF_INET6, TCP_CLOSE, TCP_LISTEN};
use steer_common::Mark;

use super::{
    Plan, contents,
    entry::IPV4,
    rule::{Role, Rule},
    state::State,
};
use crate::host::sockets::{
    Line,
    diag::{Diag, Protocol},
};

impl Plan {
    /// Adds the rules of this instance that are no longer wanted, and that connections of the calling thread's network namespace still
    /// need.
    pub fn with_leftovers(mut self, state: &State) -> io::Result<Self> {
        let planned: BTreeSet<u32> = self.rules.iter().map(|rule| rule.table).collect();
        let is_old = |rule: &&Rule| self.owns(rule.table) && !planned.contains(&rule.table);
        let lines: Vec<(&Rule, Line)> =
            state.rules.iter().filter(is_old).filter_map(|rule| Some((rule, line(rule, state)?))).collect();
        let is_open = |rule: &&Rule| rule.role() == Some(Role::Bound) && !self.has_end(rule.table);
        let open: Vec<(u32, u8, Line)> = self
            .rules
            .iter()
            .filter(is_open)
            .filter_map(|rule| Some((rule.table, rule.family, line(rule, state)?)))
            .collect();
        if lines.is_empty() && open.is_empty() {
            return Ok(self);
        }
        let diag = match Diag::open() {
            Ok(diag) => diag,
            // This kernel lists no sockets, so nobody knows how long the rules are needed.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)) => {
                return Ok(self);
            }
            Err(error) => return Err(error),
        };
        for (table, family, line) in open {
            if has_connection(&diag, family, line)? {
                self.routes.push(contents::end_of_all(table));
                self.leftover.insert(table);
            }
        }
        let mut used: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
        for (rule, line) in lines {
            if used.contains_key(&rule.table) || has_connection(&diag, rule.family, line)? {
                used.entry(rule.table).or_default().push(rule);
            }
        }
        for rule in used.values().flatten().filter(|rule| rule.role() == Some(Role::Lookup)) {
            let flag = rule.flag();
            for shared in [Rule::target(rule.family), Rule::end(rule.family, flag), Rule::goto(rule.family, flag)] {
                if !self.rules.contains(&shared) {
                    self.rules.push(shared);
                }
            }
        }
        self.rules.extend(used.values().flatten().copied().cloned());
        for (table, rules) in &used {
            match rules.first().and_then(|rule| uplink(rule, state)) {
                // Everybody's packets that are bound to the link use it, so it is kept up to date.
                Some(link) => {
                    self.routes.extend(contents::bound(link, state, *table));
                    if !self.has_end(*table) {
                        self.routes.push(contents::end_of_all(*table));
                    }
                }
                None => self.routes.extend(state.routes.iter().filter(|route| route.table == *table).cloned()),
            }
        }
        self.leftover.extend(used.into_keys());
        Ok(self)
    }

    /// Whether no packet of the table goes on to the rules behind.
    fn has_end(&self, table: u32) -> bool {
        self.routes.contains(&contents::end_of_all(table))
    }
}

/// The sockets that a rule is for.
fn line(rule: &Rule, state: &State) -> Option<Line> {
    match rule.role()? {
        Role::Lookup => Some(Line { ifindex: 0, mark: Some(Mark { value: rule.mark, mask: rule.mask }) }),
        Role::Bound => Some(Line { ifindex: uplink(rule, state)?.cast_signed(), mark: None }),
        Role::Goto(_) | Role::Target | Role::End(_) => None,
    }
}

/// The link of a rule for sockets that are bound to it.
fn uplink(rule: &Rule, state: &State) -> Option<u32> {
    let name = rule.bound_to.as_deref()?;
    state.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
}

fn has_connection(diag: &Diag, family: u8, line: Line) -> io::Result<bool> {
    let family = if family == IPV4 { AF_INET } else { AF_INET6 };
    let sockets = match diag.list_on((Protocol::Tcp, family), &[line]) {
        // As above, for TCP.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        sockets => sockets?,
    };
    Ok(sockets.iter().any(|socket| !matches!(socket.header.state, TCP_LISTEN | TCP_CLOSE)))
}
