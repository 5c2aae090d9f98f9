//! Commands of steer, as a person would type them.

use steer_common::{Owner, policy_flags};

use crate::{
    kernel::PolicyEntry,
    model::{
        cgroup_path::CgroupPath,
        config::{Enforce, Existing},
        policy,
        quote::quoted,
    },
};

/// Attaches a cgroup to this policy by hand. `steer` is how this instance is called.
pub(super) fn attach(steer: &str, path: &CgroupPath, policy: &PolicyEntry) -> String {
    let mut words = vec![format!("{steer} attach {}", quoted(path.as_str()))];
    if policy.is_owned_by(Owner::Config) {
        words.push(format!("--policy {}", quoted(&policy.name())));
        return words.join(" ");
    }
    let interface = if policy.exempts() { "none".to_owned() } else { policy.interface() };
    words.push(format!("--interface {}", quoted(&interface)));
    let flags = policy.record.flags;
    // What is left out is what is done unless told otherwise.
    match policy::enforce(flags) {
        Enforce::Strict => {}
        Enforce::Steer => words.push("--enforce steer".to_owned()),
    }
    if flags & policy_flags::GUARD_INGRESS != 0 {
        words.push("--ingress uplink".to_owned());
    }
    if flags & policy_flags::REFUSE_OTHER_NETNS != 0 {
        words.push("--other-netns refuse".to_owned());
    }
    match policy::existing(flags) {
        Existing::Keep => {}
        Existing::Rebind => words.push("--existing rebind".to_owned()),
        Existing::Destroy => words.push("--existing destroy".to_owned()),
    }
    words.extend(policy.resolvers().iter().map(|resolver| format!("--dns {resolver}")));
    words.join(" ")
}

/// Detaches a cgroup.
pub(super) fn detach(steer: &str, path: &CgroupPath) -> String {
    format!("{steer} detach {}", quoted(path.as_str()))
}
