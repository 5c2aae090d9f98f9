//! Lists and destroys TCP, UDP and UDP-Lite sockets: sock_diag over netlink.
//!
//! **Invariant:** a socket is identified by its cookie, which is never reused. A request for a closed socket never affects
//! another socket. A list asks for nothing for which the kernel takes the lock of a socket (`INET_DIAG_INFO`).

use std::{cell::OnceCell, collections::BTreeSet, fmt, io, net::SocketAddr};

use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, SOCK_DIAG_BY_FAMILY, SockDiagDestroy,
    SockDiagMessage, TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV,
    inet::{ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, nlas::Nla},
};
use rtnetlink::{
    packet_core::{
        DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
        NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla as _,
    },
    sys::{Socket as Netlink, protocols::NETLINK_SOCK_DIAG},
};

use super::{
    line::{self, Line},
    patience::{Owner, Patience},
};

/// The attribute with the id of the socket's cgroup (Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// The attribute of a request with the program that selects sockets.
const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// The attribute of a request with a protocol that needs more than a byte (Linux 5.9).
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const IPPROTO_MPTCP: u32 = 262;

/// Every kind of socket that is listed: protocol and family.
pub(crate) const KINDS: [(Protocol, u8); 4] =
    [(Protocol::Tcp, AF_INET), (Protocol::Tcp, AF_INET6), (Protocol::Udp, AF_INET), (Protocol::Udp, AF_INET6)];

/// The same, and UDP-Lite, which has no connect hook. A kernel without UDP-Lite has no list of it.
pub(crate) const KINDS_AND_UDP_LITE: [(Protocol, u8); 6] =
    [KINDS[0], KINDS[1], KINDS[2], KINDS[3], (Protocol::UdpLite, AF_INET), (Protocol::UdpLite, AF_INET6)];

/// Every state, also that of a TCP socket that has only a port (`BOUND_INACTIVE`, Linux 6.8).
const ALL_STATES: StateFlags = StateFlags::from_bits_retain((1 << 14) - 1);

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
    UdpLite = IPPROTO_UDPLITE as isize,
}

/// One socket.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    pub(crate) protocol: Protocol,
    /// The cgroup of the process that made it; 0 where the kernel does not keep it: in TIME_WAIT, in FIN_WAIT2 without a
    /// process, and in SYN_RECV.
    pub(crate) cgroup_id: u64,
    /// The kernel shows it to processes with CAP_NET_ADMIN; else 0.
    pub(crate) mark: u32,
    /// Whether it belongs to an MPTCP socket, which has the same inode.
    pub(crate) is_mptcp: bool,
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

    /// Who may hold up calls on it.
    pub(crate) fn owner(&self) -> Owner {
        Owner::User(self.header.uid)
    }

    /// Its inode number in /proc; 0 while no process has it.
    pub(crate) fn inode(&self) -> u32 {
        self.header.inode
    }

    /// Whether it is a request for a connection, which has no socket yet.
    pub(crate) fn is_request(&self) -> bool {
        self.protocol == Protocol::Tcp && self.header.state == TCP_SYN_RECV
    }

    /// Whether it is a connection that its listener has not accepted yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.inode() == 0 && self.header.state == TCP_ESTABLISHED
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp if self.is_mptcp => "MPTCP",
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::UdpLite => "UDP-Lite",
        };
        write!(formatter, "{protocol} socket {}", self.local())?;
        self.peer().map_or(Ok(()), |peer| write!(formatter, " to {peer}"))
    }
}

/// A sock_diag connection in the calling thread's network namespace.
pub(crate) struct Diag {
    netlink: Netlink,
    pub(crate) patience: Patience,
}

thread_local! {
    /// The connection of a thread of [`Patience`], by which it destroys sockets.
    static OF_THREAD: OnceCell<Netlink> = const { OnceCell::new() };
}

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::new(NETLINK_SOCK_DIAG)?, patience: Patience::default() })
    }

    /// The sockets of one kind in which a program may wait. ENOENT: this kernel has no list of them.
    pub(crate) fn list(&self, kind: (Protocol, u8)) -> io::Result<Vec<Socket>> {
        self.list_until(kind, &|| false)
    }

    /// The same. [`io::ErrorKind::Interrupted`]: `stop` was true meanwhile, and nothing can be asked by this connection any more.
    pub(crate) fn list_until(
        &self,
        (protocol, family): (Protocol, u8),
        stop: &dyn Fn() -> bool,
    ) -> io::Result<Vec<Socket>> {
        let request = request(protocol, family, any(family), STATES);
        let mut sockets = self.dump_until(Selection { request, attribute: None }, stop)?;
        sockets.retain(|socket| socket.cgroup_id != 0);
        Ok(sockets)
    }

    /// The sockets of one kind that are on one of these lines, in any state. The kernel selects them.
    pub(crate) fn list_on(&self, (protocol, family): (Protocol, u8), lines: &[Line]) -> io::Result<Vec<Socket>> {
        let request = request(protocol, family, any(family), ALL_STATES);
        let mut sockets = self.dump(Selection { request, attribute: Some(Attribute::Filter(line::filter(lines))) })?;
        if protocol == Protocol::Tcp && sockets.iter().any(|socket| socket.inode() != 0) {
            let of_mptcp = self.inodes_of_mptcp()?;
            for socket in &mut sockets {
                socket.is_mptcp = of_mptcp.contains(&socket.inode());
            }
        }
        Ok(sockets)
    }

    /// The inodes of the MPTCP sockets that processes have. Their subflows have the same.
    fn inodes_of_mptcp(&self) -> io::Result<BTreeSet<u32>> {
        let mut inodes = BTreeSet::new();
        for family in [AF_INET, AF_INET6] {
            let request = request(Protocol::Tcp, family, any(family), ALL_STATES);
            match self.dump(Selection { request, attribute: Some(Attribute::Protocol(IPPROTO_MPTCP)) }) {
                Ok(sockets) => inodes.extend(sockets.iter().map(Socket::inode).filter(|inode| *inode != 0)),
                // This kernel lists none, or has none.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPROTONOSUPPORT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(inodes)
    }

    fn dump(&self, selection: Selection) -> io::Result<Vec<Socket>> {
        self.dump_until(selection, &|| false)
    }

    fn dump_until(&self, selection: Selection, stop: &dyn Fn() -> bool) -> io::Result<Vec<Socket>> {
        let protocol = match selection.request.protocol {
            IPPROTO_TCP => Protocol::Tcp,
            IPPROTO_UDP => Protocol::Udp,
            _ => Protocol::UdpLite,
        };
        let netlink = &self.netlink;
        send(netlink, selection, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut sockets = Vec::new();
        loop {
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            for message in receive::<SockDiagMessage>(netlink)? {
                match message {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                        sockets.push(socket(protocol, *found));
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
        let request = request(socket.protocol, socket.header.family, socket.header.socket_id.clone(), STATES);
        self.patience.run(socket.owner(), move || {
            OF_THREAD.with(|cell| {
                if cell.get().is_none() {
                    drop(cell.set(Netlink::new(NETLINK_SOCK_DIAG)?));
                }
                destroy(cell.get().ok_or(io::ErrorKind::NotConnected)?, request)
            })
        })
    }
}

fn destroy(netlink: &Netlink, request: InetRequest) -> io::Result<bool> {
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    send(netlink, message, NLM_F_REQUEST | NLM_F_ACK)?;
    let answer = receive::<SockDiagDestroy>(netlink)?.into_iter().next();
    match answer {
        Some(NetlinkPayload::Error(error)) if error.code.is_none() => Ok(true),
        Some(NetlinkPayload::Error(error)) if error.raw_code() == -libc::ENOENT => Ok(false),
        Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send<M>(netlink: &Netlink, message: M, flags: u16) -> io::Result<()>
where
    M: NetlinkSerializable + Into<NetlinkPayload<M>>,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    netlink.send(&buffer, 0).map(drop)
}

/// The messages of one datagram.
fn receive<M: NetlinkDeserializable>(netlink: &Netlink) -> io::Result<Vec<NetlinkPayload<M>>> {
    let (datagram, _) = netlink.recv_from_full()?;
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

/// A request for a list.
#[derive(Debug)]
struct Selection {
    request: InetRequest,
    attribute: Option<Attribute>,
}

/// What a request for a list says besides.
#[derive(Debug)]
enum Attribute {
    /// The program that selects sockets; an empty one selects all.
    Filter(Vec<u8>),
    /// The protocol, instead of that in the header.
    Protocol(u32),
}

impl Attribute {
    fn kind(&self) -> u16 {
        match self {
            Self::Filter(_) => INET_DIAG_REQ_BYTECODE,
            Self::Protocol(_) => INET_DIAG_REQ_PROTOCOL,
        }
    }

    fn value(&self) -> Vec<u8> {
        match self {
            Self::Filter(filter) => filter.clone(),
            Self::Protocol(protocol) => protocol.to_ne_bytes().to_vec(),
        }
    }
}

impl Selection {
    /// The bytes of the attribute, if there is one with a value.
    fn attribute(&self) -> Vec<u8> {
        let Some(attribute) = &self.attribute else { return Vec::new() };
        let value = attribute.value();
        if value.is_empty() {
            return value;
        }
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("as many conditions as lines");
        [&length.to_ne_bytes()[..], &attribute.kind().to_ne_bytes(), &value].concat()
    }
}

/// The length of the header of an attribute.
const ATTRIBUTE_BYTES: usize = 4;

impl NetlinkSerializable for Selection {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        self.request.buffer_len() + self.attribute().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (request, attribute) = buffer.split_at_mut(self.request.buffer_len());
        self.request.emit(request);
        attribute.copy_from_slice(&self.attribute());
    }
}

impl From<Selection> for NetlinkPayload<Selection> {
    fn from(selection: Selection) -> Self {
        Self::InnerMessage(selection)
    }
}

fn any(family: u8) -> SocketId {
    if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() }
}

fn request(protocol: Protocol, family: u8, socket_id: SocketId, states: StateFlags) -> InetRequest {
    InetRequest { family, protocol: protocol as u8, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn socket(protocol: Protocol, InetResponse { header, nlas }: InetResponse) -> Socket {
    let mut socket = Socket { protocol, cgroup_id: 0, mark: 0, is_mptcp: false, header };
    for attribute in &nlas {
        match attribute {
            Nla::Mark(mark) => socket.mark = *mark,
            Nla::Other(other) if other.kind() == INET_DIAG_CGROUP_ID => {
                socket.cgroup_id = value(other).try_into().map_or(0, u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    socket
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}
