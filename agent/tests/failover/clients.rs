//! Many clients during the switch.

use std::{
    io,
    sync::{
        RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Socket, Type};
use steer::apply::failover::Families;
use steer_lab::wait_until;

use crate::bed::{METHODS, NEW, OLD, PATIENCE, THIRD, ask, bed, errno, open, own, sent, server};

const CLIENTS: usize = 1000;

/// 1,000 clients that reconnect all the time: none is on the old line after the switch.
#[test]
fn none_is_left_behind() {
    for method in METHODS {
        let Some(bed) = bed(method) else { return };
        let (target, lines) = (server(true, bed.server.port()).into(), [bed.line(OLD), bed.line(NEW)]);
        // Stands for the choice in the kernel: making a socket and connecting it are one step there.
        let (choice, stop, rounds) = (RwLock::new(0_usize), AtomicBool::new(false), AtomicUsize::new(0));
        // Clients wait from the choice to the first list, so that there are some to end; then they go on.
        let waits = AtomicBool::new(false);
        let connect = || -> io::Result<Socket> {
            while waits.load(Relaxed) {
                thread::yield_now();
            }
            let choice = choice.read().expect("a choice");
            let socket = open(true, Type::STREAM, None, lines[*choice])?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.set_nonblocking(true)?;
            match socket.connect(&target) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(socket),
            }
        };
        let run = || {
            let mut clients: Vec<Option<Socket>> = (0..CLIENTS).map(|_| None).collect();
            while !stop.load(Relaxed) {
                for client in &mut clients {
                    *client = Some(connect().expect("connects"));
                }
                rounds.fetch_add(1, Relaxed);
            }
        };
        let (moved, took) = thread::scope(|scope| {
            let client = &bed.net.client;
            // The clients are threads of this process, which is in the cgroup meanwhile.
            scope.spawn(|| bed.inside(&bed.group, || client.run(run)).expect("the namespace"));
            wait_until("all clients", PATIENCE, || rounds.load(Relaxed) > 0).expect("clients");
            let mut third = bed.capture(THIRD);
            waits.store(true, Relaxed);
            *choice.write().expect("a choice") = 1;
            let begun = Instant::now();
            let moved = bed.leave_with(&[bed.change(Families::Both)], &|| waits.store(false, Relaxed));
            waits.store(false, Relaxed);
            let took = begun.elapsed();
            let (mut old, seen) = (bed.capture(OLD), rounds.load(Relaxed));
            wait_until("each to reconnect twice", PATIENCE, || rounds.load(Relaxed) > seen + 2).expect("clients");
            stop.store(true, Relaxed);
            assert_eq!(sent(&mut old), []);
            assert_eq!(sent(&mut third), []);
            (moved, took)
        });
        println!("{method:?}: {} of {CLIENTS} ended in {took:?}", moved.tcp_ended);
        // Clients may all have reconnected between the list and the end of the first one.
        assert!(moved.remaining.is_empty() && moved.errors.is_empty(), "{moved:?}");
    }
}

/// Programs that send all the time on connected UDP sockets while these are moved: no datagram by a third line, and none with the
/// old address by the new line.
#[test]
fn no_datagram_by_a_third_line() {
    for method in METHODS {
        let Some(mut bed) = bed(method) else { return };
        let sockets: Vec<Socket> = (0..32).map(|i| bed.udp(i % 2 == 0, OLD)).collect();
        bed.hold(0, &sockets.iter().collect::<Vec<_>>());
        let (mut third, mut new) = (bed.capture(THIRD), bed.capture(NEW));
        let (stop, sends) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    for socket in &sockets {
                        match socket.send(b"x") {
                            Err(error) if error.raw_os_error() != Some(libc::EDESTADDRREQ) => panic!("{error}"),
                            _ => sends.fetch_add(1, Relaxed),
                        };
                    }
                }
            });
            wait_until("datagrams", PATIENCE, || sends.load(Relaxed) > 1000).expect("datagrams");
            let moved = bed.leave(&[bed.change(Families::Both)]);
            stop.store(true, Relaxed);
            assert_eq!((moved.udp_reconnected, moved.remaining.len()), (32, 0), "{moved:?}");
        });
        assert_eq!(sent(&mut third), [], "{method:?}");
        let sources = [own(true, NEW), own(false, NEW)];
        let other: Vec<_> = sent(&mut new)
            .into_iter()
            .filter(|packet| !packet.src.is_some_and(|from| sources.contains(&from)))
            .collect();
        assert_eq!(other, [], "{method:?}");
    }
}

/// What a switch of 2,000 connections takes.
#[test]
fn two_thousand_connections() {
    for method in METHODS {
        let Some(bed) = bed(method) else { return };
        let (line, target) = (bed.line(OLD), server(true, bed.server.port()).into());
        let sockets = bed.inside(&bed.group, || {
            let connect = |_| {
                let socket = open(true, Type::STREAM, None, line).expect("a socket");
                socket.connect(&target).expect("connected");
                socket
            };
            (0..2000).map(connect).collect::<Vec<_>>()
        });
        let begun = Instant::now();
        let moved = bed.leave(&[bed.change(Families::Both)]);
        println!("{method:?}: {} connections ended in {:?}", moved.tcp_ended, begun.elapsed());
        assert_eq!((moved.tcp_ended, moved.remaining.len()), (2000, 0), "{:?}", moved.errors);
        assert_eq!(errno(ask(&sockets[1999])), libc::ECONNABORTED);
    }
}
