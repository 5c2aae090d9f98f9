//! Lists and destroys TCP and UDP sockets: sock_diag over netlink.
//!
//! **Invariant:** a socket is identified by its cookie, which is never reused. A request for a closed socket never affects
//! another socket.

use std::{fmt, io, net::SocketAddr};

use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage, TCP_CLOSE, TCP_ESTABLISHED,
    TCP_LISTEN,
    inet::{ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, nlas::Nla},
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable, Nla as _,
    },
    sys::{Socket as Netlink, protocols::NETLINK_SOCK_DIAG},
};

/// The attribute with the id of the socket's cgroup (Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Every kind of socket that is listed: protocol and family.
pub(crate) const KINDS: [(Protocol, u8); 4] =
    [(Protocol::Tcp, AF_INET), (Protocol::Tcp, AF_INET6), (Protocol::Udp, AF_INET), (Protocol::Udp, AF_INET6)];

/// Leaves out states in which no program waits for data.
const STATES: StateFlags = StateFlags::LISTEN
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::ESTABLISHED)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::CLOSE);

/// The transport protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP, and MPTCP subflows.
    Tcp = IPPROTO_TCP as isize,
    Udp = IPPROTO_UDP as isize,
}

/// One socket.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    pub(crate) protocol: Protocol,
    /// The cgroup of the process that made it.
    pub(crate) cgroup_id: u64,
    /// The kernel shows it to processes with CAP_NET_ADMIN; else 0.
    pub(crate) mark: u32,
    pub(crate) header: InetResponseHeader,
}

impl Socket {
    /// Its local address. IPv4 also for an IPv6 socket that uses IPv4.
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.header.socket_id.source_address.to_canonical(), self.header.socket_id.source_port)
    }

    /// The peer that it is connected to, or connecting to.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        let id = &self.header.socket_id;
        let connected = !matches!(self.header.state, TCP_LISTEN | TCP_CLOSE);
        connected.then(|| SocketAddr::new(id.destination_address.to_canonical(), id.destination_port))
    }

    /// The index of the interface that it is bound to; 0 is none.
    pub(crate) fn bound(&self) -> i32 {
        self.header.socket_id.interface_id.cast_signed()
    }

    /// The same socket after it has been bound to another interface; sock_diag finds it only with the new index.
    pub(crate) fn bound_to(mut self, ifindex: u32) -> Self {
        self.header.socket_id.interface_id = ifindex;
        self
    }

    /// Its inode number in /proc; 0 while no process has it.
    pub(crate) fn inode(&self) -> u32 {
        self.header.inode
    }

    /// Whether it is a connection that its listener has not accepted yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.inode() == 0 && self.header.state == TCP_ESTABLISHED
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(formatter, "{protocol} socket {}", self.local())?;
        self.peer().map_or(Ok(()), |peer| write!(formatter, " to {peer}"))
    }
}

/// A sock_diag connection in the calling thread's network namespace.
pub(crate) struct Diag(Netlink);

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        Netlink::new(NETLINK_SOCK_DIAG).map(Self)
    }

    /// All sockets of one kind. ENOENT: this kernel has no list of them.
    pub(crate) fn list(&self, (protocol, family): (Protocol, u8)) -> io::Result<Vec<Socket>> {
        let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let request = SockDiagMessage::InetRequest(request(protocol, family, any));
        self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut sockets = Vec::new();
        loop {
            for message in self.receive::<SockDiagMessage>()? {
                match message {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                        let InetResponse { header, nlas } = *found;
                        if let Some(cgroup_id) = nlas.iter().find_map(cgroup_id) {
                            let mark = nlas.iter().find_map(|attribute| match attribute {
                                Nla::Mark(mark) => Some(*mark),
                                _ => None,
                            });
                            sockets.push(Socket { protocol, cgroup_id, mark: mark.unwrap_or_default(), header });
                        }
                    }
                    NetlinkPayload::Done(_) => return Ok(sockets),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Destroys a socket. A program that waits on it gets ECONNABORTED. A UDP socket can be used again, but is no longer
    /// connected or bound to an interface. False if the socket no longer exists. Needs CONFIG_INET_DIAG_DESTROY.
    pub(crate) fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        let request = request(socket.protocol, socket.header.family, socket.header.socket_id.clone());
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let answer = self.receive::<SockDiagDestroy>()?.into_iter().next();
        match answer {
            Some(NetlinkPayload::Error(error)) if error.code.is_none() => Ok(true),
            Some(NetlinkPayload::Error(error)) if error.raw_code() == -libc::ENOENT => Ok(false),
            Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn send<M>(&self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.0.send(&buffer, 0).map(drop)
    }

    /// The messages of one datagram.
    fn receive<M: NetlinkDeserializable>(&self) -> io::Result<Vec<NetlinkPayload<M>>> {
        let (datagram, _) = self.0.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            messages.push(message.payload);
        }
        Ok(messages)
    }
}

fn request(protocol: Protocol, family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest { family, protocol: protocol as u8, extensions: ExtensionFlags::empty(), states: STATES, socket_id }
}

fn cgroup_id(attribute: &Nla) -> Option<u64> {
    let Nla::Other(attribute) = attribute else { return None };
    if attribute.kind() != INET_DIAG_CGROUP_ID || attribute.value_len() != size_of::<u64>() {
        return None;
    }
    let mut bytes = [0; size_of::<u64>()];
    attribute.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}
