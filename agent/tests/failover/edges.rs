//! Sockets without a process or a cgroup, those that cannot move, and those that are made meanwhile.

use std::sync::Mutex;

use socket2::{Socket, Type};
use steer::apply::failover::{Families, LeaveError, Line, Move, What, Why};
use steer_lab::wait_until;

use crate::bed::{METHODS, Method, NEW, OLD, PATIENCE, THIRD, any, ask, bed, errno, own, sent, server};

/// In a black hole: what a process has left of a connection, and one that was not accepted, send nothing by the old line any more.
#[test]
fn sockets_without_a_process() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let listener = bed.socket(true, Type::STREAM, None, OLD);
        listener.bind(&any(true).into()).expect("a port");
        listener.listen(16).expect("listens");
        let port = listener.local_addr().expect("an address").as_socket().expect("IP").port();
        bed.hold(0, &[&listener]);
        let to = std::net::SocketAddr::new(own(true, OLD), port);
        let waits = bed.net.server.run(|| std::net::TcpStream::connect(to)).expect("the namespace").expect("connected");
        let orphan = bed.tcp(true, OLD);
        // From now on, nothing that is sent by the old line arrives.
        bed.ip("neigh replace 10.0.1.1 lladdr 02:00:00:00:00:99 dev a1 nud permanent");
        drop(orphan);
        // A request whose answer never arrives.
        let half = bed.net.server.run(|| {
            let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            let _ = socket.connect(&to.into());
            Ok::<_, std::io::Error>(socket)
        });
        let _half = half.expect("the namespace").expect("a socket");
        let listed = |state: &str| {
            let mut ss = std::process::Command::new("ss");
            bed.net.client.enter(ss.args(["-Htn", "state", state])).output().expect("ss").stdout
        };
        wait_until("the request", PATIENCE, || !listed("syn-recv").is_empty()).expect("a request");
        assert!(!listed("fin-wait-1").is_empty(), "an orphan");
        let moved = bed.leave(&[bed.change(Families::Both)]);
        assert_eq!((moved.tcp_ended, moved.rebound), (3, 1), "{moved:?}");
        assert!(moved.remaining.is_empty() && moved.errors.is_empty(), "{moved:?}");
        assert_eq!(String::from_utf8_lossy(&listed("fin-wait-1")), "");
        // The server sends its request again, and may be answered by the new line.
        let again = bed.leave(&[bed.change(Families::Both)]);
        assert_eq!((again.tcp_ended, again.remaining.len()), (0, 0), "{again:?}");
        drop(waits);
    }
}

/// The kernel does not keep the cgroup of a connection in TIME_WAIT. The mark tells whose it is; the binding does not.
#[test]
fn connections_in_time_wait() {
    for (method, ended, left) in [(Method::Bind, 0, 1), (Method::Route, 1, 0)] {
        let Some(bed) = bed(method) else { return };
        let tcp = bed.tcp(true, OLD);
        tcp.shutdown(std::net::Shutdown::Write).expect("closed");
        wait_until("the end", PATIENCE, || ask_end(&tcp)).expect("the end");
        drop(tcp);
        let moved = bed.leave(&[bed.change(Families::Both)]);
        assert_eq!((moved.tcp_ended, moved.time_wait), (ended, left), "{moved:?}");
    }
}

fn ask_end(tcp: &Socket) -> bool {
    use std::io::Read as _;
    let mut tcp = tcp;
    tcp.read(&mut [0; 64]).is_ok_and(|len| len == 0)
}

/// Programs that chose an address of the old line themselves: connections end, others are reported as they are.
#[test]
fn held_by_an_address() {
    for method in METHODS {
        for v4 in [true, false] {
            let Some(mut bed) = bed(method) else { return };
            let at = std::net::SocketAddr::new(own(v4, OLD), 0).into();
            let make = |kind| {
                let socket = bed.socket(v4, kind, None, OLD);
                socket.bind(&at).expect("bound");
                socket
            };
            let [tcp, connected] = [Type::STREAM, Type::DGRAM].map(|kind| {
                let socket = make(kind);
                socket.connect(&server(v4, bed.server.port()).into()).expect("connected");
                assert_eq!(ask(&socket).expect("answered"), own(v4, OLD));
                socket
            });
            let (unconnected, listener) = (make(Type::DGRAM), make(Type::STREAM));
            listener.listen(1).expect("listens");
            bed.hold(0, &[&connected, &unconnected, &listener]);
            let moved = bed.leave(&[bed.change(Families::Both)]);
            assert_eq!((moved.tcp_ended, moved.rebound, moved.udp_reconnected), (1, 0, 0), "{moved:?}");
            let address = Why::Address(own(v4, OLD));
            assert_eq!(moved.remaining.iter().map(|left| left.why).collect::<Vec<_>>(), [address; 3], "{moved:?}");
            assert_eq!(errno(ask(&tcp)), libc::ECONNABORTED);
            assert_eq!(ask(&connected).expect("answered"), own(v4, OLD));
        }
    }
}

/// A socket that is made by the old choice after the first list is found by the next look.
#[test]
fn made_meanwhile() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let first = (bed.tcp(true, OLD), bed.udp(true, OLD));
        let late = [Type::STREAM, Type::DGRAM].map(|kind| bed.socket(true, kind, None, OLD));
        bed.hold(0, &[&first.1, &late[1]]);
        let waiting = Mutex::new(true);
        let moved = bed.leave_with(&[bed.change(Families::Both)], &|| {
            if std::mem::take(&mut *waiting.lock().expect("a flag")) {
                for socket in &late {
                    socket.connect(&server(true, bed.server.port()).into()).expect("connected");
                }
            }
        });
        assert_eq!((moved.tcp_ended, moved.udp_reconnected, moved.remaining.len()), (2, 2, 0), "{moved:?}");
        assert_eq!(errno(ask(&late[0])), libc::ECONNABORTED);
        assert_eq!(ask(&late[1]).expect("answered"), own(true, NEW));
    }
}

/// There is no other line, or another group's sockets; and connections that may linger.
#[test]
fn left_alone() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let (tcp, udp) = (bed.tcp(true, OLD), bed.udp(true, OLD));
        let listener = bed.socket(true, Type::STREAM, None, OLD);
        listener.bind(&any(true).into()).expect("a port");
        listener.listen(1).expect("listens");
        let this_host = bed.socket(true, Type::DGRAM, None, OLD);
        this_host.connect(&std::net::SocketAddr::new(own(true, OLD), 9).into()).expect("connected");
        bed.hold(0, &[&udp, &listener, &this_host]);
        let nowhere = Line { ifindex: 9999, ..bed.line(NEW) };
        let moved = bed.leave(&[Move { to: nowhere, ..bed.change(Families::Both) }]);
        assert!(matches!(moved.errors[..], [LeaveError::NoLine(9999)]), "{moved:?}");
        let elsewhere = bed.leave(&[Move { from: bed.line(THIRD), ..bed.change(Families::Both) }]);
        assert_eq!((elsewhere.tcp_ended, elsewhere.rebound), (0, 0), "{elsewhere:?}");
        let linger = bed.leave(&[Move { what: What::Linger, ..bed.change(Families::Both) }]);
        assert_eq!((linger.tcp_ended, linger.udp_reconnected, linger.rebound), (0, 0, 1), "{linger:?}");
        assert_eq!(ask(&tcp).expect("undisturbed"), own(true, OLD));
        assert_eq!(ask(&udp).expect("undisturbed"), own(true, OLD));
        let end = bed.leave(&[bed.change(Families::Both)]);
        assert_eq!((end.tcp_ended, end.udp_reconnected, end.rebound, end.remaining.len()), (1, 1, 0, 0), "{end:?}");
    }
}

/// Several lines are left in one call.
#[test]
fn two_lines_at_once() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let sockets = [THIRD, OLD, NEW].map(|i| (bed.tcp(false, i), bed.udp(false, i)));
        bed.hold(0, &sockets.each_ref().map(|(_, udp)| udp));
        let change = bed.change(Families::Both);
        let moved = bed.leave(&[change, Move { from: bed.line(THIRD), ..change }]);
        assert_eq!((moved.tcp_ended, moved.udp_reconnected, moved.remaining.len()), (2, 2, 0), "{moved:?}");
        let mut captures = [THIRD, OLD].map(|i| bed.capture(i));
        for (_, udp) in &sockets {
            assert_eq!(ask(udp).expect("answered"), own(false, NEW));
        }
        assert_eq!(ask(&sockets[2].0).expect("undisturbed"), own(false, NEW));
        assert!(captures.iter_mut().all(|capture| sent(capture).is_empty()));
    }
}
