//! A client that tries to send by a certain link. For each line of input it makes new sockets and reports their
//! interfaces. It sends from them, and from sockets that it made at its start, in the ordinary ways that could use the
//! link.
//!
//! **Invariant:** it reports only the interfaces of its new sockets. Captures show which packets left by which link.

use crate::{
    probe::errno_name,
    sys,
    uplinks::{SERVER_V4, SERVER_V6},
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// The port to which the first sockets are connected.
const EARLIER_PORT: u16 = 9;
/// The port that policies may redirect to another server.
const DNS_PORT: u16 = 53;
const WHERE_TO: [(Domain, IpAddr); 2] = [(Domain::IPV4, IpAddr::V4(SERVER_V4)), (Domain::IPV6, IpAddr::V6(SERVER_V6))];

/// The result of making a new socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewSocket {
    /// The index of the interface that it was bound to; 0 for none.
    Bound(i32),
    /// The name of the error.
    Refused(String),
}

/// The client.
#[derive(Debug)]
pub struct Stray {
    /// The link that it tries to send by.
    link: String,
    /// The first sockets.
    old: Vec<(Socket, IpAddr)>,
    /// Those of them that were connected and stay connected.
    connected: Vec<Socket>,
}

impl Stray {
    /// Makes the first sockets.
    pub fn new(link: &str) -> io::Result<Self> {
        let datagram = |domain| Socket::new(domain, Type::DGRAM, None);
        let old = WHERE_TO.into_iter().map(|(domain, to)| Ok((datagram(domain)?, to)));
        let connected = WHERE_TO.into_iter().map(|(domain, to)| {
            let socket = datagram(domain)?;
            socket.connect(&SocketAddr::new(to, EARLIER_PORT).into()).map(|()| socket)
        });
        let (old, connected) = (old.collect::<io::Result<_>>()?, connected.collect::<io::Result<_>>()?);
        Ok(Self { link: link.to_owned(), old, connected })
    }

    /// Makes sockets of both families and kinds. If a port is given, sends to that port of the lab's server.
    pub fn round(&self, port: Option<u16>) -> Vec<NewSocket> {
        if let Some(port) = port {
            for (socket, to) in &self.old {
                self.send(socket, *to, port);
            }
            for socket in &self.connected {
                drop(socket.take_error().and_then(|_| socket.send(b"stray")));
            }
        }
        let kinds =
            WHERE_TO.into_iter().flat_map(|(domain, to)| [(domain, to, Type::DGRAM), (domain, to, Type::STREAM)]);
        kinds.map(|(domain, to, kind)| self.new_socket(domain, to, kind, port)).collect()
    }

    fn new_socket(&self, domain: Domain, to: IpAddr, kind: Type, port: Option<u16>) -> NewSocket {
        let made = Socket::new(domain, kind, None).and_then(|socket| {
            let bound = sys::socket_option(&socket, libc::SOL_SOCKET, sys::SO_BINDTOIFINDEX)?;
            Ok((socket, bound))
        });
        match made {
            Ok((socket, bound)) => {
                match port {
                    Some(port) if kind == Type::STREAM => begin_to_connect(&socket, SocketAddr::new(to, port)),
                    Some(port) => self.send(&socket, to, port),
                    None => {}
                }
                NewSocket::Bound(bound)
            }
            Err(error) => NewSocket::Refused(errno_name(&error)),
        }
    }

    /// Sends from the socket unchanged, without its binding, connected, connected briefly to a name server, and bound
    /// to the link. Each step may be refused.
    fn send(&self, socket: &Socket, to: IpAddr, port: u16) {
        let [there, dns] = [port, DNS_PORT].map(|port| SockAddr::from(SocketAddr::new(to, port)));
        // An answer to an earlier packet must not make a later one fail.
        let send_to = |to: &SockAddr| drop(socket.take_error().and_then(|_| socket.send_to(b"stray", to)));
        let connect = |to: &SockAddr| drop(socket.connect(to));
        send_to(&there);
        connect(&sys::unspecified());
        send_to(&there);
        // The previous step may have been refused although the socket was bound.
        send_to(&there);
        connect(&sys::unspecified());
        connect(&there);
        drop(socket.send(b"stray"));
        connect(&dns);
        send_to(&there);
        connect(&sys::unspecified());
        send_to(&dns);
        drop(socket.bind_device(Some(self.link.as_bytes())));
        send_to(&there);
        connect(&sys::unspecified());
    }
}

/// Sends the first packet of a connection, if possible.
fn begin_to_connect(socket: &Socket, to: SocketAddr) {
    drop(socket.set_nonblocking(true).and_then(|()| socket.connect(&to.into())));
}
