//! One attempt to get a packet out by another link than the one that a program is steered to.
//!
//! Every [`Vector`] is a known or suspected way to bypass a socket's binding. Some are ordinary uses that must continue
//! to work. An attempt proceeds as far as the kernel allows, and reports where it ended. The program cannot know
//! whether a packet left by the other link: that needs a capture.
//!
//! **Invariant:** an attempt that could not be made, because the kernel lacks the feature or the user the privilege,
//! reports this ([`Attempt::is_applicable`]). It never counts as an attempt that was made and had no effect.

use crate::{
    probe::{Family, errno_name},
    uplinks::{SERVER_V4, SERVER_V6},
};
use clap::Args;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

mod attempt;
mod compat;
mod forged;
mod link_layer;
mod message;
mod multicast;
mod multicast_routing;
pub mod option;
mod place;
mod plain;
mod uring;
mod vector;
mod xdp;

use forged::Allowed;

pub use attempt::{Attempt, Step};
pub use vector::Vector;

/// Try one way to bypass the steering of this program, and report how far it got.
#[derive(Args, Clone, Debug)]
pub struct EscapeArgs {
    /// The vector to try.
    #[arg(long, value_enum)]
    pub vector: Vector,
    /// The address family.
    #[arg(long, value_enum)]
    pub family: Family,
    /// The server; without it, the lab's.
    #[arg(long)]
    pub server: Option<IpAddr>,
    /// The server's port.
    #[arg(long, overrides_with = "port")]
    pub port: u16,
    /// The link to escape by.
    #[arg(long, default_value = "a0", overrides_with = "other")]
    pub other: String,
    /// The neighbour on that link.
    #[arg(long, overrides_with = "gateway")]
    pub gateway: IpAddr,
    /// This host's address on that link.
    #[arg(long, overrides_with = "source")]
    pub source: IpAddr,
    /// The timeout of each connect, send and receive.
    #[arg(long, default_value_t = 500)]
    pub timeout_ms: u64,
    /// After this step, print its name and wait for a line on standard input.
    #[arg(long, value_enum)]
    pub pause_after: Option<Step>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The reason why an attempt ended early.
enum Halt {
    /// A step was refused.
    Refused(Step, io::Error),
    /// The attempt could not be made.
    Inapplicable(String),
}

/// What the server saw, or what was done if nobody answers.
type Tried<T = String> = std::result::Result<T, Halt>;

trait At<T> {
    /// Names the step that failed.
    fn at(self, step: Step) -> Tried<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, step: Step) -> Tried<T> {
        self.map_err(|error| Halt::Refused(step, error.into()))
    }
}

const REQUEST: &[u8] = b"steer-escape\n";

/// Makes the attempt and prints the result.
pub fn run(args: &EscapeArgs, out: &mut impl Write) -> io::Result<()> {
    let attempt = args.attempt();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&attempt)?)
    } else {
        let step = attempt.step.map(|step| format!(" at {step:?}").to_lowercase()).unwrap_or_default();
        writeln!(out, "{} {:?}: {}{step} {}", args.vector.name(), attempt.family, attempt.outcome, attempt.note)
    }
}

impl EscapeArgs {
    fn attempt(&self) -> Attempt {
        let (outcome, step, note) = match self.attempt_vector() {
            Ok(note) => ("ok".to_owned(), None, note),
            Err(Halt::Inapplicable(why)) => ("n/a".to_owned(), None, why),
            Err(Halt::Refused(step, error)) => match self.inapplicable(step, &error) {
                Some(why) => ("n/a".to_owned(), None, why),
                None => (errno_name(&error), Some(step), String::new()),
            },
        };
        Attempt { vector: self.vector, family: self.family, outcome, step, note }
    }

    /// Whether a refusal only means that a requirement of the attempt is missing.
    fn inapplicable(&self, step: Step, error: &io::Error) -> Option<String> {
        let errno = error.raw_os_error()?;
        let lacks = [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT, libc::ENOSYS];
        // The error of a refused MPTCP socket, too.
        let lacks_option = step == Step::Option && errno == libc::ENOPROTOOPT;
        if matches!(step, Step::Socket | Step::Option | Step::Place) && lacks.contains(&errno) || lacks_option {
            return Some(format!("this kernel does not support it ({})", errno_name(error)));
        }
        // EPERM for a user with the privilege is a refusal. A user without the privilege could not make the attempt.
        let needs = self.vector.needs()?;
        let refused = matches!(errno, libc::EPERM | libc::EACCES) && !nix::unistd::geteuid().is_root();
        refused.then(|| format!("needs {needs}"))
    }

    #[expect(clippy::too_many_lines, reason = "a table: one line for each vector")]
    fn attempt_vector(&self) -> Tried {
        match self.vector {
            Vector::Tcp => self.tcp(),
            Vector::TcpFastOpen => self.fast_open(None),
            Vector::TcpAfUnspec => self.tcp_af_unspec(),
            Vector::TcpAccept => self.accept(None, Some(self.any())),
            Vector::Udp => self.udp(),
            Vector::UdpUnconnected => self.udp_unconnected(),
            Vector::UdpLite => self.udp_lite(),
            Vector::UdpGso => self.udp_gso(),
            Vector::Ping => self.echo(Type::DGRAM),
            Vector::Raw => self.echo(Type::RAW),
            Vector::Zerocopy => self.zerocopy(),
            Vector::Sendfile => self.sendfile(),
            Vector::Splice => self.splice(),
            Vector::Sendmmsg => self.sendmmsg(false),
            Vector::MappedTcp => self.mapped(Type::STREAM),
            Vector::MappedUdp => self.mapped(Type::DGRAM),
            Vector::Uring => self.uring_tcp(false),
            Vector::UringSqpoll => self.uring_tcp(true),
            Vector::Mptcp => self.mptcp(),
            Vector::MptcpFastOpen => self.fast_open(Some(Protocol::MPTCP)),
            Vector::MptcpAccept => self.accept(Some(Protocol::MPTCP), Some(self.any())),
            Vector::MptcpAcceptDual => self.accept_dual(Protocol::MPTCP),
            Vector::MptcpAcceptUnbound => self.accept(Some(Protocol::MPTCP), None),
            Vector::UdpAfUnspec => self.udp_af_unspec(),
            Vector::UdpAfUnspecConnect => self.udp_af_unspec_connect(),
            Vector::UdpAfUnspecCork => self.udp_af_unspec_cork(),
            Vector::MappedAfUnspec => self.mapped_af_unspec(),
            Vector::PingAfUnspec => self.echo_af_unspec(Type::DGRAM),
            Vector::RawAfUnspec => self.echo_af_unspec(Type::RAW),
            Vector::IpPktinfo | Vector::Ipv6Pktinfo => self.udp_pktinfo(),
            Vector::IpPktinfoCork => self.udp_pktinfo_cork(),
            Vector::IpPktinfoSendmmsg => self.sendmmsg(true),
            Vector::IpPktinfoMapped => self.mapped_pktinfo(),
            Vector::IpPktinfoUring => self.uring_pktinfo(),
            Vector::PingPktinfo => self.echo_pktinfo(Type::DGRAM),
            Vector::RawPktinfo => self.echo_pktinfo(Type::RAW),
            Vector::RawHeader => self.raw_header(),
            Vector::RawUdp => self.raw_udp(),
            Vector::Ipv6PktinfoSticky => self.pktinfo_sticky(),
            Vector::LinkLocalScope => self.link_local(),
            Vector::LinkLocalPing => self.link_local_echo(Type::DGRAM),
            Vector::LinkLocalRaw => self.link_local_echo(Type::RAW),
            Vector::LinkLocalMulticast => self.link_local_multicast(),
            Vector::LinkLocalTcp => self.link_local_stream(None),
            Vector::LinkLocalMptcp => self.link_local_stream(Some(Protocol::MPTCP)),
            Vector::LinkLocalAfUnspec => self.link_local_af_unspec(),
            Vector::Bindtodevice => self.bind_to_device(&self.other),
            Vector::BindtodeviceCleared => self.bind_to_device(""),
            Vector::Bindtoifindex => self.bind_to_ifindex(),
            Vector::Mark => self.mark(false),
            Vector::MarkAfUnspec => self.mark(true),
            Vector::UnicastIf => self.unicast_if(false),
            Vector::UnicastIfAfUnspec => self.unicast_if(true),
            Vector::MulticastIf => self.multicast_if(false),
            Vector::MulticastIfAfUnspec => self.multicast_if(true),
            Vector::BindtodeviceAfUnspec => self.bind_to_device_af_unspec(),
            Vector::BindtodeviceMptcp => self.bind_to_device_mptcp(),
            Vector::BindtodeviceUring => self.uring_bind_to_device(),
            Vector::Vrf => self.vrf(),
            Vector::BindOther => self.bind_other(),
            Vector::BindOtherUdp => self.bind_other_udp(),
            Vector::BindOtherRaw => self.bind_other_raw(),
            Vector::Freebind => self.foreign_address(false),
            Vector::Transparent => self.foreign_address(true),
            Vector::ForgedHeader => self.forged_header(),
            Vector::ForgedMulticast => self.forged_multicast(),
            Vector::ForgedEcho => self.forged_echo(Type::RAW),
            Vector::ForgedPing => self.forged_echo(Type::DGRAM),
            Vector::ForgedTransparent => self.forged_bind(Type::DGRAM, Allowed::Transparent),
            Vector::ForgedTransparentTcp => self.forged_bind(Type::STREAM, Allowed::Transparent),
            Vector::ForgedFreebind => self.forged_bind(Type::DGRAM, Allowed::Freebind),
            Vector::ForgedFreebindOfV4 => self.forged_bind(Type::DGRAM, Allowed::FreebindOfV4),
            Vector::ForgedFreebindTcp => self.forged_bind(Type::STREAM, Allowed::Freebind),
            Vector::ForgedPktinfo => self.forged_pktinfo(),
            Vector::SourceRoute => self.source_route(),
            Vector::Dontroute => self.dont_route(),
            Vector::BroadcastSubnet => self.broadcast(true),
            Vector::BroadcastLimited => self.broadcast(false),
            Vector::MulticastSend => self.multicast_send(),
            Vector::Join => self.join(Type::DGRAM),
            Vector::JoinByAddress => self.join_by_address(),
            Vector::JoinByRoute => self.join_by_route(),
            Vector::JoinGroup => self.join_group(),
            Vector::JoinSource => self.join_source(),
            Vector::JoinSourceByAddress => self.join_source_by_address(),
            Vector::JoinMapped => self.join_mapped(),
            Vector::JoinTcp => self.join(Type::STREAM),
            Vector::FilterByIndex => self.filter_by_index(),
            Vector::FilterByAddress => self.filter_by_address(),
            Vector::BlockByIndex => self.block_by_index(),
            Vector::BlockByAddress => self.block_by_address(),
            Vector::MulticastRouting => self.multicast_routing(),
            Vector::PacketRaw => self.packet(Type::RAW, false),
            Vector::PacketDgram => self.packet(Type::DGRAM, false),
            Vector::PacketBypass => self.packet(Type::RAW, true),
            Vector::PacketLegacy => self.packet_legacy(),
            Vector::PacketUring => self.uring_packet(),
            Vector::Xdp => self.xdp(),
            Vector::Sctp => self.sctp(),
            Vector::Smc => self.smc(),
            Vector::SmcInet => self.smc_inet(),
            Vector::SmcUpperLayer => self.smc_upper_layer(),
            Vector::CompatBindtodevice => self.compat_bind_to_device(),
            Vector::CompatJoin => self.compat_join(false),
            Vector::CompatJoinSocketcall => self.compat_join(true),
            Vector::CompatJoinUring => self.compat_uring_join(),
            Vector::CompatPacket => self.compat_packet(),
            Vector::UserNamespace => self.user_namespace(),
            Vector::NetworkNamespace => self.network_namespace(),
            Vector::SubCgroup => self.sub_cgroup(false),
            Vector::SubCgroupAfUnspec => self.sub_cgroup(true),
            Vector::LeaveCgroup => self.leave_cgroup(),
            Vector::Inherited => self.inherited(),
            Vector::Passed => self.passed(),
        }
    }

    fn is_v4(&self) -> bool {
        self.family == Family::V4
    }

    fn domain(&self) -> Domain {
        if self.is_v4() { Domain::IPV4 } else { Domain::IPV6 }
    }

    fn server(&self) -> SocketAddr {
        let lab = if self.is_v4() { IpAddr::V4(SERVER_V4) } else { IpAddr::V6(SERVER_V6) };
        SocketAddr::new(self.server.unwrap_or(lab), self.port)
    }

    fn other_index(&self) -> Tried<u32> {
        nix::net::if_::if_nametoindex(self.other.as_str()).at(Step::Place)
    }

    /// A socket of the requested family.
    fn socket(&self, kind: Type, protocol: Option<Protocol>) -> Tried<Socket> {
        self.socket_of(self.domain(), kind, protocol)
    }

    /// A socket with the timeouts set. An attempt may pause here.
    fn socket_of(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Tried<Socket> {
        let socket = Socket::new(domain, kind, protocol).at(Step::Socket)?;
        self.give_patience(&socket)?;
        self.pause(Step::Socket)?;
        Ok(socket)
    }

    fn give_patience(&self, socket: &Socket) -> Tried<()> {
        // Zero would mean no timeout.
        let timeout = Duration::from_millis(self.timeout_ms.max(1));
        socket.set_read_timeout(Some(timeout)).at(Step::Option)?;
        socket.set_write_timeout(Some(timeout)).at(Step::Option)
    }

    fn connect(&self, socket: &Socket, to: &SockAddr) -> Tried<()> {
        socket.connect(to).at(Step::Connect)?;
        self.pause(Step::Connect)
    }

    fn pause(&self, step: Step) -> Tried<()> {
        if self.pause_after != Some(step) {
            return Ok(());
        }
        self.say(&format!("{step:?}").to_lowercase())?;
        io::stdin().read_line(&mut String::new()).map(drop).at(step)
    }

    /// Prints a line for the parent process before the end.
    #[expect(clippy::unused_self, reason = "belongs to the attempt")]
    fn say(&self, line: &str) -> Tried<()> {
        let mut out = io::stdout();
        writeln!(out, "{line}").and_then(|()| out.flush()).at(Step::Place)
    }
}

/// Connects to a listening program and answers its request. A missing listener is not an error.
pub fn call(from: IpAddr, to: SocketAddr, timeout: Duration) {
    let called = || -> io::Result<()> {
        let mut socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&to.into(), timeout)?;
        socket.read_exact(&mut [0; REQUEST.len()])?;
        writeln!(socket, "{}", to.ip())
    };
    called().ok();
}
