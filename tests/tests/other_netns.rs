//! Sockets of another network namespace than their policy's, which are left alone.

use std::{net::IpAddr, panic::resume_unwind, process::Command, thread};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{Probe, Proto, SERVER_V4, SERVER_V6, Server, client_v4, client_v6};
use steer_tests::{Bed, Daemon, Held, NotHere, Outcome, Served, Spy, USERS, User, linux_is_at_least};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("they_are_left_alone", they_are_left_alone),
    ("sockets_made_from_others_are_left_alone", sockets_made_from_others_are_left_alone),
    ("older_sockets_are_left_alone", older_sockets_are_left_alone),
    ("older_sockets_are_refused_whatever_the_index", older_sockets_are_refused_whatever_the_index),
    ("their_own_policy_takes_them_over", their_own_policy_takes_them_over),
];

/// Every kind of socket that the client can keep.
const KINDS: [&str; 8] = ["--proto", "tcp", "--proto", "mptcp", "--proto", "udp", "--proto", "udp-unconnected"];

fn they_are_left_alone() -> Outcome {
    let bed = Bed::new("netns-left")?;
    // The policy belongs to another namespace.
    let elsewhere = steer_lab::Netns::new("elsewhere")?;
    let _tun = elsewhere.add_tun("t0")?;
    let mut command = bed.steer_here(&["attach", bed.cgroup.path(), "-i", "t0"]);
    let attached = steer_tests::output(elsewhere.enter(&mut command))?;
    ensure!(attached.code == 0, "{attached:?}");
    bed.check_unsteered(Some(&bed.cgroup))?;
    ensure!(bed.sockets("t0", "stopped_egress")? == 0);
    Ok(())
}

/// A client in the server's namespace, for a server in the client's.
fn elsewhere(bed: &Bed, port: u16, user: User, kinds: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(bed.client(None, User::Root)?.get_program());
    in_server_netns(bed, &mut command, user);
    command.args(kinds).args(["--timeout-ms", "1000", "--port", &port.to_string()]);
    command.args(["--target", &client_v4(0).to_string(), "--target", &client_v6(0).to_string()]);
    Ok(command)
}

fn in_server_netns(bed: &Bed, command: &mut Command, user: User) {
    bed.cgroup.enter(command);
    match user {
        User::Root => bed.net.server.enter(command),
        User::Nobody => bed.net.server.enter_as(command, 65_534, 65_534),
    };
}

/// A server of the cgroup in the server's namespace.
fn served(bed: &Bed, user: User) -> anyhow::Result<Served> {
    let mut command = Command::new(bed.client(None, User::Root)?.get_program());
    in_server_netns(bed, &mut command, user);
    Served::start(command.arg("--mptcp"))
}

/// A client outside the cgroup, in the policy's namespace, for that server.
fn caller(bed: &Bed, served: &Served, user: User) -> anyhow::Result<Held> {
    Held::start(bed.client(None, user)?.args(KINDS).args(["--port", &served.port().to_string()]))
}

/// Connections that a listener accepts, MPTCP subflows, and older sockets.
fn sockets_made_from_others_are_left_alone() -> Outcome {
    for user in USERS {
        let bed = Bed::new("netns-made")?;
        let uplink = bed.net.ifindex(1)?;
        ensure!(bed.net.server.ifindex("b0")? != uplink, "another link of this index");
        let local = Server::start(&bed.net.client)?;
        let mut old = Held::start(&mut elsewhere(&bed, local.port(), user, &["--proto", "udp-unconnected"])?)?;
        ensure!(old.round()?.iter().all(steer_lab::Outcome::is_ok));
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        let going_on = old.round()?;
        ensure!(going_on.iter().all(steer_lab::Outcome::is_ok), "{going_on:#?}");
        let mut new = Held::start(&mut elsewhere(&bed, local.port(), user, &["--proto", "tcp", "--proto", "mptcp"])?)?;
        for outcomes in [new.round()?, new.round()?] {
            check(outcomes).with_context(|| format!("{user:?}"))?;
        }
        let served = served(&bed, user)?;
        for target in [IpAddr::from(SERVER_V4), SERVER_V6.into()] {
            for proto in [Proto::Tcp, Proto::Udp] {
                let probe = Probe::new(proto, target, served.port());
                let outcome = bed.net.client.run(move || probe.run())?;
                ensure!(outcome.is_ok(), "{user:?}: {outcome:?}");
            }
        }
        ensure!(bed.sockets("a1", "stopped_egress")? == 0);
    }
    Ok(())
}

/// Works, or the machine has no sockets of this kind.
fn check(outcomes: Vec<steer_lab::Outcome>) -> Outcome {
    for outcome in outcomes {
        let unknown = outcome.error.as_deref() == Some("EPROTONOSUPPORT");
        ensure!(outcome.is_ok() || unknown, "{outcome:?}");
    }
    Ok(())
}

/// Those from before the policy: what the server's namespace has opened, what it has accepted, and what it accepts later.
fn older_sockets_are_left_alone() -> Outcome {
    if !linux_is_at_least(6, 15) {
        return Err(NotHere("before Linux 6.15 egress cannot ask for the network namespace of a socket".into()).into());
    }
    for user in USERS {
        let bed = Bed::new("netns-older")?;
        let local = Server::start(&bed.net.client)?;
        let served = served(&bed, user)?;
        let opened = |kinds| Held::start(&mut elsewhere(&bed, local.port(), user, kinds)?);
        // An MPTCP socket that is connected cannot be bound.
        let (mut opened, mut bound) = (opened(&KINDS)?, opened(&["--proto", "tcp", "--proto", "udp"])?);
        let mut accepted = caller(&bed, &served, user)?;
        for held in [&mut opened, &mut bound, &mut accepted] {
            check(held.round()?)?;
        }
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        check(accepted.round()?).with_context(|| format!("{user:?}: accepted"))?;
        check(caller(&bed, &served, user)?.round()?).with_context(|| format!("{user:?}: accepted later"))?;
        check(opened.round()?).with_context(|| format!("{user:?}: opened"))?;
        check(bound.round_bound_to("b0")?).with_context(|| format!("{user:?}: an option"))?;
        ensure!(bed.sockets("a1", "stopped_egress")? == 0);
        ensure!(bed.sockets("a1", "stopped_setsockopt")? == 0);
    }
    Ok(())
}

/// A link of another network namespace may have the index of the uplink.
fn older_sockets_are_refused_whatever_the_index() -> Outcome {
    if !linux_is_at_least(6, 15) {
        return Err(NotHere("before Linux 6.15 egress cannot ask for the network namespace of a socket".into()).into());
    }
    let bed = Bed::new("netns-index")?;
    ensure!(bed.net.server.ifindex("b0")? == bed.net.ifindex(0)?, "the links have other indexes");
    let local = Server::start(&bed.net.client)?;
    for user in USERS {
        let kinds = ["--proto", "tcp", "--proto", "udp"];
        let mut held = Held::start(&mut elsewhere(&bed, local.port(), user, &kinds)?)?;
        check(held.round()?)?;
        bed.write_config(
            "[[policy]]\nname = \"p\"\ninterface = \"a0\"\nother_netns = \"refuse\"\ncgroups = [\"@\"]\n",
        )?;
        let daemon = Daemon::start(&bed)?;
        let mut spy = Spy::in_netns(&bed.net.server, &bed.server, &[])?;
        let outcomes = held.round()?;
        ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{user:?}: {outcomes:#?}");
        spy.saw_nothing().with_context(|| format!("{user:?}"))?;
        ensure!(bed.sockets("p", "refused_netns")? > 0);
        daemon.end(Signal::SIGTERM)?;
        bed.succeed(&["off", "--forget"])?;
    }
    Ok(())
}

/// A socket that was left alone for another namespace's policy is not left alone for a policy of its own namespace.
fn their_own_policy_takes_them_over() -> Outcome {
    for user in USERS {
        let bed = Bed::new("netns-own")?;
        let local = Server::start(&bed.net.client)?;
        let served = served(&bed, user)?;
        let opened = || Held::start(&mut elsewhere(&bed, local.port(), user, &KINDS)?);
        let mut held = vec![opened()?, caller(&bed, &served, user)?];
        held.iter_mut().try_for_each(|held| check(held.round()?))?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
        held.push(opened()?);
        check(held[2].round()?)?;
        let mut command = bed.steer_here(&["attach", bed.cgroup.path(), "-i", "b1"]);
        let attached = steer_tests::output(bed.net.server.enter(&mut command))?;
        ensure!(attached.code == 0, "{attached:?}");
        let mut spy = Spy::in_netns(&bed.net.server, &bed.server, &["b1"])?;
        let rounds = thread::scope(|scope| {
            let rounds: Vec<_> = held.iter_mut().map(|held| scope.spawn(|| held.round())).collect();
            rounds
                .into_iter()
                .map(|round| round.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        for outcomes in rounds {
            let outcomes = outcomes?;
            ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{user:?}: {outcomes:#?}");
        }
        spy.saw_nothing().with_context(|| format!("{user:?}"))?;
    }
    Ok(())
}
