//! The vectors: ways that could bypass a binding.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it, and the functions that try them the rest")]
pub enum Vector {
    // Plain use.
    Tcp,
    TcpFastOpen,
    TcpAfUnspec,
    TcpAccept,
    Udp,
    UdpUnconnected,
    UdpLite,
    UdpGso,
    Ping,
    Raw,
    Zerocopy,
    Sendfile,
    Splice,
    Sendmmsg,
    MappedTcp,
    MappedUdp,
    Uring,
    UringSqpoll,
    // Multipath TCP.
    Mptcp,
    MptcpFastOpen,
    MptcpAccept,
    MptcpAcceptDual,
    MptcpAcceptUnbound,
    // Losing the binding.
    UdpAfUnspec,
    UdpAfUnspecConnect,
    UdpAfUnspecCork,
    MappedAfUnspec,
    PingAfUnspec,
    RawAfUnspec,
    // Naming another interface per message.
    IpPktinfo,
    IpPktinfoCork,
    IpPktinfoSendmmsg,
    IpPktinfoMapped,
    IpPktinfoUring,
    PingPktinfo,
    RawPktinfo,
    RawHeader,
    RawUdp,
    Ipv6Pktinfo,
    Ipv6PktinfoSticky,
    LinkLocalScope,
    LinkLocalPing,
    LinkLocalRaw,
    LinkLocalMulticast,
    LinkLocalTcp,
    LinkLocalMptcp,
    LinkLocalAfUnspec,
    // Naming another interface per socket.
    Bindtodevice,
    BindtodeviceCleared,
    Bindtoifindex,
    Mark,
    MarkAfUnspec,
    UnicastIf,
    UnicastIfAfUnspec,
    MulticastIf,
    MulticastIfAfUnspec,
    BindtodeviceAfUnspec,
    BindtodeviceMptcp,
    BindtodeviceUring,
    Vrf,
    // Addresses and routes.
    BindOther,
    BindOtherUdp,
    BindOtherRaw,
    Freebind,
    Transparent,
    SourceRoute,
    Dontroute,
    // Another host's address as the source of packets to this host.
    ForgedHeader,
    ForgedMulticast,
    ForgedEcho,
    ForgedPing,
    ForgedTransparent,
    ForgedTransparentTcp,
    ForgedFreebind,
    ForgedFreebindOfV4,
    ForgedFreebindTcp,
    ForgedPktinfo,
    BroadcastSubnet,
    BroadcastLimited,
    MulticastSend,
    // Joins, after which the kernel itself sends a report.
    Join,
    JoinByAddress,
    JoinByRoute,
    JoinGroup,
    JoinSource,
    JoinSourceByAddress,
    JoinMapped,
    JoinTcp,
    // Changes of a membership, which the kernel also reports, with sources that the program chooses.
    FilterByIndex,
    FilterByAddress,
    BlockByIndex,
    BlockByAddress,
    MulticastRouting,
    // Below the IP stack, or beside it.
    PacketRaw,
    PacketDgram,
    PacketBypass,
    PacketLegacy,
    PacketUring,
    Xdp,
    Sctp,
    Smc,
    SmcInet,
    SmcUpperLayer,
    // By 32 bit system calls.
    CompatBindtodevice,
    CompatJoin,
    CompatJoinSocketcall,
    CompatJoinUring,
    CompatPacket,
    // From another place.
    UserNamespace,
    NetworkNamespace,
    SubCgroup,
    SubCgroupAfUnspec,
    LeaveCgroup,
    Inherited,
    Passed,
}

impl Vector {
    /// All vectors.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The value of the command line option.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether what leaves is the kernel's answer to what the program has sent.
    pub fn is_forged(self) -> bool {
        matches!(
            self,
            Self::ForgedHeader
                | Self::ForgedMulticast
                | Self::ForgedEcho
                | Self::ForgedPing
                | Self::ForgedTransparent
                | Self::ForgedTransparentTcp
                | Self::ForgedFreebind
                | Self::ForgedFreebindOfV4
                | Self::ForgedFreebindTcp
                | Self::ForgedPktinfo
        )
    }

    /// The privilege that the attempt needs.
    pub(super) fn needs(self) -> Option<&'static str> {
        match self {
            Self::Raw
            | Self::BindOtherRaw
            | Self::RawAfUnspec
            | Self::RawPktinfo
            | Self::RawHeader
            | Self::RawUdp
            | Self::LinkLocalRaw
            | Self::ForgedHeader
            | Self::ForgedMulticast
            | Self::ForgedEcho
            | Self::ForgedTransparent
            | Self::ForgedTransparentTcp
            | Self::PacketRaw
            | Self::PacketDgram
            | Self::PacketBypass
            | Self::PacketLegacy
            | Self::PacketUring
            | Self::CompatPacket
            | Self::Xdp => Some("CAP_NET_RAW"),
            Self::Mark | Self::MarkAfUnspec | Self::Transparent | Self::MulticastRouting => Some("CAP_NET_ADMIN"),
            Self::SubCgroup | Self::SubCgroupAfUnspec | Self::LeaveCgroup => Some("write access to the cgroup"),
            _ => None,
        }
    }
}
