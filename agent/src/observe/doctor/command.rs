//! Commands of steer for a shell.

use steer_common::Owner;

use crate::{
    apply::resolve,
    kernel::PolicyEntry,
    model::{cgroup_path::CgroupPath, quote::quoted, spec::PolicySpec},
};

/// Attaches a cgroup to this policy manually. `steer` is the command for this instance, and `defaults` are those of the configuration.
pub(super) fn attach(steer: &str, defaults: &PolicySpec, path: &CgroupPath, policy: &PolicyEntry) -> String {
    let mut words = vec![format!("{steer} attach {}", quoted(path.as_str()))];
    if policy.is_owned_by(Owner::Config) {
        words.push(format!("--policy {}", quoted(&policy.name())));
        return words.join(" ");
    }
    let spec = resolve::target(&policy.record, &policy.exceptions).spec().brief(defaults);
    words.extend(spec.options().map(|(option, value)| format!("--{option} {}", quoted(&value))));
    words.join(" ")
}

/// Detaches a cgroup.
pub(super) fn detach(steer: &str, path: &CgroupPath) -> String {
    format!("{steer} detach {}", quoted(path.as_str()))
}
