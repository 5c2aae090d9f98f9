//! sock_ops, for policies with a group of uplinks: counts which connections are answered and which are not, for each member and family,
//! and raises an alarm when many fail.
//!
//! The kernel calls the program for time-outs, and for the end of an attempt, only on sockets for which it has asked for that. A
//! connection that carries data causes no call. One that an exception leads to another link counts for the member of its socket.
//!
//! **Invariant:** the program counts, and changes nothing. It is not attached for policies without a group.

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
    },
    btf_maps::{HashMap, PerCpuHashMap, RingBuf},
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{btf_map, sock_ops},
    programs::SockOpsContext,
};
use steer_common::{
    AddressWords, Kind, Line, is_mapped, mapped,
    traffic::{
        self, ALARMS_BYTES, AlarmRecord, FailuresByPort, FailuresRecord, PORT_CLASSES, TRAFFIC_ENTRIES, TrafficRecord,
    },
    uplink::{Family, MEMBERS},
};

use crate::{attachment, destination, nesting, notes, policy, socket, uplink};

#[btf_map]
static TRAFFIC: PerCpuHashMap<u32, TrafficRecord, { TRAFFIC_ENTRIES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

#[btf_map]
static FAILURES: HashMap<u32, FailuresByPort, { TRAFFIC_ENTRIES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static ALARMS: RingBuf<AlarmRecord, { ALARMS_BYTES as usize }> = RingBuf::new();

/// In memory of its own: on the stack, it would be written byte by byte, which the verifier would follow each time.
static NO_FAILURES: FailuresByPort =
    [FailuresRecord { success_ns: 0, failure_ns: 0, alarm_ns: 0, destinations: 0, failures: 0, reserved: 0 };
        PORT_CLASSES];

/// The kernel continues, with its own defaults.
const CONTINUE: u32 = 1;
const AF_INET: u32 = 2;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
/// Without a failure meanwhile, a success is not written again within this time: CPUs would take turns with the same line of their caches.
const SUCCESS_PERIOD_NS: u64 = 50_000_000;

#[sock_ops]
pub fn traffic(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if Connection::of(&ctx).is_some() {
                ask(&ctx, BPF_SOCK_OPS_RTO_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG, 0);
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if let Some(connection) = Connection::of(&ctx) {
                // Its end says nothing any more.
                ask(&ctx, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG);
                connection.answered();
            }
        }
        BPF_SOCK_OPS_RTO_CB => {
            if let Some(connection) = Connection::of(&ctx) {
                connection.timed_out(&ctx);
            }
        }
        // An attempt that ends before the first time-out, without a segment from the other side: by a router's message that there is
        // no way, or because the program has no use for it any more.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == SYN_SENT && ctx.arg(1) == CLOSE && is_silent(&ctx) => {
            if let Some(connection) = Connection::of(&ctx) {
                connection.ended();
            }
        }
        _ => {}
    }
    CONTINUE
}

/// Asks the kernel for calls, besides those that other programs have asked for.
#[inline(always)]
fn ask(ctx: &SockOpsContext, flags: u32, superfluous: u32) {
    let wanted = ctx.cb_flags() & !superfluous | flags;
    // It fails only for a socket without a connection.
    ctx.set_cb_flags(wanted.cast_signed()).ok();
}

/// Whether no segment has come, and none was sent twice.
#[inline(always)]
fn is_silent(ctx: &SockOpsContext) -> bool {
    // SAFETY: four byte loads of the context (Linux 4.16).
    unsafe { (*ctx.ops).segs_in == 0 && (*ctx.ops).total_retrans == 0 }
}

/// A connection by a member of a group.
struct Connection {
    /// The member and the family.
    key: u32,
    /// Its class of ports.
    class: usize,
    peer: AddressWords,
}

impl Connection {
    /// `None`: its policy has no group, or leaves it alone, or it is on no member, or goes to this host.
    #[inline(always)]
    fn of(ctx: &SockOpsContext) -> Option<Self> {
        // SAFETY: an eight byte load of the context (Linux 5.3).
        let socket: *mut bpf_sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
        if socket.is_null() {
            return None;
        }
        let attachment = attachment::current();
        let policy = policy::get(attachment.policy)?;
        if policy.uplink == 0 || policy.kind != Kind::Steer as u32 || !nesting::decides(&attachment, socket.cast()) {
            return None;
        }
        let line = Line { ifindex: socket::bound(socket), mark: socket::marked(socket) };
        let member = uplink::member_of(policy, line);
        let peer = peer(ctx);
        if member >= MEMBERS || destination::is_loopback(&peer) || notes::is_noted_left(socket.cast(), policy) {
            return None;
        }
        let family = if is_mapped(&peer) { Family::V4 } else { Family::V6 };
        Some(Self { key: traffic::key(policy.uplink, member, family), class: traffic::port_class(port(ctx)), peer })
    }

    #[inline(always)]
    fn answered(&self) {
        self.count(|record| record.established += 1);
        let now_ns = now_ns();
        if let Some(failures) = self.failures(self.key)
            && (failures.failure_ns >= failures.success_ns
                || now_ns.wrapping_sub(failures.success_ns) >= SUCCESS_PERIOD_NS)
        {
            failures.success_ns = now_ns;
        }
    }

    /// After a time-out, the kernel sends again. It says how often it has done so since the last answer.
    #[inline(always)]
    fn timed_out(&self, ctx: &SockOpsContext) {
        // SAFETY: a four byte load of the context.
        let is_attempt = unsafe { (*ctx.ops).state } == SYN_SENT;
        let is_first = ctx.arg(0) == 0;
        self.count(|record| {
            record.timeouts += 1;
            record.unanswered += u64::from(is_attempt && is_first);
        });
        // A single segment of a connection may be lost.
        if is_attempt || !is_first {
            self.failed(0);
        }
    }

    /// Programs that try both families at once end one attempt when the other is answered.
    #[inline(always)]
    fn ended(&self) {
        self.count(|record| record.unanswered += 1);
        let other = self.failures(self.key ^ 1).map_or(0, |failures| failures.success_ns);
        self.failed(other);
    }

    #[inline(always)]
    fn failed(&self, other_success_ns: u64) {
        let Some(failures) = self.failures(self.key) else { return };
        let now_ns = now_ns();
        let success_ns = failures.success_ns.max(other_success_ns);
        // Another CPU may write at the same moment. That loses a failure.
        if !failures.add(now_ns, success_ns, &self.peer) {
            return;
        }
        // If it is full, no agent reads it.
        if let Some(mut entry) = ALARMS.reserve(0) {
            entry.write(AlarmRecord { boottime_ns: now_ns, key: self.key, failures: failures.failures });
            entry.submit(0);
        }
    }

    #[inline(always)]
    fn count(&self, add: impl FnOnce(&mut TrafficRecord)) {
        let record = TRAFFIC.get_ptr_mut(self.key).or_else(|| {
            TRAFFIC.insert(self.key, TrafficRecord::default(), BPF_NOEXIST.into()).ok();
            TRAFFIC.get_ptr_mut(self.key)
        });
        if let Some(record) = record {
            // SAFETY: this CPU's own element, which stays while the program runs. Another program that interrupts may lose a count.
            add(unsafe { &mut *record });
        }
    }

    /// The failures of a member and family on the ports of this class.
    #[inline(always)]
    fn failures(&self, key: u32) -> Option<&'static mut FailuresRecord> {
        let by_port = FAILURES.get_ptr_mut(key).or_else(|| {
            FAILURES.insert(key, NO_FAILURES, BPF_NOEXIST.into()).ok();
            FAILURES.get_ptr_mut(key)
        })?;
        // SAFETY: the element stays while the program runs. Other CPUs write the same words; each is valid by itself.
        unsafe { &mut *by_port }.get_mut(self.class)
    }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: no arguments (Linux 5.8).
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The address of the other side. All loads are made, and volatile: of several, the compiler would make one with a computed address, which
/// the verifier refuses.
#[inline(always)]
fn peer(ctx: &SockOpsContext) -> AddressWords {
    // SAFETY: a four byte load of the context.
    let v4 = unsafe { (&raw const (*ctx.ops).remote_ip4).read_volatile() };
    // SAFETY: four byte loads of the context, one for each word.
    let word = |index: usize| unsafe { (&raw const (*ctx.ops).remote_ip6[index]).read_volatile() };
    let v6 = [word(0), word(1), word(2), word(3)];
    if ctx.family() == AF_INET { mapped(v4) } else { v6 }
}

/// The port of the server, which is this side of an accepted connection. A client has a port above those of servers.
#[inline(always)]
fn port(ctx: &SockOpsContext) -> u32 {
    // The context has it as a word in network byte order.
    u32::from_be(ctx.remote_port()).min(ctx.local_port())
}
