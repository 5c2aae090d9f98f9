//! What the programs of `steer top` count. They are a separate object, attached only while `steer top` runs.

/// Program `cgroup/sock_create`: counts sockets.
pub const SOCKET_PROGRAM: &str = "meter_sockets";
/// Program `cgroup_skb/egress`: counts packets.
pub const PACKET_PROGRAM: &str = "meter_packets";

/// Per-CPU hash of `u64`, by cgroup id: sockets that processes of the cgroup have made.
pub const SOCKETS: &str = "METER_SOCKETS";
/// Per-CPU hash of [`TrafficRecord`], by [`TrafficKey`].
pub const TRAFFIC: &str = "METER_TRAFFIC";
/// Entries of each map. When a map is full, the least recently used entry is reused.
pub const ENTRIES: u32 = 16_384;

/// The key of a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct TrafficKey {
    /// Id of the cgroup of the packets' sockets.
    pub cgroup_id: u64,
    /// Index of the link that they were sent to, in the network namespace of the socket.
    pub ifindex: u32,
    /// Zero.
    pub padding: u32,
}

/// A count of traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TrafficRecord {
    /// Packets on the link: a buffer that is segmented later counts as its segments.
    pub packets: u64,
    /// Bytes of the IP layer, with one header for each buffer.
    pub bytes: u64,
}

const _: () = assert!(size_of::<TrafficKey>() == 16);
const _: () = assert!(size_of::<TrafficRecord>() == 16);

// SAFETY: `repr(C)`, `Copy`, integers without padding between them.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TrafficKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TrafficRecord {}
