//! A separate object, attached only while `steer top` runs. It counts the sockets and packets of steered cgroups.
//!
//! **Invariant:** the programs only count. They never change or stop a socket or a packet.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the entry points that the attribute macros make"
)]
#![expect(clippy::inline_always, reason = "calls are expensive for the verifier and the CPU")]

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

/// The socket or the packet passes.
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

/// This CPU's count of `key`, created if missing. Another program that interrupts on this CPU may lose a count.
#[inline(always)]
fn count<'a, K, V>(map: &'static LruPerCpuHashMap<K, V, { ENTRIES as usize }>, key: &K, none: &V) -> Option<&'a mut V> {
    let found = map.get_ptr_mut(key).or_else(|| {
        map.insert(key, none, BPF_NOEXIST.into()).ok()?;
        map.get_ptr_mut(key)
    })?;
    // SAFETY: this CPU's own element, valid while the program runs.
    Some(unsafe { &mut *found })
}
