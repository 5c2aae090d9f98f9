//! The command line of the probe, so that other binaries can offer it too.
//!
//! **Invariant:** with `--json`, every line on standard output is one JSON value, except the `ready` of the continuous
//! load.

use crate::{
    gaps::Gaps,
    hold::Hold,
    load::Load,
    probe::{Family, Outcome, Probe, Proto},
    prober,
    resolve::Resolve,
    server::serve_here,
    stray::Stray,
    sys,
    uplinks::{SERVER_V4, SERVER_V6},
};
use clap::Args;
use nix::sys::socket::{MsgFlags, recv};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Send requests to a server as an ordinary client program and report the results.
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
#[derive(Args, Clone, Debug)]
pub struct ProbeArgs {
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// The address of a server; may be given more than once [default: the lab's server, both families].
    #[arg(long)]
    pub target: Vec<IpAddr>,
    /// The server's port.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// The kind of socket; may be given more than once [default: tcp].
    #[arg(long, value_enum)]
    pub proto: Vec<Proto>,
    /// Use TCP, UDP, ping and raw sockets.
    #[arg(long, conflicts_with = "proto")]
    pub all: bool,
    /// Leave out targets of the other family.
    #[arg(long, value_enum)]
    pub family: Option<Family>,
    /// The number of requests on each socket.
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// The timeout of each connect, send and receive.
    #[arg(long, default_value_t = 1000)]
    pub timeout_ms: u64,
    /// Make TCP connections and send datagrams until standard input closes. Prints `ready` after the first round and
    /// the counts as JSON at the end.
    #[arg(long, conflicts_with_all = ["proto", "all", "count"])]
    pub repeat_until_stdin_closes: bool,
    /// Talk to the targets until standard input closes, and measure how long there was no answer. Prints `ready` after the first
    /// attempt of each flow, and the flows as JSON at the end.
    #[arg(long, conflicts_with_all = ["proto", "all", "count", "repeat_until_stdin_closes", "resolve", "listen", "hold", "serve", "stray"])]
    pub gaps: bool,
    /// Bind the sockets to this link.
    #[arg(long, value_name = "LINK", requires = "gaps")]
    pub bind: Option<String>,
    /// Query the targets for the address of this name instead; `--proto udp` connects its socket, `udp-unconnected`
    /// does not.
    #[arg(long, conflicts_with_all = ["all", "count", "repeat_until_stdin_closes", "listen"])]
    pub resolve: Option<String>,
    /// Query IPv4 servers with IPv6 sockets.
    #[arg(long, requires = "resolve")]
    pub mapped: bool,
    /// Print the port of a UDP socket on this address instead, and a line for each datagram or quoted datagram that it
    /// receives, until killed.
    #[arg(long, value_name = "IP", num_args = 0..=1, default_missing_value = "0.0.0.0")]
    #[arg(conflicts_with_all = ["proto", "all", "count", "repeat_until_stdin_closes"])]
    pub listen: Option<Ipv4Addr>,
    /// Keep the sockets. For each line of standard input, send one request on each socket and print a line with all
    /// outcomes as JSON. If the line is the name of a link, bind the sockets to it first. A socket that failed is replaced
    /// the next time.
    #[arg(long, conflicts_with_all = ["count", "repeat_until_stdin_closes", "resolve", "listen"])]
    pub hold: bool,
    /// Answer over TCP and UDP instead, on the port that is printed, until killed.
    #[arg(long, conflicts_with_all = ["proto", "all", "count", "repeat_until_stdin_closes", "resolve", "listen", "hold"])]
    pub serve: bool,
    /// Accept MPTCP connections, too, where the machine can.
    #[arg(long, requires = "serve")]
    pub mptcp: bool,
    /// Try to send by this link instead. For each line of standard input, make new sockets and print a line with their
    /// interfaces as JSON. If the line is a port, also send to that port.
    #[arg(long, value_name = "LINK")]
    #[arg(conflicts_with_all = ["proto", "all", "count", "repeat_until_stdin_closes", "resolve", "listen", "hold", "serve"])]
    pub stray: Option<String>,
    /// Instead of talking, do what each line of standard input asks: send in every way, as root and as nobody.
    #[arg(long, conflicts_with_all = ["proto", "all", "count", "repeat_until_stdin_closes", "resolve", "listen", "hold", "serve", "stray"])]
    pub prober: bool,
}

impl ProbeArgs {
    fn targets(&self) -> Vec<IpAddr> {
        let default = [SERVER_V4.into(), SERVER_V6.into()];
        let targets = if self.target.is_empty() { &default[..] } else { &self.target };
        targets.iter().copied().filter(|&ip| self.family.is_none_or(|family| Family::of(ip) == family)).collect()
    }

    fn probes(&self) -> Vec<Probe> {
        let protos = match self.proto.as_slice() {
            _ if self.all => &Proto::COMMON,
            [] => &[Proto::Tcp][..],
            protos => protos,
        };
        let (targets, count, timeout_ms) = (self.targets(), self.count, self.timeout_ms);
        let probes = protos.iter().flat_map(|&proto| {
            targets.iter().map(move |&ip| Probe { count, timeout_ms, ..Probe::new(proto, ip, self.port) })
        });
        probes.collect()
    }
}

/// Does what the arguments request; returns whether everything succeeded.
pub fn run(args: &ProbeArgs, out: &mut (impl Write + Send)) -> io::Result<bool> {
    if args.repeat_until_stdin_closes {
        return repeat(args, out);
    }
    if args.gaps {
        return gaps(args, out);
    }
    if let Some(ip) = args.listen {
        return listen(ip, out);
    }
    if args.serve {
        match serve_here(args.mptcp, |port| writeln!(out, "{port}").and_then(|()| out.flush()))? {}
    }
    if args.hold {
        return hold(args, out);
    }
    if args.prober {
        return prober::serve(out).map(|()| true);
    }
    if let Some(link) = &args.stray {
        return stray(link, out);
    }
    let mut ok = true;
    for probe in args.probes() {
        let outcome = match &args.resolve {
            Some(name) => Resolve { probe, name: name.clone(), mapped: args.mapped }.run(),
            None => probe.run(),
        };
        ok &= outcome.is_ok();
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&outcome)?)?;
        } else {
            writeln!(out, "{}", describe(&outcome))?;
        }
    }
    Ok(ok)
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { proto, family, target, bound_ifindex, stage, .. } = outcome;
    let result = match (&outcome.error, &outcome.saw) {
        (Some(error), _) => format!("{error} at {stage:?}").to_lowercase(),
        (None, saw) => format!("seen as {}", saw.as_deref().unwrap_or("unknown")),
    };
    format!("{proto:?} {family:?} {target}: ").to_lowercase()
        + &format!("{result} (bound to interface {bound_ifindex})")
}

fn listen(ip: Ipv4Addr, out: &mut impl Write) -> io::Result<bool> {
    let socket = UdpSocket::bind((ip, 0))?;
    sys::set_socket_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, &1_i32.to_ne_bytes())?;
    writeln!(out, "{}", socket.local_addr()?.port())?;
    loop {
        out.flush()?;
        match socket.recv_from(&mut [0; 64]) {
            Ok((length, _)) => writeln!(out, "heard {length}")?,
            // An ICMP error. The kernel keeps what it quotes.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let length = recv(socket.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_ERRQUEUE)?;
                writeln!(out, "quoted {length}")?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// In the place of a link: the client holds the locks of its sockets. No link has this name.
const LOCK: &str = "/lock";

fn hold(args: &ProbeArgs, out: &mut impl Write) -> io::Result<bool> {
    let mut hold = Hold::new(args.probes());
    for line in io::stdin().lines() {
        let link = Some(line?).filter(|link| !link.is_empty());
        if link.as_deref() == Some(LOCK) {
            writeln!(out, "{}", hold.lock()?)?;
        } else {
            writeln!(out, "{}", serde_json::to_string(&hold.round(link.as_deref()))?)?;
        }
        out.flush()?;
    }
    Ok(true)
}

fn stray(link: &str, out: &mut impl Write) -> io::Result<bool> {
    let stray = Stray::new(link)?;
    for line in io::stdin().lines() {
        writeln!(out, "{}", serde_json::to_string(&stray.round(line?.parse().ok()))?)?;
        out.flush()?;
    }
    Ok(true)
}

fn gaps(args: &ProbeArgs, out: &mut (impl Write + Send)) -> io::Result<bool> {
    let stop = AtomicBool::new(false);
    let targets = args.targets().into_iter().map(|ip| SocketAddr::new(ip, args.port)).collect();
    let gaps = Gaps { targets, bind: args.bind.clone() };
    let mut ready = Ok(());
    let flows = thread::scope(|scope| {
        scope.spawn(|| {
            // An input that cannot be read counts as closed.
            io::stdin().lock().read_to_end(&mut Vec::new()).ok();
            stop.store(true, Ordering::Relaxed);
        });
        gaps.run(&stop, || ready = writeln!(out, "ready").and_then(|()| out.flush()))
    });
    ready?;
    writeln!(out, "{}", serde_json::to_string(&flows)?)?;
    Ok(true)
}

fn repeat(args: &ProbeArgs, out: &mut impl Write) -> io::Result<bool> {
    let stop = AtomicBool::new(false);
    let targets = args.targets().into_iter().map(|ip| SocketAddr::new(ip, args.port)).collect();
    let load = Load { targets, timeout_ms: args.timeout_ms };
    let mut ready = Ok(());
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            // An input that cannot be read counts as closed.
            io::stdin().lock().read_to_end(&mut Vec::new()).ok();
            stop.store(true, Ordering::Relaxed);
        });
        load.run(&stop, || ready = writeln!(out, "ready").and_then(|()| out.flush()))
    });
    ready?;
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    Ok(report.errors.is_empty())
}
