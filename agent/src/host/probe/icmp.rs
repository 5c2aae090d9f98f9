//! Echo requests by ICMP, as ping sends them.
//!
//! **Invariant:** a reply counts only if it comes from the address that was asked, with the number and the random data of
//! the request.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Protocol, Socket, Type};
use tokio::task::JoinSet;

use super::{Failure, Method, Via, socket};

/// Type, code, checksum, identifier, number, then 16 bytes of data.
const LENGTH: usize = 24;
const NUMBER: usize = 6;
const IPV4_REQUEST: u8 = 8;
const IPV4_REPLY: u8 = 0;
const IPV6_REQUEST: u8 = 128;
const IPV6_REPLY: u8 = 129;
/// More than a reply has.
const BUFFER: usize = 512;

/// Asks the member's gateways at once. One must answer.
pub(super) async fn gateway(via: &Via) -> Result<Duration, Failure> {
    let mut asking = JoinSet::new();
    for gateway in socket::gateways(via).await? {
        let via = *via;
        asking.spawn(async move {
            // Rule and table are part of the question. Being bound, a packet to a gateway needs no other route.
            if matches!(via.method, Method::Mark(_)) && !is_link_local(gateway) {
                socket::check(&via, gateway).await?;
            }
            ask(&via, gateway).await
        });
    }
    let mut failure = Failure::NoGateway;
    while let Some(answered) = asking.join_next().await {
        match answered.map_err(|ended| Failure::Error(ended.to_string()))? {
            Ok(latency) => return Ok(latency),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Asks an address, without looking for a route.
pub(super) async fn ask(via: &Via, address: IpAddr) -> Result<Duration, Failure> {
    let (socket, is_raw) = open(via, address.is_ipv4())?;
    let to = match address {
        IpAddr::V4(_) => SocketAddr::new(address, 0),
        // A link-local address is one of this link.
        IpAddr::V6(address) => {
            let scope = if is_link_local(address.into()) { via.ifindex } else { 0 };
            SocketAddrV6::new(address, 0, 0, scope).into()
        }
    };
    // The kernel passes only what comes from there, and reports errors.
    socket.connect(&to.into())?;
    let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(socket))?;
    let request = Request::new(address.is_ipv4());
    let (started, mut buffer) = (Instant::now(), [0; BUFFER]);
    socket.send(&request.0).await?;
    loop {
        let length = socket.recv(&mut buffer).await?;
        let message = &buffer[..length];
        let message = if is_raw && address.is_ipv4() { without_header(message) } else { Some(message) };
        if message.is_some_and(|message| request.is_answered_by(message)) {
            return Ok(started.elapsed());
        }
    }
}

/// Whether it is an address of IPv6 for one link.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// A ping socket, or a raw one where `net.ipv4.ping_group_range` excludes this process; and whether it is raw.
fn open(via: &Via, is_ipv4: bool) -> Result<(Socket, bool), Failure> {
    let protocol = if is_ipv4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    match socket::open(via, Type::DGRAM, protocol) {
        Err(Failure::Forbidden) => Ok((socket::open(via, Type::RAW, protocol)?, true)),
        opened => Ok((opened?, false)),
    }
}

/// What follows the header of an IPv4 packet.
fn without_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0xf) * 4..)
}

struct Request([u8; LENGTH]);

impl Request {
    fn new(is_ipv4: bool) -> Self {
        let random = [random(), random(), random()].map(u64::to_be_bytes).concat();
        let mut message: [u8; LENGTH] = random.try_into().unwrap_or_default();
        let kind = if is_ipv4 { IPV4_REQUEST } else { IPV6_REQUEST };
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        // The kernel computes that of IPv6.
        if is_ipv4 {
            let checksum = checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        Self(message)
    }

    /// The kernel changes the identifier of a ping socket; the data is longer.
    fn is_answered_by(&self, message: &[u8]) -> bool {
        let reply = if self.0[0] == IPV4_REQUEST { IPV4_REPLY } else { IPV6_REPLY };
        message.get(..2) == Some(&[reply, 0]) && message.get(NUMBER..) == Some(&self.0[NUMBER..])
    }
}

/// A number that nobody can guess: the keys of the hash are of the kernel's random numbers.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let [_, _, high, low] = ((sum & 0xffff) + (sum >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::{IPV4_REPLY, IPV6_REPLY, Request, checksum, without_header};

    #[test]
    fn only_the_reply_to_the_request_itself_answers() {
        for is_ipv4 in [true, false] {
            let (one, other) = (Request::new(is_ipv4), Request::new(is_ipv4));
            assert!(!one.is_answered_by(&one.0), "a request is not a reply");
            let mut reply = one.0;
            reply[0] = if is_ipv4 { IPV4_REPLY } else { IPV6_REPLY };
            reply[4..6].copy_from_slice(&[1, 2]);
            assert!(one.is_answered_by(&reply) && !other.is_answered_by(&reply));
            assert!(!one.is_answered_by(&reply[..20]) && !one.is_answered_by(&[]));
            reply[0] = if is_ipv4 { IPV6_REPLY } else { IPV4_REPLY };
            assert!(!one.is_answered_by(&reply), "of the other family");
        }
        assert_eq!(checksum(&Request::new(true).0), 0, "a message with its checksum");
    }

    #[test]
    fn headers_have_their_length() {
        assert_eq!(without_header(&[0x45; 21]), Some(&[0x45][..]));
        assert_eq!((without_header(&[0x4f; 21]), without_header(&[])), (None, None));
    }
}
