//! Explains why the kernel refused a link.

use std::{io, os::fd::AsFd as _};

use aya_obj::generated::{BPF_F_ALLOW_MULTI, bpf_attach_type};

use super::{Error, bpf, object};
use crate::host::cgroup::{Cgroup, Hierarchy};

/// Whether this architecture's kernel cannot attach programs to kernel functions, which includes security hooks (arm64
/// before Linux 6.4).
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP))
}

/// The error for a refused link. It names the attachment that forbids others, if that is the cause.
pub(super) fn refused(hook: &'static object::Hook, hierarchy: &Hierarchy, cgroup: &Cgroup, source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => exclusive_owner(hook.attach_type, hierarchy, cgroup)
            .unwrap_or_else(|| " (needs CAP_BPF and CAP_NET_ADMIN)".to_owned()),
        Some(libc::EINVAL) => {
            " (this kernel has no links for this hook; Linux 5.10 is the oldest that steer supports)".to_owned()
        }
        _ => String::new(),
    };
    Error::Attach { program: hook.name, cgroup: cgroup.path.to_string(), source, hint }
}

/// Finds the attachment without `BPF_F_ALLOW_MULTI`, on the cgroup or above it, that forbids all others.
fn exclusive_owner(hook: bpf_attach_type, hierarchy: &Hierarchy, cgroup: &Cgroup) -> Option<String> {
    let ancestors = cgroup.path.ancestors();
    std::iter::once(cgroup.path.clone()).chain(ancestors).find_map(|path| {
        let holder = hierarchy.open(&path).ok()?;
        let attached = bpf::query(holder.fd(), hook).ok()?;
        let id = *attached.program_ids.first()?;
        if attached.flags & BPF_F_ALLOW_MULTI != 0 {
            return None;
        }
        let program = bpf::program_by_id(id).and_then(|program| bpf::program_info(program.as_fd()));
        let who = program.map_or_else(
            |_| format!("program {id}"),
            |program| format!("program {id} {:?}, loaded by user {}", program.name, program.uid),
        );
        Some(format!(
            " ({who}, is attached to {path} in a way that forbids any other, as `ip vrf exec` does; detach it with `bpftool \
             cgroup detach`, or steer a cgroup that is not below {path})"
        ))
    })
}
