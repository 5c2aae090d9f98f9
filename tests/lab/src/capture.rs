//! Packet captures: the packets on a link, seen from the namespace that owns the link.
//!
//! The kernel keeps the packets until [`Capture::take`] reads them. There is no thread that could lag.
//!
//! **Invariant:** a capture never silently misses packets. A packet that the kernel dropped is an error, a packet that
//! does not parse is in the result, and the removal of the interface loses nothing.

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
    packet::{Direction, Packet},
    sys,
};
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};
use socket2::{Domain, SockFilter, Socket, Type};
use std::{collections::BTreeSet, io, os::fd::AsRawFd};

/// The kernel's buffer for one capture: some tens of thousands of packets. Only used space costs memory.
const BUFFER_BYTES: usize = 32 << 20;
/// Enough for all headers; they contain the lengths.
const HEADERS_BYTES: usize = 1024;
/// The offset at which a classic filter reads the index of the packet's interface (`SKF_AD_OFF + SKF_AD_IFINDEX`).
const FILTER_IFINDEX: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();

/// A running capture. It ends on drop.
#[derive(Debug)]
pub struct Capture {
    socket: Socket,
    what: String,
    allowed: BTreeSet<u32>,
    pending: Vec<Packet>,
}

impl Capture {
    /// Captures both directions of one interface. Buffered packets stay when the interface is deleted. The capture does
    /// not follow the name to another interface.
    pub fn start(netns: &Netns, link: &str) -> Result<Self> {
        let index = netns.ifindex(link)?;
        Self::open(netns, format!("{link} in {netns}"), index, BTreeSet::new())
    }

    /// Captures both directions of every interface except the named ones, which must exist. It includes interfaces that
    /// appear later. If an allowed interface is made again, it is a new interface: call [`Capture::allow`] for it.
    pub fn start_except(netns: &Netns, allowed: &[&str]) -> Result<Self> {
        let indexes = allowed.iter().map(|link| netns.ifindex(link)).collect::<Result<_>>()?;
        Self::open(netns, format!("all links in {netns} except {}", allowed.join(", ")), 0, indexes)
    }

    fn open(netns: &Netns, what: String, ifindex: u32, allowed: BTreeSet<u32>) -> Result<Self> {
        let socket = netns.run(|| packet_socket(&allowed, ifindex))?.doing(|| format!("capture {what}"))?;
        Ok(Self { socket, what, allowed, pending: Vec::new() })
    }

    /// Leaves out the interface with this index from now on, and the packets that were already captured on it.
    pub fn allow(&mut self, ifindex: u32) -> Result<()> {
        self.allowed.insert(ifindex);
        self.socket
            .attach_filter(&filter(&self.allowed))
            .doing(|| format!("allow interface {ifindex} in capture {}", self.what))
    }

    /// Everything captured since the last call. If the kernel dropped packets, this returns [`Error::Lost`] once, and
    /// the next call returns the packets.
    pub fn take(&mut self) -> Result<Vec<Packet>> {
        self.drain().doing(|| format!("read capture {}", self.what))?;
        // The counters of packets and drops; reading resets them. The next call reports later drops.
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
                // The interface went down or was removed. The kernel reports this once, before the packets that it
                // still holds.
                Err(nix::errno::Errno::ENETDOWN | nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The packets that left and that the kernel did not send by itself. On a link that must stay silent, these are the
/// leaks.
///
/// The kernel may probe a known neighbour for some seconds after earlier traffic. Start with unused links, or expect
/// [`Kind::Arp`](crate::Kind::Arp) and [`Kind::Ndp`](crate::Kind::Ndp).
pub fn leaks(packets: &[Packet]) -> Vec<&Packet> {
    packets.iter().filter(|packet| packet.direction == Direction::Out && !packet.is_kernel_noise()).collect()
}

/// A packet socket of the calling thread's namespace. It starts to receive with the bind, when the filter is in place.
/// It receives packets from the network header on, which also works on links without a link layer.
fn packet_socket(allowed: &BTreeSet<u32>, ifindex: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
    if !allowed.is_empty() {
        socket.attach_filter(&filter(allowed))?;
    }
    sys::bind_packet(&socket, ifindex.cast_signed())?;
    Ok(socket)
}

/// A classic filter that rejects packets of the given interfaces.
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
