//! Multicast: sending it, and joining a group, after which the kernel itself sends a report.
//!
//! **Invariant:** after a join the program keeps the socket until its timeout, because the report may be late and needs
//! the socket.

use super::{At, EscapeArgs, Halt, Step, Tried};
use crate::sys::set_socket_option;
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 77, 7, 7);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x77, 0x77);
const GROUP_V4_SOURCE_SPECIFIC: Ipv4Addr = Ipv4Addr::new(232, 77, 7, 7);
const GROUP_V6_SOURCE_SPECIFIC: Ipv6Addr = Ipv6Addr::new(0xff35, 0, 0, 0, 0, 0, 0x77, 0x77);

/// Linux 2.6; not in libc.
const IP_MSFILTER: i32 = 41;
const MCAST_MSFILTER: i32 = 48;

impl EscapeArgs {
    pub(super) fn group(&self) -> IpAddr {
        if self.is_v4() { GROUP_V4.into() } else { GROUP_V6.into() }
    }

    pub(super) fn level(&self) -> i32 {
        if self.is_v4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
    }

    pub(super) fn multicast_send(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.send(&socket, SocketAddr::new(self.group(), self.port))
    }

    pub(super) fn multicast_if(&self, af_unspec: bool) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        if af_unspec {
            self.disconnected(&socket, self.server())?;
        }
        let index = self.other_index()?;
        if self.is_v4() {
            // An ip_mreqn: group, address, interface.
            let request = [[0; 4], [0; 4], index.to_ne_bytes()].concat();
            set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request).at(Step::Option)?;
        } else {
            socket.set_multicast_if_v6(index).at(Step::Option)?;
        }
        self.send(&socket, SocketAddr::new(self.group(), self.port))
    }

    /// Names the interface by its index.
    pub(super) fn join(&self, kind: Type) -> Tried {
        let socket = self.socket(kind, None)?;
        let index = self.other_index()?;
        self.join_by_index(&socket, index)?;
        self.listen(&socket, kind)
    }

    /// Names no interface: the kernel uses its routes.
    pub(super) fn join_by_route(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.join_by_index(&socket, 0)?;
        self.listen(&socket, Type::DGRAM)
    }

    fn join_by_index(&self, socket: &Socket, index: u32) -> Tried<()> {
        let (name, request) = self.join_request(index);
        set_socket_option(socket, self.level(), name, &request).at(Step::Option)
    }

    /// The option that joins on the interface of this index, and its value.
    pub(super) fn join_request(&self, index: u32) -> (i32, Vec<u8>) {
        if self.is_v4() {
            let request = [GROUP_V4.octets(), [0; 4], index.to_ne_bytes()].concat();
            (libc::IP_ADD_MEMBERSHIP, request)
        } else {
            (libc::IPV6_ADD_MEMBERSHIP, [&GROUP_V6.octets()[..], &index.to_ne_bytes()].concat())
        }
    }

    /// Names the interface by one of its addresses, which only IPv4 supports.
    pub(super) fn join_by_address(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let IpAddr::V4(source) = self.source else {
            return Err(Halt::Inapplicable("IPv6 names interfaces by index".to_owned()));
        };
        socket.join_multicast_v4(&GROUP_V4, &source).at(Step::Option)?;
        self.listen(&socket, Type::DGRAM)
    }

    /// Uses the request that both families have.
    pub(super) fn join_group(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let request = [index_and_padding(self.other_index()?), storage(self.group())].concat();
        set_socket_option(&socket, self.level(), libc::MCAST_JOIN_GROUP, &request).at(Step::Option)?;
        self.listen(&socket, Type::DGRAM)
    }

    /// Joins only one source of a group.
    pub(super) fn join_source(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        let group: IpAddr =
            if self.is_v4() { GROUP_V4_SOURCE_SPECIFIC.into() } else { GROUP_V6_SOURCE_SPECIFIC.into() };
        let index = index_and_padding(self.other_index()?);
        let request = [index, storage(group), storage(self.server().ip())].concat();
        set_socket_option(&socket, self.level(), libc::MCAST_JOIN_SOURCE_GROUP, &request).at(Step::Option)?;
        self.listen(&socket, Type::DGRAM)
    }

    /// The same, with the interface named by one of its addresses.
    pub(super) fn join_source_by_address(&self) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        if let (IpAddr::V4(source), IpAddr::V4(server)) = (self.source, self.server().ip()) {
            // An ip_mreq_source: group, interface, source.
            let request = [GROUP_V4_SOURCE_SPECIFIC, source, server].map(|ip| ip.octets()).concat();
            let name = libc::IP_ADD_SOURCE_MEMBERSHIP;
            set_socket_option(&socket, libc::IPPROTO_IP, name, &request).at(Step::Option)?;
        }
        self.listen(&socket, Type::DGRAM)
    }

    /// An IPv4 group on an IPv6 socket.
    pub(super) fn join_mapped(&self) -> Tried {
        let socket = self.socket_of(Domain::IPV6, Type::DGRAM, None)?;
        let index = self.other_index()?;
        self.join_by_index(&socket, index)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).at(Step::Bind)?;
        self.stay(&socket)
    }

    /// Sets the sources of a group that was joined on the other link. The kernel reports them there.
    pub(super) fn filter_by_index(&self) -> Tried {
        // A group_filter: interface, group, mode (1: only these), number of sources, sources.
        let request = [
            index_and_padding(self.other_index()?),
            storage(self.group()),
            1_u32.to_ne_bytes().to_vec(),
            1_u32.to_ne_bytes().to_vec(),
            storage(self.server().ip()),
        ];
        self.change_membership(self.level(), MCAST_MSFILTER, &request.concat())
    }

    /// The same, with the interface named by one of its addresses, which only IPv4 supports.
    pub(super) fn filter_by_address(&self) -> Tried {
        let (IpAddr::V4(source), IpAddr::V4(server)) = (self.source, self.server().ip()) else {
            return Err(Halt::Inapplicable("IPv6 names interfaces by index".to_owned()));
        };
        // An ip_msfilter: group, interface, mode, number of sources, sources.
        let (mode, sources) = (1_u32.to_ne_bytes(), 1_u32.to_ne_bytes());
        let request = [GROUP_V4.octets(), source.octets(), mode, sources, server.octets()].concat();
        self.change_membership(libc::IPPROTO_IP, IP_MSFILTER, &request)
    }

    /// Refuses one source of such a group.
    pub(super) fn block_by_index(&self) -> Tried {
        let index = index_and_padding(self.other_index()?);
        let request = [index, storage(self.group()), storage(self.server().ip())].concat();
        self.change_membership(self.level(), libc::MCAST_BLOCK_SOURCE, &request)
    }

    /// The same, with the interface named by one of its addresses.
    pub(super) fn block_by_address(&self) -> Tried {
        let (IpAddr::V4(source), IpAddr::V4(server)) = (self.source, self.server().ip()) else {
            return Err(Halt::Inapplicable("IPv6 names interfaces by index".to_owned()));
        };
        let request = [GROUP_V4, source, server].map(|ip| ip.octets()).concat();
        self.change_membership(libc::IPPROTO_IP, libc::IP_BLOCK_SOURCE, &request)
    }

    /// Joins the group on the other link, and then changes that. The attempt may pause between them.
    fn change_membership(&self, level: i32, name: i32, request: &[u8]) -> Tried {
        let socket = self.socket(Type::DGRAM, None)?;
        self.join_by_index(&socket, self.other_index()?)?;
        self.pause(Step::Option)?;
        set_socket_option(&socket, level, name, request).at(Step::Option)?;
        self.stay(&socket)
    }

    /// Nobody sends to the group; the join is what counts.
    pub(super) fn listen(&self, socket: &Socket, kind: Type) -> Tried {
        if kind == Type::STREAM {
            // Reading needs a connection.
            self.connect(socket, &self.server().into())?;
        } else {
            socket.bind(&SocketAddr::new(self.any(), 0).into()).at(Step::Bind)?;
        }
        self.stay(socket)
    }

    #[expect(clippy::unused_self, reason = "belongs to the attempt")]
    fn stay(&self, mut socket: &Socket) -> Tried {
        match socket.read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok("joined".to_owned()),
            result => result.map(|_| "joined and received data".to_owned()).at(Step::Receive),
        }
    }
}

fn index_and_padding(index: u32) -> Vec<u8> {
    [index.to_ne_bytes(), [0; 4]].concat()
}

/// An address as a `sockaddr_storage`.
fn storage(ip: IpAddr) -> Vec<u8> {
    let (family, mut bytes) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, [&[0; 2][..], &ip.octets()].concat()),
        IpAddr::V6(ip) => (libc::AF_INET6, [&[0; 6][..], &ip.octets()].concat()),
    };
    bytes.splice(0..0, u16::try_from(family).unwrap_or_default().to_ne_bytes());
    bytes.resize(size_of::<libc::sockaddr_storage>(), 0);
    bytes
}
