//! What is noted in a socket's storage: which of several nested attachments acts on it, that it is another network namespace's
//! and is left alone, and which name server its program has asked.
//!
//! An attachment that has others above it notes that it decides; the others, whose programs run after it, see that and leave the
//! socket alone, as long as that attachment is still there. Neither the note nor the look at it happens where nothing is nested.
//!
//! **Invariant:** a note that cannot be made, or of an attachment that is gone, lets the outer policy act: never nobody.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{HashMap, SkStorage},
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_sk_storage_get},
    macros::btf_map,
    programs::SockContext,
};
use steer_common::{AddressWords, AttachmentRecord, NESTED_ATTACHMENTS, SocketRecord, attachment_flags};

#[btf_map]
static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();

#[btf_map]
static DECIDERS: HashMap<u64, u32, { NESTED_ATTACHMENTS as usize }> = HashMap::new();

/// Levels of the hierarchy that are looked at.
const DEPTH: i32 = 64;

#[inline(always)]
fn record<'a>(socket: *mut core::ffi::c_void, flags: u64) -> Option<&'a mut SocketRecord> {
    // SAFETY: the caller passes a socket, or the context of sock_create, which stands for one (Linux 5.3).
    let record =
        unsafe { bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), socket, core::ptr::null_mut(), flags) };
    // SAFETY: null, or the storage of this map in that socket, for as long as the program runs.
    unsafe { record.cast::<SocketRecord>().as_mut() }
}

/// Whether this attachment's policy is the one to act on the socket.
#[inline(always)]
pub(crate) fn decides(attachment: &AttachmentRecord, socket: *mut bpf_sock) -> bool {
    if attachment.flags & attachment_flags::HAS_INNER != 0
        && let Some(record) = record(socket.cast(), 0)
    {
        let decider = record.decider;
        // SAFETY: the value is not used.
        if decider != attachment.cgroup_id && unsafe { DECIDERS.get(decider) }.is_some() {
            return false;
        }
    }
    if attachment.flags & attachment_flags::NESTED != 0
        && let Some(record) = record(socket.cast(), BPF_SK_STORAGE_GET_F_CREATE.into())
    {
        record.decider = attachment.cgroup_id;
    }
    true
}

/// Whether this attachment's policy is the one to act on the current process, where there is no socket yet: not if its cgroup,
/// or one between that and this attachment's, has another one. In one that is further down than this looks, it is.
#[inline(always)]
pub(crate) fn decides_for_current(attachment: &AttachmentRecord) -> bool {
    if attachment.flags & attachment_flags::HAS_INNER == 0 {
        return true;
    }
    for level in (0..DEPTH).rev() {
        // SAFETY: any level may be asked for; 0 is the answer where there is no cgroup.
        let cgroup_id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup_id == attachment.cgroup_id {
            return true;
        }
        // SAFETY: one word, which may change at any time.
        if unsafe { DECIDERS.get(cgroup_id) }.is_some_and(|attached| *attached != 0) {
            return false;
        }
    }
    true
}

/// Notes that a new socket belongs to another network namespace and is left alone. Where that cannot be noted, a guard
/// stops its packets.
#[inline(always)]
pub(crate) fn leave_netns(ctx: &SockContext) {
    if let Some(record) = record(ctx.as_ptr(), BPF_SK_STORAGE_GET_F_CREATE.into()) {
        record.left_netns = 1;
    }
}

/// Notes which attachment decides about a new socket, where nothing else of its policy would before another's guard acts.
#[inline(always)]
pub(crate) fn note_decider(ctx: &SockContext, attachment: &AttachmentRecord) {
    if let Some(record) = record(ctx.as_ptr(), BPF_SK_STORAGE_GET_F_CREATE.into()) {
        record.decider = attachment.cgroup_id;
    }
}

/// Remembers the name server that a program has asked by this socket.
#[inline(always)]
pub(crate) fn remember_asked(socket: *mut bpf_sock, asked: &AddressWords) {
    if let Some(record) = record(socket.cast(), BPF_SK_STORAGE_GET_F_CREATE.into()) {
        record.asked = *asked;
    }
}

/// That name server, if there was one.
#[inline(always)]
pub(crate) fn asked(socket: *mut bpf_sock) -> Option<AddressWords> {
    let asked = record(socket.cast(), 0)?.asked;
    (asked[0] | asked[1] | asked[2] | asked[3] != 0).then_some(asked)
}

/// Whether a socket is another network namespace's, as noted when it was made.
#[inline(always)]
pub(crate) fn is_left(socket: *mut bpf_sock) -> bool {
    record(socket.cast(), 0).is_some_and(|record| record.left_netns != 0)
}
