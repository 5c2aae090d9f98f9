//! Which of several nested attachments decides: the innermost that is complete.
//!
//! The programs of nested cgroups run from the inside out. An inner one notes in the socket that it decides; an outer one
//! believes the note while the table of complete nested attachments has that cgroup. A packet shows the cgroup of its socket,
//! and a call that makes a socket of another family has the cgroup of its process: there the table is enough.
//!
//! **Invariant:** an outer attachment acts unless it has proof of a complete one inside it. Notes that are missing or name what
//! is gone prove nothing. Where nothing is nested, none of this is looked at.

use aya_ebpf::{
    btf_maps::HashMap,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
    macros::btf_map,
    programs::SkBuffContext,
};
use steer_common::{AttachmentRecord, NESTED_ATTACHMENTS, attachment_flags};

use crate::notes::{self, Socket};

#[btf_map]
static DECIDERS: HashMap<u64, u32, { NESTED_ATTACHMENTS as usize }> = HashMap::new();

/// How many levels below an attachment are looked at. In a cgroup further down it acts.
const DEPTH: u32 = 64;

/// Whether the attachment is the one to act on a socket. If it is nested, it notes that for the outer ones.
#[inline(always)]
pub(crate) fn decides(attachment: &AttachmentRecord, socket: Socket) -> bool {
    if attachment.flags & attachment_flags::HAS_INNER != 0
        && let Some(decider) = notes::decider(socket)
        && is_inside(attachment, decider)
    {
        return false;
    }
    if attachment.flags & attachment_flags::NESTED != 0 {
        notes::set_decider(socket, attachment.cgroup_id);
    }
    true
}

/// Whether the attachment is the one to act on a packet.
#[inline(always)]
pub(crate) fn decides_for_packet(attachment: &AttachmentRecord, ctx: &SkBuffContext) -> bool {
    // SAFETY: the helper takes the program's own context, and any level (Linux 4.19 for egress, 5.0 for ingress).
    !has_inner(attachment, |level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) })
}

/// Whether the attachment is the one to act on the current process, where there is no socket yet.
#[inline(always)]
pub(crate) fn decides_for_current(attachment: &AttachmentRecord) -> bool {
    // SAFETY: any level may be asked for.
    !has_inner(attachment, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whether there is a complete attachment inside this one on the way to a cgroup; `ancestor` gives the ids of that cgroup and
/// those above it by level, and 0 for levels below it.
#[inline(always)]
fn has_inner(attachment: &AttachmentRecord, ancestor: impl Fn(i32) -> u64) -> bool {
    if attachment.flags & attachment_flags::HAS_INNER == 0 {
        return false;
    }
    for below in 1..=DEPTH {
        let cgroup_id = ancestor(attachment.level.wrapping_add(below).cast_signed());
        if cgroup_id == 0 {
            break;
        }
        if is_inside(attachment, cgroup_id) {
            return true;
        }
    }
    false
}

/// Whether a cgroup, on the same way from the root as the attachment's, has a complete attachment inside this one.
#[inline(always)]
fn is_inside(attachment: &AttachmentRecord, cgroup_id: u64) -> bool {
    // SAFETY: one word, which does not change as long as the entry is there.
    unsafe { DECIDERS.get(cgroup_id) }.is_some_and(|level| *level > attachment.level)
}
