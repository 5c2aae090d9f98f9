//! What would be done with the sockets of cgroups that get a policy. Changes nothing.

use std::{collections::BTreeMap, io};

use steer_common::{Kind, Line, Mark, PolicyRecord, Verdict, policy_flags};

use super::decision::{self, Action, Method};
use crate::{
    apply::resolve,
    host::{
        cgroup::Found,
        sockets::{
            diag::{self, Diag},
            read_host,
        },
    },
    model::spec::Existing,
};

/// Cgroups that get a policy.
#[derive(Debug)]
pub struct Coming {
    /// The policy as it will be. `None`: nothing steers them then.
    pub policy: Option<PolicyRecord>,
    /// Those whose sockets it decides about.
    pub cgroups: Vec<Found>,
}

/// The sockets of these cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// How many are open.
    pub sockets: usize,
    /// How many are bound to the uplink, and destroyed. `None`: it is not known before the change.
    pub treated: Option<(usize, usize)>,
}

/// Finds the open sockets of each, in the network namespace of the calling thread.
pub fn foresee(coming: &[Coming], netns_cookie: u64) -> io::Result<Vec<Foreseen>> {
    let (diag, host) = (Diag::open()?, read_host()?);
    let methods: Vec<_> = coming.iter().map(|coming| method(coming.policy.as_ref()?, netns_cookie)).collect();
    let start = |method: &Option<_>| Foreseen { sockets: 0, treated: method.is_some().then_some((0, 0)) };
    let mut foreseen: Vec<_> = methods.iter().map(start).collect();
    let each = coming.iter().enumerate();
    let index: BTreeMap<u64, usize> =
        each.flat_map(|(index, coming)| coming.cgroups.iter().map(move |cgroup| (cgroup.id, index))).collect();
    for kind in diag::KINDS {
        for socket in diag.list(kind)? {
            let Some(&index) = index.get(&socket.cgroup_id) else { continue };
            foreseen[index].sockets += 1;
            let Some(((existing, method), (bound, destroyed))) =
                methods[index].as_ref().zip(foreseen[index].treated.as_mut())
            else {
                continue;
            };
            match decision::decide(&socket, *existing, method, &host) {
                Some(Action::Steer) => *bound += 1,
                Some(Action::Destroy) => *destroyed += 1,
                None => {}
            }
        }
    }
    Ok(foreseen)
}

/// How a policy treats older sockets. `None`: its groups and routes are chosen only when it is in force.
fn method(policy: &PolicyRecord, netns_cookie: u64) -> Option<(Existing, Method)> {
    let mut existing = resolve::existing(policy.flags);
    if policy.kind != Kind::Steer as u32 || policy.netns_cookie != netns_cookie {
        existing = Existing::Keep;
    }
    if existing != Existing::Keep && (policy.uplink != 0 || policy.flags & policy_flags::PASSES != 0) {
        return None;
    }
    let line = Line::of(policy);
    let mark = match steer_common::decide(Some(policy), line, netns_cookie) {
        Verdict::Mark(mark) => mark,
        _ => Mark { value: 0, mask: policy.mark_mask },
    };
    Some((existing, Method { uplink: line.ifindex, others: Vec::new(), mark, passes: Vec::new() }))
}
