//! Definitions that the kernel side and the agent share: map names and sizes, the records in the maps, the counters, and
//! the decision about a new socket. The decision needs no kernel helper, so it is here and is tested on the host.
//!
//! **Invariant:** every value a map can hold decodes, and every value that is not a complete policy decodes to *closed*.
//! Raise [`ABI_VERSION`] when you change the size or meaning of anything here.
#![no_std]
#![cfg_attr(not(feature = "user"), deny(unsafe_code))]
#![expect(clippy::inline_always, reason = "calls are expensive for the verifier and the CPU")]

pub mod account;
pub mod address;
pub mod counter;
pub mod decision;
pub mod event;
pub mod family;
pub mod meter;
pub mod offsets;
pub mod option;
pub mod reach;
pub mod record;
pub mod resolver;
pub mod traffic;
pub mod uplink;
pub mod verifier;

pub use address::{AddressWords, MAPPED_WORD, is_mapped, mapped};
pub use counter::{COUNTERS, Counter, CounterRecord};
pub use decision::{Mark, Verdict, decide, is_asked, is_settled, is_uplink, observes};
pub use event::{EventRecord, LimitKey, LimitRecord, Peer};
pub use offsets::{CompatOffsets, Offsets};
pub use reach::{ExceptionKey, ExceptionRecord, PassKey};
pub use record::{
    AttachmentRecord, CLOSED_IFINDEX, Kind, Owner, PolicyRecord, SocketRecord, attachment_flags, policy_flags,
};
pub use uplink::{Line, UPLINK_SLOTS, UplinkRecord};

/// Entries of [`map::DECIDERS`].
pub const NESTED_ATTACHMENTS: u32 = 65_536;
/// Entries of [`map::STEERED`].
pub const STEERED_CGROUPS: u32 = 65_536;

/// Entries of [`map::PASSES`].
pub const PASSES: u32 = 262_144;
/// Entries of [`map::EXCEPTIONS`].
pub const EXCEPTIONS: u32 = 65_536;

/// The version of this crate's interface. Pinned state of another version is never read, only replaced.
pub const ABI_VERSION: u32 = 12;

/// Slots in [`map::POLICIES`]. Slot 0 is never used: an empty [`AttachmentRecord`] names it.
pub const POLICY_SLOTS: u32 = 4096;

/// Names of the maps, as in the object file and below the pin directory.
pub mod map {
    /// Array of [`PolicyRecord`](crate::PolicyRecord), by policy slot.
    pub const POLICIES: &str = "POLICIES";
    /// Cgroup storage of [`AttachmentRecord`](crate::AttachmentRecord), by cgroup id (`u64`), shared by all programs
    /// attached to that cgroup (Linux 5.9).
    pub const ATTACHMENTS: &str = "ATTACHMENTS";
    /// Per-CPU array of [`CounterRecord`](crate::CounterRecord), by policy slot.
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash of the ids of cgroups that have a complete attachment inside another one. The value is its
    /// [`level`](crate::AttachmentRecord::level).
    pub const DECIDERS: &str = "DECIDERS";
    /// Hash of the policy slot of every attached cgroup, by cgroup id (`u64`), for the program that runs for no cgroup.
    pub const STEERED: &str = "STEERED";
    /// Socket storage of [`SocketRecord`](crate::SocketRecord).
    pub const SOCKETS: &str = "SOCKETS";
    /// Ring buffer of [`EventRecord`](crate::EventRecord), and of [`NewsRecord`](crate::event::NewsRecord).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU hash of [`LimitRecord`](crate::LimitRecord), by [`LimitKey`](crate::LimitKey).
    pub const EVENT_LIMITS: &str = "EVENT_LIMITS";
    /// Per-CPU hash of `u64`, by [`LimitKey`](crate::LimitKey) with the id of the attachment's cgroup: how often the attachment has stopped
    /// something.
    pub const STOPPED: &str = "STOPPED";
    /// Longest prefix trie of what may pass on links other than the uplink, by [`PassKey`](crate::PassKey). The value is 1, or 0
    /// where a shorter prefix would let it pass.
    pub const PASSES: &str = "PASSES";
    /// Hash of [`ExceptionRecord`](crate::ExceptionRecord), by [`ExceptionKey`](crate::ExceptionKey). For the agent: the exceptions of
    /// each policy as written.
    pub const EXCEPTIONS: &str = "EXCEPTIONS";
    /// Array of [`UplinkRecord`](crate::UplinkRecord), by uplink slot.
    pub const UPLINKS: &str = "UPLINKS";
    /// Per-CPU hash of [`TrafficRecord`](crate::traffic::TrafficRecord), by [`traffic::key`](crate::traffic::key).
    pub const TRAFFIC: &str = "TRAFFIC";
    /// Hash of [`FailuresByPort`](crate::traffic::FailuresByPort), by the same key.
    pub const FAILURES: &str = "FAILURES";
    /// Ring buffer of [`AlarmRecord`](crate::traffic::AlarmRecord).
    pub const ALARMS: &str = "ALARMS";
    /// Per-CPU hash of [`AccountRecord`](crate::account::AccountRecord), by [`AccountKey`](crate::account::AccountKey).
    pub const ACCOUNT: &str = "ACCOUNT";
    /// All of them, in the order they are pinned.
    pub const ALL: [&str; 16] = [
        POLICIES,
        ATTACHMENTS,
        COUNTERS,
        DECIDERS,
        STEERED,
        SOCKETS,
        EVENTS,
        EVENT_LIMITS,
        STOPPED,
        PASSES,
        EXCEPTIONS,
        UPLINKS,
        TRAFFIC,
        FAILURES,
        ALARMS,
        ACCOUNT,
    ];
}

/// Names of the programs, as in the object file and below the pin directory.
pub mod program {
    /// `cgroup/sock_create`: binds.
    pub const SOCK_CREATE: &str = "sock_create";
    /// `cgroup/connect4`: restores a lost binding, and redirects a DNS query to the policy's resolver.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "connect6";
    /// `cgroup/sendmsg4`: the same for unconnected UDP sockets, and stops the datagram.
    pub const SENDMSG4: &str = "sendmsg4";
    /// `cgroup/sendmsg6`.
    pub const SENDMSG6: &str = "sendmsg6";
    /// `cgroup/recvmsg4`: gives an answer the address of the server that was asked.
    pub const RECVMSG4: &str = "recvmsg4";
    /// `cgroup/recvmsg6`.
    pub const RECVMSG6: &str = "recvmsg6";
    /// `cgroup/getpeername4`: the same for the peer.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6`.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// Constant of the setsockopt program: 1 where it may read which process calls (Linux 6.1).
    pub const SETSOCKOPT_KNOWS_TASK: &str = "SETSOCKOPT_KNOWS_TASK";
    /// Constant of the egress program: 1 where it may read the id and the cgroup of the running process (Linux 6.12).
    pub const EGRESS_KNOWS_PID: &str = "EGRESS_KNOWS_PID";
    /// Constant of the egress program: 1 where it may also read the name of the process (Linux 7.3).
    pub const EGRESS_KNOWS_COMM: &str = "EGRESS_KNOWS_COMM";
    /// Constant of the egress and ingress programs: 1 where they may read the network namespace of a packet's socket (Linux
    /// 6.15).
    pub const GUARD_KNOWS_NETNS: &str = "GUARD_KNOWS_NETNS";
    /// Constant of the setsockopt program: 1 where it may read the network namespace of the socket (Linux 5.15).
    pub const SETSOCKOPT_KNOWS_NETNS: &str = "SETSOCKOPT_KNOWS_NETNS";
    /// Constant of the connect, bind and sendmsg programs: 1 where they may choose the error of a refused call (Linux 6.1).
    pub const CHOOSES_ERROR: &str = "CHOOSES_ERROR";
    /// `cgroup/bind4`: restores a lost binding.
    pub const BIND4: &str = "bind4";
    /// `cgroup/bind6`.
    pub const BIND6: &str = "bind6";
    /// Constant of the bind and sendmsg programs: 0 where they may not call `bpf_setsockopt`.
    pub const REBINDS: &str = "REBINDS";
    /// `cgroup/setsockopt`: refuses to undo a binding.
    pub const SETSOCKOPT: &str = "setsockopt";
    /// `sockops`: binds a listener without a binding. Pinned only where the kernel accepts it (Linux 5.15).
    pub const SOCK_OPS: &str = "sock_ops";
    /// `sockops`: counts the connections of policies with a group of uplinks. Likewise optional.
    pub const TRAFFIC: &str = "traffic";
    /// `cgroup_skb/egress`: stops packets on other links and to other name servers, whatever the programs above have done.
    pub const EGRESS: &str = "egress";
    /// `cgroup_skb/ingress`.
    pub const INGRESS: &str = "ingress";
    /// `lsm_cgroup/socket_create`: refuses sockets that bypass the IP stack. Pinned only where the kernel runs it.
    pub const FAMILY: &str = "family";
    /// `lsm_cgroup/socket_setsockopt`: refuses socket options that a 32 bit call sets. Like [`FAMILY`].
    pub const COMPAT_OPTION: &str = "compat_option";
    /// `lsm_cgroup/uring_cmd`: the same in a ring that a 32 bit call has set up.
    pub const COMPAT_RING: &str = "compat_ring";
    /// Constant of these two: [`CompatOffsets`](crate::CompatOffsets).
    pub const COMPAT_OFFSETS: &str = "COMPAT_OFFSETS";
    /// `fentry/cgroup_attach_task`: reports processes that leave the steered cgroups. Its link is pinned, and attached while
    /// anything is pinned. Only where the kernel accepts it.
    pub const MOVED: &str = "moved";
    /// Constant of that program: [`Offsets`](crate::Offsets).
    pub const MOVED_OFFSETS: &str = "MOVED_OFFSETS";
    /// `cgroup/sock_create`: does nothing. It is attached briefly so that the kernel allocates the cgroup's record. The agent
    /// fills the record before any other program runs.
    pub const ANCHOR: &str = "create_anchor";
    /// `cgroup_skb/egress`: writes the packet that it is run with into the ring of events. It is attached to nothing.
    pub const TELL: &str = "tell";
}

/// Names in the object that reads the identity of a network namespace; never pinned.
pub mod netns {
    /// `cgroup/sock_create`, of one socket.
    pub const PROGRAM: &str = "netns_cookie";
    /// Array of one `u64`: the cookie of that socket's network namespace.
    pub const MAP: &str = "NETNS_COOKIE";
}
