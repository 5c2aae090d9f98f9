//! Packet captures: what really went over a link, seen from the namespace that owns the link.
//!
//! The kernel keeps the packets until [`Capture::take`] asks for them; there is no thread that could lag behind.
//!
//! **Invariant:** a capture never claims to have seen less than there was. A packet that the kernel had to drop is an
//! error, a packet that does not parse is still in the result, and the removal of the interface loses nothing.

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
    packet::{Direction, Packet},
    sys,
};
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};
use socket2::{Domain, SockFilter, Socket, Type};
use std::{collections::BTreeSet, io, os::fd::AsRawFd};

/// What the kernel may hold for one capture: some tens of thousands of packets. Only what is used costs memory.
const BUFFER_BYTES: usize = 32 << 20;
/// Enough for all headers; the lengths are in them.
const HEADERS_BYTES: usize = 1024;
/// Where a classic filter finds the index of the packet's interface (`SKF_AD_OFF + SKF_AD_IFINDEX`).
const FILTER_IFINDEX: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();

/// A running capture; it ends when it is dropped.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
    what: String,
    allowed: BTreeSet<u32>,
    pending: Vec<Packet>,
}

impl Capture {
    /// Captures both directions of one interface. When the interface is deleted, what was buffered stays; when another
    /// one takes its name, the capture does not follow.
    pub fn start(netns: &Netns, link: &str) -> Result<Self> {
        let index = netns.ifindex(link)?;
        Self::open(netns, format!("{link} in {netns}"), index, BTreeSet::new())
    }

    /// Captures both directions of every interface but those named, which must exist, including interfaces that appear
    /// later. An allowed interface that is made again is a new interface: say so with [`Capture::allow`].
    pub fn start_except(netns: &Netns, allowed: &[&str]) -> Result<Self> {
        let indexes = allowed.iter().map(|link| netns.ifindex(link)).collect::<Result<_>>()?;
        Self::open(netns, format!("all links in {netns} except {}", allowed.join(", ")), 0, indexes)
    }

    fn open(netns: &Netns, what: String, ifindex: u32, allowed: BTreeSet<u32>) -> Result<Self> {
        let socket = netns.run(|| packet_socket(&allowed, ifindex))?.doing(|| format!("capture {what}"))?;
        Ok(Self { socket, what, allowed, pending: Vec::new() })
    }

    /// From now on leaves out the interface with this index, and what was already captured on it.
    pub fn allow(&mut self, ifindex: u32) -> Result<()> {
        self.allowed.insert(ifindex);
        self.socket
            .attach_filter(&filter(&self.allowed))
            .doing(|| format!("allow interface {ifindex} in capture {}", self.what))
    }

    /// Everything captured since the last call. When the kernel had to drop packets this is [`Error::Lost`], once, and
    /// the next call gives what there is.
    pub fn take(&mut self) -> Result<Vec<Packet>> {
        self.drain().doing(|| format!("read capture {}", self.what))?;
        // Packets and drops, reset by reading; a drop after the reading is reported by the next call.
        let [_, lost] = sys::socket_option(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .doing(|| format!("read statistics of capture {}", self.what))?;
        if lost > 0 {
            return Err(Error::Lost { capture: self.what.clone(), lost });
        }
        let mut packets = std::mem::take(&mut self.pending);
        packets.retain(|packet| !self.allowed.contains(&packet.ifindex));
        Ok(packets)
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; HEADERS_BYTES];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((len, Some(from))) => {
                    let direction = match from.pkttype() {
                        libc::PACKET_OUTGOING => Direction::Out,
                        _ => Direction::In,
                    };
                    let ifindex = u32::try_from(from.ifindex()).map_err(io::Error::other)?;
                    let ethertype = u16::from_be(from.protocol());
                    self.pending.push(Packet::parse(ifindex, direction, ethertype, &buffer[..len]));
                }
                Ok((_, None)) => return Err(io::Error::other("a packet without link-layer address")),
                // The interface went down or away. The kernel says so once, before the packets that it still holds.
                Err(nix::errno::Errno::ENETDOWN | nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The packets that left and that the kernel did not send by itself: on a link that must stay silent, the leaks.
///
/// A neighbour that the kernel still knows from earlier traffic may be probed for some seconds after it, so start from
/// links that have not been used, or expect [`Kind::Arp`](crate::Kind::Arp) and [`Kind::Ndp`](crate::Kind::Ndp).
pub fn leaks(packets: &[Packet]) -> Vec<&Packet> {
    packets.iter().filter(|packet| packet.direction == Direction::Out && !packet.is_kernel_noise()).collect()
}

/// A packet socket of the calling thread's namespace. It starts to receive with the bind, when the filter is in place,
/// and receives from the network header on, which also works on links without link layer.
fn packet_socket(allowed: &BTreeSet<u32>, ifindex: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
    if !allowed.is_empty() {
        socket.attach_filter(&filter(allowed))?;
    }
    sys::bind_packet(&socket, ifindex.cast_signed())?;
    Ok(socket)
}

/// A classic filter that refuses packets of the given interfaces.
#[expect(clippy::cast_possible_truncation, reason = "small constants")]
fn filter(allowed: &BTreeSet<u32>) -> Vec<SockFilter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let refuse =
        allowed.iter().flat_map(|&index| [SockFilter::new(EQUAL, 0, 1, index), SockFilter::new(RETURN, 0, 0, 0)]);
    std::iter::once(SockFilter::new(LOAD, 0, 0, FILTER_IFINDEX))
        .chain(refuse)
        .chain([SockFilter::new(RETURN, 0, 0, u32::MAX)])
        .collect()
}
