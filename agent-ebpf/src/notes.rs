//! Notes in a socket's storage: which nested attachment decides about the socket, its network namespace if the policy
//! leaves it alone for that, and the name server that its program asked.
//!
//! A socket made from another socket, such as an accepted connection, starts with a copy of the note.
//!
//! **Invariant:** a note allows nothing by itself. The reader compares it with the records in force.

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    macros::btf_map,
};
use steer_common::{AddressWords, Counter, Line, PolicyRecord, SocketRecord, Verdict, decide};

/// A map definition as the loader reads it from BTF. The wrapper of `aya_ebpf` has no `BPF_F_CLONE`.
#[repr(C)]
struct Definition {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketRecord,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the loader reads the definition; programs only take its address.
unsafe impl Sync for Definition {}

#[btf_map]
static SOCKETS: Definition = Definition {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

/// What a program passes as the socket: the socket, or the context of `sock_create`, which stands for it (Linux 5.3).
pub(crate) type Socket = *mut core::ffi::c_void;

#[inline(always)]
fn record<'a>(socket: Socket, flags: u64) -> Option<&'a mut SocketRecord> {
    // SAFETY: the caller passes what represents a socket in its program.
    let record =
        unsafe { bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), socket, core::ptr::null_mut(), flags) };
    // SAFETY: null, or the storage of this map in that socket, valid while the program runs.
    unsafe { record.cast::<SocketRecord>().as_mut() }
}

/// The record, created if missing; `None` if there is no memory for it.
#[inline(always)]
fn make<'a>(socket: Socket) -> Option<&'a mut SocketRecord> {
    record(socket, BPF_SK_STORAGE_GET_F_CREATE.into())
}

/// Id of the cgroup whose attachment wrote the note that it decides; 0 is none.
#[inline(always)]
pub(crate) fn decider(socket: Socket) -> Option<u64> {
    record(socket, 0).map(|record| record.decider)
}

/// Notes which cgroup's attachment decides. If this fails, the next outer attachment decides as well.
#[inline(always)]
pub(crate) fn set_decider(socket: Socket, cgroup_id: u64) {
    if let Some(record) = make(socket) {
        record.decider = cgroup_id;
    }
}

/// Notes the network namespace of a socket that is left alone for it, for programs that may not ask the kernel. If this
/// fails, a guard stops the socket's packets.
#[inline(always)]
pub(crate) fn set_netns(socket: Socket, netns_cookie: u64) {
    if let Some(record) = make(socket) {
        record.netns_cookie = netns_cookie;
    }
}

/// Whether the policy leaves the socket of a program alone because of its network namespace. `may_ask` is the constant that
/// states whether this program may ask the kernel for it. Otherwise the note counts, which sockets that are older than the
/// attachment do not have before a call writes it.
#[inline(always)]
pub(crate) fn is_left(
    ctx: &impl EbpfContext,
    may_ask: &Global<u8>,
    socket: Socket,
    policy: Option<&PolicyRecord>,
) -> bool {
    let cookie = if may_ask.load() == 0 {
        record(socket, 0).map_or(0, |record| record.netns_cookie)
    } else {
        // SAFETY: the helper takes the program's own context. The loader has found that this kernel has it here.
        unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
    };
    cookie != 0 && decide(policy, Line::CLOSED, cookie) == Verdict::Leave(Counter::LeftNetns)
}

/// Whether the policy leaves the socket alone because of its network namespace, as far as a note tells.
#[inline(always)]
pub(crate) fn is_noted_left(socket: Socket, policy: &PolicyRecord) -> bool {
    let cookie = record(socket, 0).map_or(0, |record| record.netns_cookie);
    cookie != 0 && decide(Some(policy), Line::CLOSED, cookie) == Verdict::Leave(Counter::LeftNetns)
}

/// Notes the name server that a program asked through this socket.
#[inline(always)]
pub(crate) fn remember_asked(socket: Socket, asked: &AddressWords) {
    if let Some(record) = make(socket) {
        record.asked = *asked;
    }
}

/// The noted name server, if any.
#[inline(always)]
pub(crate) fn asked(socket: Socket) -> Option<AddressWords> {
    let asked = record(socket, 0)?.asked;
    (asked[0] | asked[1] | asked[2] | asked[3] != 0).then_some(asked)
}
