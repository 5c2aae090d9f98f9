//! Explains why the kernel refused a link.

use std::{cell::RefCell, collections::BTreeSet, io};

use aya_obj::generated::{BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE, bpf_attach_type};

use super::{Error, bpf, object, others};
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

/// The cgroups, by id, and hooks below which a program switches off none of another tool. Valid while the lock is held.
#[derive(Debug, Default)]
pub(super) struct Cleared(RefCell<BTreeSet<(u64, &'static str)>>);

impl Cleared {
    /// Forgets all of it.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().clear();
    }

    /// Refuses to attach programs that would switch off one of another tool. The kernel runs a program with
    /// `BPF_F_ALLOW_OVERRIDE` only for cgroups that have no program of their own on the hook, themselves or between.
    pub(super) fn check<'h>(
        &self,
        hooks: impl IntoIterator<Item = &'h object::Hook>,
        hierarchy: &Hierarchy,
        cgroup: &Cgroup,
    ) -> Result<(), Error> {
        let Some(parent) = cgroup.path.parent() else { return Ok(()) };
        let parent = hierarchy.open(&parent)?;
        let mut cleared = self.0.borrow_mut();
        // Programs on security hooks are always links, which override nothing.
        let hooks = hooks.into_iter().filter(|hook| !hook.is_optional());
        let unknown: Vec<_> = hooks.filter(|hook| !cleared.contains(&(parent.id, hook.name))).collect();
        // An older kernel lacks some hooks.
        let runs =
            |hook: &object::Hook| bpf::count_effective(parent.fd(), hook.attach_type).is_ok_and(|count| count > 0);
        let mut undecided = unknown.clone();
        undecided.retain(|hook| runs(hook));
        for path in parent.path.self_and_ancestors() {
            if undecided.is_empty() {
                break;
            }
            let holder = hierarchy.open(&path)?;
            let mut still = Vec::new();
            for hook in undecided {
                let attached = bpf::query(holder.fd(), hook.attach_type).ok();
                match attached.and_then(|attached| Some((*attached.program_ids.first()?, attached.flags))) {
                    None => still.push(hook),
                    // The programs of the nearest cgroup decide.
                    Some((id, flags)) if flags & (BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI) == BPF_F_ALLOW_OVERRIDE => {
                        let (program, cgroup) = (hook.name, cgroup.path.clone());
                        return Err(Error::Overrides { program, cgroup, owner: others::described(id), holder: path });
                    }
                    Some(_) => {}
                }
            }
            undecided = still;
        }
        cleared.extend(unknown.iter().map(|hook| (parent.id, hook.name)));
        Ok(())
    }
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
        let who = others::described(id);
        Some(format!(
            " ({who}, is attached to {path} in a way that forbids any other, as `ip vrf exec` does; detach it with `bpftool \
             cgroup detach`, or steer a cgroup that is not below {path})"
        ))
    })
}
