//! `existing`: the handling of sockets that existed before their policy, or before their uplink was made again.

use std::{fs, io, net::IpAddr, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{Probe, Proto, Server, client_v4, client_v6, wait_until};
use steer_tests::{
    Bed, Cgroup, Daemon, Held, NotHere, Outcome, PATIENCE, Served, Spy, USERS, User, check_outcomes, output,
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("connections_end_and_other_sockets_are_bound", connections_end_and_other_sockets_are_bound),
    ("they_end_without_a_guard", they_end_without_a_guard),
    ("a_connection_with_the_right_address_continues", a_connection_with_the_right_address_continues),
    ("they_are_kept_by_default", they_are_kept_by_default),
    ("others_are_left_alone", others_are_left_alone),
    ("found_wherever_the_process_is", found_wherever_the_process_is),
    ("a_service_continues", a_service_continues),
    ("set_in_the_configuration", set_in_the_configuration),
    ("before_the_daemon_has_seen_the_cgroup", before_the_daemon_has_seen_the_cgroup),
    ("the_outer_policy_takes_over", the_outer_policy_takes_over),
    ("destroyed_when_the_uplink_is_made_again", destroyed_when_the_uplink_is_made_again),
    ("rebound_when_the_uplink_is_made_again", rebound_when_the_uplink_is_made_again),
    ("rebound_by_the_keeper", rebound_by_the_keeper),
    ("an_mptcp_connection_ends", an_mptcp_connection_ends),
    ("an_outer_strict_policy_lets_an_inner_one_act", an_outer_strict_policy_lets_an_inner_one_act),
    ("a_locked_socket_holds_up_nobody", a_locked_socket_holds_up_nobody),
    ("a_failure_does_not_undo_the_attachment", a_failure_does_not_undo_the_attachment),
    ("a_mark_ends_with_its_policy", a_mark_ends_with_its_policy),
];

/// All kinds that steer can recover, for each family.
const KINDS: [&str; 6] = ["--proto", "tcp", "--proto", "udp", "--proto", "udp-unconnected"];

/// A client with sockets that were all answered over uplink `i`.
fn hold(bed: &Bed, cgroup: Option<&Cgroup>, user: User, i: u8) -> anyhow::Result<Held> {
    let mut command = bed.client(cgroup, user)?;
    let port = bed.server.port().to_string();
    let mut held = Held::start(command.args(KINDS).args(["--timeout-ms", "2000", "--port", &port]))?;
    check_outcomes(&held.round()?, user, i)?;
    Ok(held)
}

/// All of the client's sockets are answered over uplink `i` and bound to it.
fn all_by_uplink(bed: &Bed, held: &mut Held, i: u8) -> Outcome {
    let outcomes = held.round()?;
    check_outcomes(&outcomes, User::Root, i)?;
    let uplink = i32::try_from(bed.net.ifindex(i)?)?;
    ensure!(outcomes.iter().all(|outcome| outcome.bound_ifindex == uplink), "{outcomes:#?}");
    Ok(())
}

/// The client's connections fail at once, and its new ones use uplink `i`. Its other sockets continue to work.
fn reconnects(bed: &Bed, held: &mut Held, i: u8) -> Outcome {
    for outcome in held.round()? {
        let as_expected = match outcome.proto {
            Proto::UdpUnconnected => outcome.is_ok(),
            Proto::Udp => outcome.error.as_deref() == Some("EDESTADDRREQ"),
            _ => outcome.error.as_deref() == Some("ECONNABORTED"),
        };
        ensure!(as_expected, "{outcome:?}");
    }
    all_by_uplink(bed, held, i)
}

/// Attaches a cgroup. The command must report these numbers.
fn attach(bed: &Bed, cgroup: &Cgroup, arguments: &[&str], bound: u32, destroyed: u32) -> Outcome {
    let said = bed.succeed(&[&["attach", cgroup.path()], arguments].concat())?;
    let uplink = arguments[1];
    let want = format!("existing sockets of {}: {bound} bound to {uplink}, {destroyed} destroyed\n", cgroup.path());
    ensure!(said.ends_with(&want), "{said:?} is not {want:?}");
    Ok(())
}

fn connections_end_and_other_sockets_are_bound() -> Outcome {
    for existing in ["rebind", "destroy"] {
        for user in USERS {
            let bed = Bed::new("existing-end")?;
            let mut held = hold(&bed, Some(&bed.cgroup), user, 0)?;
            let mut spy = Spy::on(&bed, &["a1"])?;
            // They have addresses of the other link, so they cannot continue.
            attach(&bed, &bed.cgroup, &["-i", "a1", "--existing", existing], 2, 4)?;
            reconnects(&bed, &mut held, 1).with_context(|| format!("{existing}, {user:?}"))?;
            spy.saw_nothing()?;
            ensure!(bed.policy("a1")?["existing"] == existing);
        }
    }
    Ok(())
}

fn they_end_without_a_guard() -> Outcome {
    let bed = Bed::new("existing-steer")?;
    let mut held = hold(&bed, Some(&bed.cgroup), User::Nobody, 0)?;
    attach(&bed, &bed.cgroup, &["-i", "a1", "--existing", "destroy", "--enforce", "steer"], 2, 4)?;
    reconnects(&bed, &mut held, 1)
}

fn a_connection_with_the_right_address_continues() -> Outcome {
    for user in USERS {
        let bed = Bed::new("existing-go-on")?;
        let mut held = hold(&bed, Some(&bed.cgroup), user, 0)?;
        attach(&bed, &bed.cgroup, &["-i", "a0", "--existing", "rebind"], 6, 0)?;
        all_by_uplink(&bed, &mut held, 0)?;
        // Nothing is left to do, also with `destroy`.
        attach(&bed, &bed.cgroup, &["-i", "a0", "--existing", "rebind"], 0, 0)?;
        attach(&bed, &bed.cgroup, &["-i", "a0", "--existing", "destroy"], 0, 0)?;
        all_by_uplink(&bed, &mut held, 0)?;
        // The policy changes to another uplink.
        attach(&bed, &bed.cgroup, &["-i", "a1", "--existing", "destroy"], 2, 4)?;
        reconnects(&bed, &mut held, 1)?;
    }
    Ok(())
}

/// The rules of another policy would refuse what still has a mark.
fn a_mark_ends_with_its_policy() -> Outcome {
    let bed = Bed::new("existing-mark")?;
    let (marked, other) = (bed.cgroup.child("marked")?, bed.cgroup.child("other")?);
    bed.succeed(&["attach", other.path(), "-i", "a0", "--local", "host"])?;
    bed.succeed(&["attach", marked.path(), "-i", "a1", "--local", "lan"])?;
    let mut held = hold(&bed, Some(&marked), User::Nobody, 1)?;
    attach(&bed, &marked, &["-i", "a1", "--existing", "rebind"], 6, 0)?;
    all_by_uplink(&bed, &mut held, 1)
}

/// Every socket continues unchanged.
fn is_undisturbed(held: &mut Held) -> Outcome {
    let outcomes = held.round()?;
    ensure!(outcomes.iter().all(|outcome| outcome.is_ok() && outcome.bound_ifindex == 0), "{outcomes:#?}");
    Ok(())
}

fn they_are_kept_by_default() -> Outcome {
    let bed = Bed::new("existing-keep")?;
    let mut held = hold(&bed, Some(&bed.cgroup), User::Nobody, 0)?;
    let printed = bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", "steer"])?;
    ensure!(printed.lines().count() == 1 && bed.policy("a1")?["existing"] == "keep", "{printed:?}");
    is_undisturbed(&mut held)?;
    let refused = bed.run(&["attach", bed.cgroup.path(), "-i", "none", "--existing", "rebind"])?;
    ensure!(refused.code == 2 && refused.stderr.contains("--existing: an exemption binds no socket"), "{refused:?}");
    Ok(())
}

fn others_are_left_alone() -> Outcome {
    let bed = Bed::new("existing-others")?;
    let (steered, sibling) = (bed.cgroup.child("steered")?, bed.cgroup.child("sibling")?);
    let (below, exempt) = (steered.child("below")?, steered.child("exempt")?);
    let deeper = exempt.child("deeper")?;
    bed.succeed(&["attach", exempt.path(), "-i", "none"])?;
    let mut held = hold(&bed, Some(&below), User::Nobody, 0)?;
    let mut others = Vec::new();
    for (whose, cgroup) in [("exempt", &exempt), ("below exempt", &deeper), ("sibling", &sibling), ("moved", &sibling)]
    {
        others.push((whose, hold(&bed, Some(cgroup), User::Nobody, 0)?));
    }
    // A socket stays in the cgroup in which it was made.
    let (_, moved) = others.last().context("no process to move")?;
    fs::write(steered.directory().join("cgroup.procs"), moved.pid().to_string())?;
    // Sockets that talk to this host, by loopback or its own addresses.
    let local = Server::start(&bed.net.client)?;
    let (v4, v6) = (client_v4(0).to_string(), client_v6(0).to_string());
    let mut command = bed.client(Some(&steered), User::Nobody)?;
    let targets = ["--target", "127.0.0.1", "--target", "::1", "--target", &v4, "--target", &v6];
    command.args(["--proto", "tcp", "--proto", "udp", "--port", &local.port().to_string()]).args(targets);
    others.push(("this host's", Held::start(&mut command)?));
    // Of the same cgroup, but in another network namespace.
    let mut command = Command::new(bed.client(None, User::Root)?.get_program());
    bed.net.server.enter(steered.enter(&mut command));
    command.args(KINDS).args(["--target", &v4, "--target", &v6, "--port", &local.port().to_string()]);
    others.push(("another network namespace's", Held::start(&mut command)?));
    for (whose, other) in &mut others {
        is_undisturbed(other).with_context(|| format!("{whose} sockets, before"))?;
    }

    // No guard hides the effect on them.
    attach(&bed, &steered, &["-i", "a1", "--existing", "destroy", "--enforce", "steer"], 2, 4)?;
    for (whose, other) in &mut others {
        is_undisturbed(other).with_context(|| format!("{whose} sockets"))?;
    }
    reconnects(&bed, &mut held, 1)
}

fn found_wherever_the_process_is() -> Outcome {
    let bed = Bed::new("existing-moved")?;
    let (inside, outside) = (bed.cgroup.child("inside")?, bed.cgroup.child("outside")?);
    let mut held = hold(&bed, Some(&inside), User::Nobody, 0)?;
    fs::write(outside.directory().join("cgroup.procs"), held.pid().to_string())?;
    let printed = bed.succeed(&["attach", inside.path(), "-i", "a1", "--existing", "destroy"])?;
    ensure!(printed.contains("2 bound to a1, 4 destroyed"), "{printed:?}");
    // Its new sockets belong to the other cgroup.
    held.round()?;
    let outcomes = held.round()?;
    let (unconnected, connected): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| outcome.proto == Proto::UdpUnconnected);
    check_outcomes(&unconnected, User::Nobody, 1)?;
    check_outcomes(&connected, User::Nobody, 0)
}

/// Requests to a server in the client's namespace from the server's, at its address on uplink `i`.
fn visit(bed: &Bed, port: u16, i: u8) -> anyhow::Result<Vec<steer_lab::Outcome>> {
    let mut outcomes = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for target in [IpAddr::V4(client_v4(i)), IpAddr::V6(client_v6(i))] {
            let probe = Probe::new(proto, target, port);
            outcomes.push(bed.net.server.run(move || probe.run())?);
        }
    }
    Ok(outcomes)
}

fn a_service_continues() -> Outcome {
    for existing in ["rebind", "destroy"] {
        for user in USERS {
            let bed = Bed::new("existing-serve")?;
            let served = Served::start(&mut bed.client(Some(&bed.cgroup), user)?)?;
            for i in [0, 1] {
                ensure!(visit(&bed, served.port(), i)?.iter().all(steer_lab::Outcome::is_ok), "not reached by a{i}");
            }
            let mut visitor = Command::new(bed.client(None, User::Root)?.get_program());
            let (v4, v6) = (client_v4(0).to_string(), client_v6(0).to_string());
            visitor.args(["--target", &v4, "--target", &v6, "--port", &served.port().to_string()]);
            let mut visitor = Held::start(bed.net.server.enter(&mut visitor))?;
            is_undisturbed(&mut visitor)?;
            // Its listeners and datagram sockets are bound, and the two connections over the other link ended.
            attach(&bed, &bed.cgroup, &["-i", "a1", "--existing", existing], 4, 2)?;
            let outcomes = visit(&bed, served.port(), 1)?;
            ensure!(outcomes.iter().all(steer_lab::Outcome::is_ok), "{existing}, {user:?}: {outcomes:#?}");
            let outcomes = visit(&bed, served.port(), 0)?;
            let refused = |outcome: &steer_lab::Outcome| outcome.error.as_deref() == Some("ECONNREFUSED");
            ensure!(outcomes.iter().all(refused), "{existing}, {user:?}: {outcomes:#?}");
            ensure!(visitor.round()?.iter().all(|outcome| !outcome.is_ok()));
        }
    }
    Ok(())
}

/// A configuration with a policy for the bed's cgroup.
fn config(interface: &str, existing: &str) -> String {
    format!("[[policy]]\nname = \"p\"\ninterface = \"{interface}\"\nexisting = \"{existing}\"\ncgroups = [\"@\"]\n")
}

/// Waits until the daemon has logged its result for the `times`th time.
fn wait_for(bed: &Bed, daemon: &Daemon, times: usize, bound: u32, uplink: &str, destroyed: u32) -> Outcome {
    let line = format!("existing sockets of {}: {bound} bound to {uplink}, {destroyed} destroyed", bed.cgroup.path());
    wait_until(&line, PATIENCE, || {
        let log = daemon.log();
        let found: Vec<_> = log.lines().filter(|line| line.contains("existing sockets of")).collect();
        found.len() == times && found.last().is_some_and(|last| last.ends_with(&line))
    })
    .with_context(|| daemon.log())
}

fn set_in_the_configuration() -> Outcome {
    let bed = Bed::new("existing-config")?;
    let mut held = hold(&bed, Some(&bed.cgroup), User::Nobody, 0)?;
    let daemon = bed.daemon(&config("a1", "destroy"))?;
    wait_for(&bed, &daemon, 1, 2, "a1", 4)?;
    reconnects(&bed, &mut held, 1)?;
    bed.write_config(&config("a0", "destroy"))?;
    wait_for(&bed, &daemon, 2, 2, "a0", 4)?;
    reconnects(&bed, &mut held, 0)?;
    // A new daemon finds nothing to do.
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    let _daemon = Daemon::start(&bed)?;
    all_by_uplink(&bed, &mut held, 0)
}

/// Sockets that a program makes before the daemon has seen its cgroup are not steered at first, but are taken over.
fn before_the_daemon_has_seen_the_cgroup() -> Outcome {
    let bed = Bed::new("existing-window")?;
    let daemon = bed.daemon(&config("a1", "destroy").replace('@', "@/late"))?;
    daemon.freeze(&bed)?;
    let late = bed.cgroup.child("late")?;
    let mut held = hold(&bed, Some(&late), User::Nobody, 0)?;
    daemon.signal(Signal::SIGCONT)?;
    daemon.wait_for_log(&format!("existing sockets of {}: 2 bound to a1, 4 destroyed", late.path()))?;
    reconnects(&bed, &mut held, 1)
}

fn the_outer_policy_takes_over() -> Outcome {
    let bed = Bed::new("existing-outer")?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--existing", "destroy"])?;
    bed.succeed(&["attach", inner.path(), "-i", "a0"])?;
    let mut held = hold(&bed, Some(&inner), User::Root, 0)?;
    let printed = bed.succeed(&["detach", inner.path()])?;
    ensure!(printed.contains("2 bound to a1, 4 destroyed"), "{printed:?}");
    reconnects(&bed, &mut held, 1)
}

fn destroyed_when_the_uplink_is_made_again() -> Outcome {
    for user in USERS {
        let mut bed = Bed::new("existing-again")?;
        let daemon = bed.daemon(&config("a1", "destroy"))?;
        let mut held = hold(&bed, Some(&bed.cgroup), user, 1)?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        bed.net.remove_uplink(1)?;
        // Destroying a datagram socket unbinds it, so the client waits until it can bind again.
        wait_for(&bed, &daemon, 1, 0, "a1", 2)?;
        bed.net.create_uplink(1)?;
        spy.allow(bed.net.ifindex(1)?)?;
        wait_for(&bed, &daemon, 2, 2, "a1", 2)?;
        reconnects(&bed, &mut held, 1).with_context(|| format!("{user:?}"))?;
        spy.saw_nothing()?;
    }
    Ok(())
}

fn rebound_when_the_uplink_is_made_again() -> Outcome {
    for user in USERS {
        let mut bed = Bed::new("existing-rebound")?;
        let daemon = bed.daemon(&config("a1", "rebind"))?;
        let mut held = hold(&bed, Some(&bed.cgroup), user, 1)?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        bed.net.remove_uplink(1)?;
        bed.net.create_uplink(1)?;
        spy.allow(bed.net.ifindex(1)?)?;
        wait_for(&bed, &daemon, 1, 6, "a1", 0)?;
        // The same connections.
        all_by_uplink(&bed, &mut held, 1).with_context(|| format!("{user:?}"))?;
        spy.saw_nothing()?;
    }
    Ok(())
}

fn rebound_by_the_keeper() -> Outcome {
    let mut bed = Bed::new("existing-keeper")?;
    let probe = bed.client(None, User::Root)?.get_program().to_owned();
    let port = bed.server.port().to_string();
    let mut command = bed.steer(&["exec", "-i", "a1", "--existing", "rebind", "--"]);
    bed.cgroup.enter(&mut command).arg(probe).args(KINDS).args(["--timeout-ms", "2000", "--port", &port]);
    let mut held = Held::start(&mut command)?;
    all_by_uplink(&bed, &mut held, 1)?;
    bed.net.remove_uplink(1)?;
    bed.net.create_uplink(1)?;
    let index = bed.net.ifindex(1)?;
    wait_until("the keeper to follow", PATIENCE, || bed.policy("a1").is_ok_and(|policy| policy["ifindex"] == index))?;
    // A command that makes changes waits until the keeper is ready.
    bed.succeed(&["detach", bed.cgroup.path()])?;
    all_by_uplink(&bed, &mut held, 1)?;
    drop(held);
    wait_until("the cgroup to be removed", PATIENCE, || bed.cgroup.children().is_empty())?;
    Ok(())
}

fn an_mptcp_connection_ends() -> Outcome {
    let bed = Bed::new("existing-mptcp")?;
    let mut command = bed.client(Some(&bed.cgroup), User::Nobody)?;
    let mut held = Held::start(command.args(["--proto", "mptcp", "--port", &bed.server.port().to_string()]))?;
    let outcomes = held.round()?;
    if outcomes.iter().any(|outcome| outcome.error.as_deref() == Some("EPROTONOSUPPORT")) {
        eprintln!("this kernel has no MPTCP: skipped");
        return Ok(());
    }
    check_outcomes(&outcomes, User::Nobody, 0)?;
    attach(&bed, &bed.cgroup, &["-i", "a1", "--existing", "destroy", "--enforce", "steer"], 0, 2)?;
    let outcomes = held.round()?;
    ensure!(outcomes.iter().all(|outcome| outcome.error.as_deref() == Some("ECONNABORTED")), "{outcomes:#?}");
    check_outcomes(&held.round()?, User::Nobody, 1)
}

/// A program that holds the locks of its sockets stops neither the sockets of others, nor new cgroups, nor the end of the daemon.
fn a_locked_socket_holds_up_nobody() -> Outcome {
    let bed = Bed::new("existing-locked")?;
    let (locked, fine, late) = (bed.cgroup.child("locked")?, bed.cgroup.child("fine")?, bed.cgroup.path());
    let policy = |name: &str, link: &str| {
        let cgroup = format!("{late}/{name}");
        format!(
            "[[policy]]\nname = \"{name}\"\ninterface = \"{link}\"\nexisting = \"rebind\"\ncgroups = [\"{cgroup}\"]\n"
        )
    };
    let config = |link: &str| ["locked", "fine", "late"].map(|name| policy(name, link)).concat();
    let daemon = bed.daemon(&config("a0"))?;
    let mut command = bed.client(Some(&locked), User::Root)?;
    let port = bed.server.port().to_string();
    let mut holder = Held::start(command.args(["--proto", "udp", "--port", &port]))?;
    check_outcomes(&holder.round()?, User::Root, 0)?;
    let mut other = hold(&bed, Some(&fine), User::Nobody, 0)?;
    match holder.lock() {
        Ok(count) => ensure!(count > 0),
        Err(error) => return Err(NotHere(format!("this kernel has no userfaultfd: {error:#}")).into()),
    }
    bed.write_config(&config("a1"))?;
    bed.succeed(&["reload"])?;
    ensure!(daemon.log().contains("a program of its user holds a socket locked"), "{}", daemon.log());
    other.round()?;
    all_by_uplink(&bed, &mut other, 1)?;
    bed.check_steered(&bed.cgroup.child("late")?, 1)?;
    // Its thread waits, and so the kernel does not report the end of the process; its locks are free.
    daemon.signal(Signal::SIGKILL)?;
    wait_until("the lock of the daemon to be free", PATIENCE, || bed.status().is_ok_and(|it| it["daemon"] == false))?;
    drop(holder);
    ensure!(daemon.end(Signal::SIGKILL)?.is_none());
    Ok(())
}

/// A strict outer policy does not prevent what an inner policy without guards does with its sockets.
fn an_outer_strict_policy_lets_an_inner_one_act() -> Outcome {
    for user in USERS {
        let bed = Bed::new("existing-inner")?;
        let inner = bed.cgroup.child("inner")?;
        let mut held = hold(&bed, Some(&inner), user, 0)?;
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a0"])?;
        attach(&bed, &inner, &["-i", "a1", "--existing", "destroy", "--enforce", "steer"], 2, 4)?;
        let mut spy = Spy::on(&bed, &["a1"])?;
        reconnects(&bed, &mut held, 1).with_context(|| format!("{user:?}"))?;
        spy.saw_nothing()?;
    }
    Ok(())
}

/// Without CAP_SYS_PTRACE the sockets of other users' processes cannot be read.
fn a_failure_does_not_undo_the_attachment() -> Outcome {
    const CAP_SYS_PTRACE: libc::c_ulong = 19;
    let bed = Bed::new("existing-failed")?;
    let mut held = hold(&bed, Some(&bed.cgroup), User::Nobody, 0)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let mut command = bed.steer(&["attach", bed.cgroup.path(), "-i", "a1", "--existing", "destroy"]);
    let drop_capability = || {
        // SAFETY: no pointers.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(drop_capability) };
    let attached = output(&mut command)?;
    ensure!(attached.code == 0 && attached.stdout.contains("0 destroyed, 6 left as they were"), "{attached:?}");
    ensure!(attached.stderr.matches("keeps what it had").count() == 6, "{attached:?}");
    ensure!(attached.stderr.contains("needs CAP_SYS_PTRACE"), "{attached:?}");
    let outcomes = held.round()?;
    ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:#?}");
    spy.saw_nothing()?;
    bed.check_steered(&bed.cgroup, 1)
}
