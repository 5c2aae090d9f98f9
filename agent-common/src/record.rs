//! The records in the maps: plain integers without padding, each with its size asserted.

use crate::address::AddressWords;

/// A bound device that no interface can have: indexes are positive. A socket bound to it can be created, but `connect`
/// and `send` fail with ENODEV (IPv4) or ENETUNREACH (IPv6).
pub const CLOSED_IFINDEX: i32 = -1;

/// Bytes kept of a policy name.
pub const NAME_BYTES: usize = 64;
/// Bytes kept of an interface name; an alternative name has at most 127.
pub const INTERFACE_BYTES: usize = 128;

/// Bits of [`AttachmentRecord::flags`].
pub mod attachment_flags {
    /// Another attachment exists on an ancestor. Note in the socket that this one decides, because the ancestor's programs
    /// run after it.
    pub const NESTED: u32 = 1;
    /// Made by `steer exec` or `steer attach`, not by the daemon's configuration.
    pub const MANUAL: u32 = 1 << 1;
    /// Another attachment exists below. Check whether it decides before acting.
    pub const HAS_INNER: u32 = 1 << 2;
}

/// Bits of [`PolicyRecord::flags`].
pub mod policy_flags {
    /// Refuse sockets that belong to another network namespace instead of leaving them alone.
    pub const REFUSE_OTHER_NETNS: u32 = 1;
    /// `connect` restores a lost binding.
    pub const RESTORE: u32 = 1 << 1;
    /// No packet gets out by another link, whatever the socket is bound to.
    pub const GUARD: u32 = 1 << 2;
    /// No packet gets in by another link.
    pub const GUARD_INGRESS: u32 = 1 << 3;
    /// DNS queries over IPv4 go to [`PolicyRecord::dns4`](super::PolicyRecord::dns4), or to the resolver of the member of the group.
    pub const DNS4: u32 = 1 << 4;
    /// The same over IPv6, with [`PolicyRecord::dns6`](super::PolicyRecord::dns6).
    pub const DNS6: u32 = 1 << 5;
    /// Existing sockets that are bound elsewhere are bound to the uplink when the policy starts. For the agent.
    pub const EXISTING_REBIND: u32 = 1 << 6;
    /// The same, but connected sockets are destroyed. For the agent.
    pub const EXISTING_DESTROY: u32 = 1 << 7;
    /// The route method: sockets stay unbound and get [`PolicyRecord::mark`](super::PolicyRecord::mark). A rule sends the mark to
    /// a table with the uplink's routes and the exceptions.
    pub const ROUTE: u32 = 1 << 8;
    /// Sockets reach the addresses of this host, and are reached from there.
    pub const LOCAL_HOST: u32 = 1 << 9;
    /// The same for the networks that this host is directly connected to. For the agent.
    pub const LOCAL_LAN: u32 = 1 << 10;
    /// The same for protocols that find services there. For the agent.
    pub const LOCAL_DISCOVERY: u32 = 1 << 11;
    /// The policy has entries in [`EXCEPTIONS`](crate::map::EXCEPTIONS). For the agent.
    pub const EXCEPT: u32 = 1 << 12;
    /// The policy has a group of uplinks: its connections are counted.
    pub const GROUP: u32 = 1 << 13;
    /// One of them refuses its destinations.
    pub const REFUSES: u32 = 1 << 14;
    /// The resolvers are those that the host has for the link of the uplink, which may change. For the agent.
    pub const DNS_LINK: u32 = 1 << 15;
    /// The programs of [`GUARD`] are attached, but report only: see [`observes`](crate::observes). With [`GUARD`] it means nothing.
    pub const OBSERVE: u32 = 1 << 16;
    /// What passes is counted in [`ACCOUNT`](crate::map::ACCOUNT).
    pub const ACCOUNT: u32 = 1 << 17;
    /// Flags of policies that have the programs of [`GUARD`].
    pub const SEES: u32 = GUARD | OBSERVE;
    /// Flags of policies that may have entries in [`PASSES`](crate::map::PASSES).
    pub const PASSES: u32 = LOCAL_LAN | LOCAL_DISCOVERY | EXCEPT;
}

/// The policy of the cgroup that a program is attached to. All zero until the agent has filled it: closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AttachmentRecord {
    /// Slot in [`POLICIES`](crate::map::POLICIES); 0 is none.
    pub policy: u32,
    /// [`attachment_flags`].
    pub flags: u32,
    /// Id of the cgroup.
    pub cgroup_id: u64,
    /// The distance of the cgroup from the root, which is 0.
    pub level: u32,
    /// [`policy_flags`] of all attachments on ancestors. For the agent: on hooks where those stop or bind, this attachment
    /// must write its note first.
    pub around: u32,
}

/// What the programs store with a socket, only where needed: for nested cgroups, other network namespaces, and DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// Id of the cgroup whose attachment decides about the socket; 0 is none.
    pub decider: u64,
    /// The network namespace of the socket (`SO_NETNS_COOKIE`), noted if its policy leaves it alone for that; 0 is not known.
    pub netns_cookie: u64,
    /// The name server that the program asked last. Answers get its address. All zero is none.
    pub asked: AddressWords,
}

const _: () = assert!(size_of::<SocketRecord>() == 32);

/// What a policy does. All other tags mean closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bind to the uplink.
    Steer = 1,
    /// Leave the socket alone, even if an outer cgroup has a policy.
    Exempt = 2,
}

impl TryFrom<u32> for Kind {
    type Error = u32;

    fn try_from(tag: u32) -> Result<Self, u32> {
        match tag {
            1 => Ok(Self::Steer),
            2 => Ok(Self::Exempt),
            other => Err(other),
        }
    }
}

/// The owner of a policy slot, which may free it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A policy of the daemon's configuration.
    Config = 1,
    /// Made for `steer exec --interface` or `steer attach --interface`; freed with its last attachment.
    Manual = 2,
}

impl TryFrom<u32> for Owner {
    type Error = u32;

    fn try_from(tag: u32) -> Result<Self, u32> {
        match tag {
            1 => Ok(Self::Config),
            2 => Ok(Self::Manual),
            other => Err(other),
        }
    }
}

/// A policy. The programs read the first 64 bytes. The rest is for users and for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyRecord {
    /// [`Kind`]; 0 is an empty slot.
    pub kind: u32,
    /// [`policy_flags`].
    pub flags: u32,
    /// The uplink's index in its network namespace, or [`CLOSED_IFINDEX`] while it is missing.
    pub ifindex: i32,
    /// [`Owner`].
    pub owner: u32,
    /// The network namespace in which `ifindex` is valid (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// The IPv4 resolver, mapped; all zero is none.
    pub dns4: AddressWords,
    /// The IPv6 resolver; all zero is none.
    pub dns6: AddressWords,
    /// The mark of its sockets under [`ROUTE`](policy_flags::ROUTE), with no bit outside of `mark_mask`; else 0.
    pub mark: u32,
    /// The bits of marks that belong to steer. The others belong to programs. 0 is none.
    pub mark_mask: u32,
    /// Slot in [`UPLINKS`](crate::map::UPLINKS) of its group of uplinks; 0: it has one, `ifindex`. With a group, `ifindex` is
    /// [`CLOSED_IFINDEX`].
    pub uplink: u32,
    /// How many members the group has. The marks of its members follow [`Self::mark`]. 0 without a group.
    pub members: u32,
    /// Fingerprint of the exceptions as written; 0 is none. For the agent: equal policies have equal exceptions.
    pub exceptions: u64,
    /// The policy's name, UTF-8, padded with NUL.
    pub name: [u8; NAME_BYTES],
    /// The uplink's name as configured, or that of the group, UTF-8, padded with NUL; empty for an exemption.
    pub interface: [u8; INTERFACE_BYTES],
}

const _: () = assert!(size_of::<AttachmentRecord>() == 24);
const _: () = assert!(size_of::<PolicyRecord>() == 80 + NAME_BYTES + INTERFACE_BYTES);

impl PolicyRecord {
    /// An empty slot.
    pub const EMPTY: Self = Self {
        kind: 0,
        flags: 0,
        ifindex: 0,
        owner: 0,
        netns_cookie: 0,
        dns4: [0; 4],
        dns6: [0; 4],
        mark: 0,
        mark_mask: 0,
        uplink: 0,
        members: 0,
        exceptions: 0,
        name: [0; NAME_BYTES],
        interface: [0; INTERFACE_BYTES],
    };

    /// This policy with its uplink missing.
    #[must_use]
    pub const fn closed(mut self) -> Self {
        self.ifindex = CLOSED_IFINDEX;
        self
    }
}

// SAFETY: `repr(C)`, `Copy`, only integers, and the size assertion above rules padding out.
#[cfg(feature = "user")]
unsafe impl aya::Pod for AttachmentRecord {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PolicyRecord {}
