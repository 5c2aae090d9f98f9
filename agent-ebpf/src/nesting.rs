//! Which of several nested attachments decides: the innermost that is complete.
//!
//! The programs of nested cgroups run from the inside out. An inner program notes in the socket that it decides. An outer
//! program accepts the note while the table of complete nested attachments has that cgroup. A packet shows the cgroup of
//! its socket, and a call that makes a socket of another family has the cgroup of its process: there the table is enough.
//!
//! **Invariant:** an outer attachment acts unless the table proves a complete attachment inside it. A note that is missing
//! or names a removed attachment proves nothing. Attachments without nesting skip all of this.

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

/// How many levels below an attachment are checked. For a cgroup further down the attachment acts.
const DEPTH: u32 = 64;

/// Whether the attachment acts on a socket. If it is nested, it notes this for the outer attachments.
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

/// Whether the attachment acts on a packet.
#[inline(always)]
pub(crate) fn decides_for_packet(attachment: &AttachmentRecord, ctx: &SkBuffContext) -> bool {
    // SAFETY: the helper takes the program's own context, and any level (Linux 4.19 for egress, 5.0 for ingress).
    !has_inner(attachment, |level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) })
}

/// Whether the attachment acts on the current process, before a socket exists.
#[inline(always)]
pub(crate) fn decides_for_current(attachment: &AttachmentRecord) -> bool {
    // SAFETY: the helper accepts any level.
    !has_inner(attachment, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whether a complete attachment lies between this one and a cgroup. `ancestor` returns, by level, the ids of that cgroup
/// and those above it, and 0 for levels below it.
#[inline(always)]
fn has_inner(attachment: &AttachmentRecord, ancestor: impl Fn(i32) -> u64) -> bool {
    if attachment.flags & attachment_flags::HAS_INNER == 0 {
        return false;
    }
    #[expect(clippy::range_plus_one, reason = "an inclusive range has a flag more, which the verifier walks both ways")]
    for below in 1..DEPTH + 1 {
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

/// Whether a cgroup on the same path from the root as the attachment's has a complete attachment inside this one.
#[inline(always)]
fn is_inside(attachment: &AttachmentRecord, cgroup_id: u64) -> bool {
    // SAFETY: one word, which does not change while the entry exists.
    unsafe { DECIDERS.get(cgroup_id) }.is_some_and(|level| *level > attachment.level)
}
