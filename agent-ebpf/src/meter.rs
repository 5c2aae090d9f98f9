//! An object of its own, attached only as long as `steer top` looks: it counts what the processes of steered cgroups make and
//! send.
//!
//! **Invariant:** it only counts: every socket and every packet goes on as if it were not there.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the entry points that the attribute macros make"
)]
#![expect(clippy::inline_always, reason = "a call is what the verifier and the CPU find dear")]

mod runtime;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::LruPerCpuHashMap,
    helpers::generated::{bpf_get_current_cgroup_id, bpf_skb_cgroup_id},
    macros::{btf_map, cgroup_skb, cgroup_sock},
    programs::{SkBuffContext, SockContext},
};
use steer_common::meter::{ENTRIES, TrafficKey, TrafficRecord};

#[btf_map]
static METER_SOCKETS: LruPerCpuHashMap<u64, u64, { ENTRIES as usize }> = LruPerCpuHashMap::new();

#[btf_map]
static METER_TRAFFIC: LruPerCpuHashMap<TrafficKey, TrafficRecord, { ENTRIES as usize }> = LruPerCpuHashMap::new();

/// The socket or the packet goes on.
const ALLOW: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn meter_sockets(_: SockContext) -> i32 {
    // SAFETY: no arguments (Linux 4.18).
    let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    if let Some(sockets) = count(&METER_SOCKETS, &cgroup_id, &0) {
        *sockets += 1;
    }
    ALLOW
}

#[cgroup_skb(egress)]
pub fn meter_packets(ctx: SkBuffContext) -> i32 {
    // SAFETY: the helper takes the program's own context (Linux 4.18).
    let cgroup_id = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    // SAFETY: a four byte load of the context.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: the same (Linux 5.1).
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    let key = TrafficKey { cgroup_id, ifindex, padding: 0 };
    if let Some(traffic) = count(&METER_TRAFFIC, &key, &TrafficRecord { packets: 0, bytes: 0 }) {
        traffic.packets += u64::from(segments.max(1));
        traffic.bytes += u64::from(ctx.len());
    }
    ALLOW
}

/// This CPU's count of `key`, made if it is not there. A program that runs in between on the same CPU may cost a count.
#[inline(always)]
fn count<'a, K, V>(map: &'static LruPerCpuHashMap<K, V, { ENTRIES as usize }>, key: &K, none: &V) -> Option<&'a mut V> {
    let found = map.get_ptr_mut(key).or_else(|| {
        map.insert(key, none, BPF_NOEXIST.into()).ok()?;
        map.get_ptr_mut(key)
    })?;
    // SAFETY: this CPU's own element, there as long as the program runs.
    Some(unsafe { &mut *found })
}
