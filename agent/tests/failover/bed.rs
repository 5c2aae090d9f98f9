//! Three lines to one server. Sockets leave `a1` for `a2`; the default route is `a0`, where nothing may be seen.
//!
//! Sockets are made by this process, which moves into a cgroup for the moment. A second process, in the cgroup, also has them open.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use steer::{
    apply::failover::{Families, Line, Move, Moved, What, leave},
    host::cgroup::Hierarchy,
    model::cgroup_path::CgroupPath,
};
use steer_common::Mark;
use steer_lab::{
    Capture, Direction, Kind, Packet, SERVER_V4, SERVER_V6, Server, Uplinks, client_v4, client_v6, gateway_v4,
    gateway_v6, leaks, wait_until,
};

pub(crate) const THIRD: u8 = 0;
pub(crate) const OLD: u8 = 1;
pub(crate) const NEW: u8 = 2;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;
/// Only one test at a time moves this process.
static PLACE: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Bind,
    Route,
}

pub(crate) const METHODS: [Method; 2] = [Method::Bind, Method::Route];

pub(crate) struct Bed {
    pub(crate) net: Uplinks,
    pub(crate) server: Server,
    pub(crate) method: Method,
    hierarchy: Hierarchy,
    /// A cgroup that uses the group of lines, and one that does not.
    pub(crate) group: CgroupPath,
    pub(crate) other: CgroupPath,
    holders: Vec<Child>,
}

/// `None`: this user may not make namespaces.
pub(crate) fn bed(method: Method) -> Option<Bed> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a network namespace needs root");
        return None;
    }
    let net = Uplinks::with(3).expect("links");
    let server = Server::start(&net.server).expect("a server");
    let hierarchy = Hierarchy::find().expect("cgroup2");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = |name| format!("/steer-test-failover-{}-{number}-{name}", std::process::id()).parse().expect("a path");
    let (group, other): (CgroupPath, CgroupPath) = (path("group"), path("other"));
    for path in [&group, &other] {
        fs::create_dir(hierarchy.directory(path)).expect("a cgroup");
    }
    let bed = Bed { net, server, method, hierarchy, group, other, holders: Vec::new() };
    if method == Method::Route {
        for i in [THIRD, OLD, NEW] {
            let (value, link) = (mark(i).value, bed.net.link(i));
            for (option, gateway) in [("-4", IpAddr::from(gateway_v4(i))), ("-6", gateway_v6(i).into())] {
                bed.ip(&format!("{option} rule add fwmark {value:#x}/{:#x} lookup {}", MASK, 100 + u32::from(i)));
                bed.ip(&format!("{option} route add default via {gateway} dev {link} table {}", 100 + u32::from(i)));
            }
        }
    }
    Some(bed)
}

const MASK: u32 = 0xff00_0000;

fn mark(i: u8) -> Mark {
    Mark { value: (0x81 + u32::from(i)) << 24, mask: MASK }
}

pub(crate) fn server(v4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(if v4 { SERVER_V4.into() } else { SERVER_V6.into() }, port)
}

/// The client's address on a line.
pub(crate) fn own(v4: bool, i: u8) -> IpAddr {
    if v4 { client_v4(i).into() } else { client_v6(i).into() }
}

pub(crate) fn any(v4: bool) -> SocketAddr {
    SocketAddr::new(if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }, 0)
}

impl Bed {
    pub(crate) fn ip(&self, arguments: &str) {
        let mut command = Command::new("ip");
        let output = self.net.client.enter(command.args(arguments.split(' '))).output().expect("ip starts");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn line(&self, i: u8) -> Line {
        let ifindex = self.net.ifindex(i).expect("a link").cast_signed();
        Line { ifindex, mark: (self.method == Method::Route).then_some(mark(i)) }
    }

    /// Runs it in the client's namespace and a cgroup.
    pub(crate) fn inside<R: Send>(&self, cgroup: &CgroupPath, f: impl FnOnce() -> R + Send) -> R {
        let _one = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        let enter = |path: &CgroupPath| fs::write(self.hierarchy.directory(path).join("cgroup.procs"), "0");
        let before = self.hierarchy.own().expect("a cgroup");
        enter(cgroup).expect("entered");
        let result = self.net.client.run(f);
        enter(&before).expect("left");
        result.expect("the namespace")
    }

    /// A new socket of the group on a line.
    pub(crate) fn socket(&self, v4: bool, kind: Type, protocol: Option<Protocol>, i: u8) -> Socket {
        self.socket_of(&self.group, v4, kind, protocol, i)
    }

    pub(crate) fn socket_of(
        &self,
        cgroup: &CgroupPath,
        v4: bool,
        kind: Type,
        protocol: Option<Protocol>,
        i: u8,
    ) -> Socket {
        let line = self.line(i);
        self.inside(cgroup, || open(v4, kind, protocol, line)).expect("a socket")
    }

    /// A TCP connection of the group that was answered.
    pub(crate) fn tcp(&self, v4: bool, i: u8) -> Socket {
        let tcp = self.socket(v4, Type::STREAM, None, i);
        tcp.connect(&server(v4, self.server.port()).into()).expect("connected");
        assert_eq!(ask(&tcp).expect("answered"), own(v4, i));
        tcp
    }

    /// A connected UDP socket of the group that was answered.
    pub(crate) fn udp(&self, v4: bool, i: u8) -> Socket {
        let udp = self.socket(v4, Type::DGRAM, None, i);
        udp.connect(&server(v4, self.server.port()).into()).expect("connected");
        assert_eq!(ask(&udp).expect("answered"), own(v4, i));
        udp
    }

    /// Starts a process of a user in the cgroup that has these sockets open.
    pub(crate) fn hold(&mut self, uid: u32, sockets: &[&Socket]) {
        let fds: Vec<i32> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
        let mut command = Command::new("sleep");
        self.net.client.enter_as(command.arg("1000").stdin(Stdio::null()), uid, uid);
        let keep = move || {
            for &fd in &fds {
                // SAFETY: no pointers.
                if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: system calls between fork and exec; the list was allocated before.
        unsafe { command.pre_exec(keep) };
        let child = command.spawn().expect("sleep starts");
        fs::write(self.hierarchy.directory(&self.group).join("cgroup.procs"), child.id().to_string()).expect("placed");
        self.holders.push(child);
    }

    pub(crate) fn change(&self, family: Families) -> Move {
        Move { from: self.line(OLD), to: self.line(NEW), family, what: What::End }
    }

    pub(crate) fn leave(&self, moves: &[Move]) -> Moved {
        self.leave_with(moves, &|| ())
    }

    /// `meanwhile` runs between the first list and the first action.
    pub(crate) fn leave_with(&self, moves: &[Move], meanwhile: &(dyn Fn() + Sync)) -> Moved {
        let group = self.hierarchy.id(&self.group).expect("an id");
        let concerned = |id| {
            meanwhile();
            id == group
        };
        self.net.client.run(|| leave(&self.hierarchy, &concerned, moves)).expect("the namespace")
    }

    pub(crate) fn capture(&self, i: u8) -> Capture {
        Capture::start(&self.net.client, self.net.link(i)).expect("a capture")
    }
}

/// Runs in the client's namespace.
pub(crate) fn open(v4: bool, kind: Type, protocol: Option<Protocol>, line: Line) -> io::Result<Socket> {
    let socket = Socket::new(if v4 { Domain::IPV4 } else { Domain::IPV6 }, kind, protocol)?;
    match line.mark {
        Some(mark) => socket.set_mark(mark.value)?,
        None => socket.bind_device_by_index_v4(std::num::NonZeroU32::new(line.ifindex.cast_unsigned()))?,
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a request on a connected socket. The answer is the source address that the server saw.
pub(crate) fn ask(mut socket: &Socket) -> io::Result<IpAddr> {
    socket.write_all(b"request\n")?;
    answer(socket)
}

pub(crate) fn answer(mut socket: &Socket) -> io::Result<IpAddr> {
    let mut buffer = [0; 128];
    let len = socket.read(&mut buffer)?;
    String::from_utf8_lossy(&buffer[..len]).trim().parse().map_err(io::Error::other)
}

/// What sockets have sent by a line since the last call.
pub(crate) fn sent(capture: &mut Capture) -> Vec<Packet> {
    let packets = capture.take().expect("a capture");
    let sent = leaks(&packets).into_iter().filter(|packet| !packet.is_kernel_answer());
    sent.filter(|packet| !matches!(packet.kind, Kind::Arp | Kind::Ndp)).cloned().collect()
}

/// Whether packets of a kind have left with an address.
pub(crate) fn left_from(packets: &[Packet], kind: Kind, source: IpAddr) -> bool {
    packets.iter().any(|packet| packet.direction == Direction::Out && packet.kind == kind && packet.src == Some(source))
}

pub(crate) fn errno(result: io::Result<impl std::fmt::Debug>) -> i32 {
    result.expect_err("an error").raw_os_error().expect("an errno")
}

pub(crate) const USERS: [u32; 2] = [0, NOBODY];

impl Drop for Bed {
    fn drop(&mut self) {
        for child in &mut self.holders {
            let _ = child.kill();
            let _ = child.wait();
        }
        for path in [&self.group, &self.other] {
            let directory = self.hierarchy.directory(path);
            let removed = wait_until("the cgroup to be removed", PATIENCE, || fs::remove_dir(&directory).is_ok());
            if let Err(error) = removed {
                eprintln!("{error}");
            }
        }
    }
}
