//! `local` and `except`: what a steered program reaches besides its uplink, by which link, and that nothing else gets out.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount, umount};
use steer_lab::{
    Attempt, Capture, Family, Outcome as Probed, Proto, SERVER_V4, SERVER_V6, Server, Vector, client_v4, client_v6,
    gateway_v4, gateway_v6, leaks, parse_outcomes,
    prober::{Request, Way},
    wait_until,
};
use steer_tests::{Bed, Outcome, PATIENCE, Prober, Scene, Spy, Try, USERS, User, linux_is_at_least, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("more_policies_than_marks", more_policies_than_marks),
    ("this_host", this_host),
    ("listeners_are_reached_from_this_host_and_the_lan", listeners_are_reached_from_this_host_and_the_lan),
    ("the_lan", the_lan),
    ("the_lan_is_followed", the_lan_is_followed),
    ("exceptions", exceptions),
    ("the_longest_prefix_wins", the_longest_prefix_wins),
    ("while_the_uplink_is_missing", while_the_uplink_is_missing),
    ("commands_use_the_marks_of_the_daemon", commands_use_the_marks_of_the_daemon),
    ("routes_are_put_back", routes_are_put_back),
    ("addresses_that_come_and_go", addresses_that_come_and_go),
    ("nothing_stays_behind", nothing_stays_behind),
    ("without_a_daemon_the_keeper_follows", without_a_daemon_the_keeper_follows),
    ("added_by_reload", added_by_reload),
];

/// What a client gets from targets, with every common kind of socket and more.
fn probe(bed: &Bed, user: User, targets: &[IpAddr], port: u16) -> anyhow::Result<Vec<Probed>> {
    let mut client = bed.client(Some(&bed.cgroup), user)?;
    client.args(["--json", "--timeout-ms", "500", "--port", &port.to_string()]);
    for proto in ["tcp", "udp", "udp-unconnected", "ping"] {
        client.args(["--proto", proto]);
    }
    for target in targets {
        client.args(["--target", &target.to_string()]);
    }
    let output = output(&mut client)?;
    parse_outcomes(&output.stdout).with_context(|| format!("{output:?}"))
}

/// Whether an answer came to each probe, from a server that saw this source.
fn check_reached(outcomes: &[Probed], source: IpAddr) -> Outcome {
    ensure!(!outcomes.is_empty(), "no probe");
    for outcome in outcomes {
        ensure!(outcome.is_ok(), "no answer: {outcome:?}");
        let saw = outcome.saw.as_deref();
        ensure!(outcome.proto == Proto::Ping || saw == Some(&source.to_string()), "not {source}: {outcome:?}");
    }
    Ok(())
}

/// Whether each probe failed at once.
fn check_refused(outcomes: &[Probed]) -> Outcome {
    ensure!(!outcomes.is_empty(), "no probe");
    for outcome in outcomes {
        let errors = ["EPERM", "EACCES", "ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED"];
        ensure!(outcome.error.as_deref().is_some_and(|error| errors.contains(&error)), "{outcome:?}");
    }
    Ok(())
}

pub(crate) fn this_host() -> Outcome {
    let bed = Bed::new("reach-host")?;
    let server = Server::start(&bed.net.client)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    let mut spy = Spy::on(&bed, &[])?;
    for (user, is_moved) in USERS.map(|user| (user, false)).into_iter().chain([(User::Nobody, true)]) {
        if is_moved {
            // As the kernel's documentation of VRFs says.
            for family in ["-4", "-6"] {
                bed.ip(&format!("{family} rule add pref 32765 lookup local"))?;
                bed.ip(&format!("{family} rule delete pref 0 lookup local"))?;
            }
        }
        let own: [(IpAddr, IpAddr); 6] = [
            (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
            (Ipv4Addr::new(127, 0, 0, 53).into(), Ipv4Addr::LOCALHOST.into()),
            (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            (client_v4(0).into(), client_v4(0).into()),
            (client_v6(1).into(), client_v6(1).into()),
            (client_v4(1).into(), client_v4(1).into()),
        ];
        for (target, source) in own {
            check_reached(&probe(&bed, user, &[target], server.port())?, source)
                .with_context(|| format!("{target} as {user:?}, moved: {is_moved}"))?;
        }
    }
    groups_on_loopback(&bed)?;
    spy.saw_nothing()?;
    groups_of_ipv6_need_a_link(&bed)?;
    bed.check_steered(&bed.cgroup, 1)?;
    // Directly connected, but not asked for.
    let mut spy = Spy::on(&bed, &["a1"])?;
    for user in USERS {
        let near = probe(&bed, user, &[gateway_v4(0).into(), gateway_v6(0).into()], bed.server.port())?;
        ensure!(near.iter().all(Probed::is_ok), "by the uplink: {near:?}");
    }
    spy.saw_nothing()
}

fn attempt(bed: &Bed, vector: Vector, user: User, family: Family, options: &[&str]) -> anyhow::Result<Attempt> {
    let this = Try { vector, user, family, scene: Scene::Steered, timeout: Duration::from_millis(50) };
    let ran = output(bed.escape_program(this, &bed.cgroup)?.args(options))?;
    Ok(Attempt::parse(ran.stdout.lines().last().with_context(|| format!("{ran:?}"))?)?)
}

/// Joins by index, and by address.
fn groups_on_loopback(bed: &Bed) -> Outcome {
    for user in USERS {
        for family in [Family::V4, Family::V6] {
            for vector in [Vector::Join, Vector::JoinGroup, Vector::JoinSource, Vector::JoinByAddress] {
                let options = ["--other", "lo", "--source", if family == Family::V4 { "127.0.0.1" } else { "::1" }];
                let attempt = attempt(bed, vector, user, family, &options)?;
                ensure!(attempt.is_ok() || !attempt.is_applicable(), "{attempt:?} as {user:?}");
            }
        }
    }
    Ok(())
}

/// The kernel looks for the link of a group in the table `local`, before all rules.
fn groups_of_ipv6_need_a_link(bed: &Bed) -> Outcome {
    let mut spy = Spy::on(bed, &["a1"])?;
    for user in USERS {
        let without = attempt(bed, Vector::MulticastSend, user, Family::V6, &[])?;
        ensure!(without.outcome == "EPERM", "{without:?}");
        let by_uplink = attempt(bed, Vector::MulticastIf, user, Family::V6, &["--other", "a1"])?;
        ensure!(by_uplink.is_ok(), "{by_uplink:?}");
    }
    spy.saw_nothing()?;
    let events = bed.succeed(&["events", "--once"])?;
    ensure!(events.contains("stopped_egress") && events.contains("IPV6_MULTICAST_IF"), "{events}");
    Ok(())
}

fn listeners_are_reached_from_this_host_and_the_lan() -> Outcome {
    let bed = Bed::new("reach-listen")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host,lan"])?;
    for user in USERS {
        let mut serving = bed.client(Some(&bed.cgroup), user)?.arg("--serve").stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(serving.stdout.take().context("no pipe")?).lines();
        let port = lines.next().context("no port")??.parse::<u16>()?;
        let own: [IpAddr; 6] = [
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            client_v4(0).into(),
            client_v6(0).into(),
            client_v4(1).into(),
            client_v6(1).into(),
        ];
        for target in own {
            let from_here = [("tcp", &bed.net.client), ("udp", &bed.net.client)];
            let from_the_lan = [("tcp", &bed.net.server), ("udp", &bed.net.server)];
            let from_the_lan = from_the_lan.iter().filter(|_| !target.is_loopback());
            for (proto, netns) in from_here.iter().chain(from_the_lan) {
                let mut client = Command::new(bed.copy_of("STEER_PROBE", "steer-probe")?);
                client.args(["--json", "--timeout-ms", "2000", "--proto", proto, "--port", &port.to_string()]);
                let answer = output(netns.enter(client.args(["--target", &target.to_string()])))?;
                let outcomes = parse_outcomes(&answer.stdout)?;
                ensure!(outcomes.len() == 1 && outcomes[0].is_ok(), "{proto} to {target} as {user:?}: {answer:?}");
            }
        }
        serving.kill()?;
        serving.wait()?;
    }
    Ok(())
}

fn the_lan() -> Outcome {
    let bed = Bed::new("reach-lan")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "lan"])?;
    for user in USERS {
        let mut lan = Capture::start(&bed.net.client, "a0")?;
        let near = probe(&bed, user, &[gateway_v4(0).into()], bed.server.port())?;
        check_reached(&near, client_v4(0).into())?;
        check_reached(&probe(&bed, user, &[gateway_v6(0).into()], bed.server.port())?, client_v6(0).into())?;
        let packets = lan.take()?;
        ensure!(leaks(&packets).len() >= 8, "too few packets: {packets:?}");
    }
    bed.check_steered(&bed.cgroup, 1)
}

fn the_lan_is_followed() -> Outcome {
    let bed = Bed::new("reach-lan-follow")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"lan\"]\ncgroups = [\"@\"]\n")?;
    let (ours, theirs) = (Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 1));
    let reaches = || {
        let outcomes = probe(&bed, User::Nobody, &[theirs.into()], bed.server.port());
        outcomes.is_ok_and(|outcomes| check_reached(&outcomes, ours.into()).is_ok())
    };
    let mut spy = Spy::on(&bed, &["a1"])?;
    ensure!(!reaches());
    spy.saw_nothing()?;
    bed.net.server.add_address("b0", theirs.into(), 24)?;
    bed.net.client.add_address("a0", ours.into(), 24)?;
    wait_until("the new network to be reached", PATIENCE, reaches)?;
    bed.ip(&format!("address delete {ours}/24 dev a0"))?;
    wait_until("the network to be gone from the tables", PATIENCE, || {
        tables(&bed).is_ok_and(|tables| !tables.contains("10.9.0.0"))
    })?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    ensure!(!reaches());
    spy.saw_nothing()?;
    bed.check_steered(&bed.cgroup, 1)
}

pub(crate) fn exceptions() -> Outcome {
    let bed = Bed::new("reach-except")?;
    let server: [IpAddr; 2] = [SERVER_V4.into(), SERVER_V6.into()];
    for (by, link) in [("a0", Some(0)), ("main", Some(0)), ("a1", Some(1)), ("refuse", None), ("a9", None)] {
        let except = server.map(|address| format!("{address}={by}")).join(",");
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--except", &except])?;
        for user in USERS {
            let allowed: &[&str] = match link {
                Some(0) => &["a0"],
                Some(_) => &["a1"],
                None => &[],
            };
            let mut spy = Spy::on(&bed, allowed)?;
            for address in server {
                let outcomes = probe(&bed, user, &[address], bed.server.port())?;
                match (link, address) {
                    (None, _) => check_refused(&outcomes),
                    (Some(i), IpAddr::V4(_)) => check_reached(&outcomes, client_v4(i).into()),
                    (Some(i), IpAddr::V6(_)) => check_reached(&outcomes, client_v6(i).into()),
                }
                .with_context(|| format!("{address} by {by} as {user:?}"))?;
            }
            spy.saw_nothing().with_context(|| format!("by {by} as {user:?}"))?;
        }
        if by == "refuse" {
            // TCP, and UDP in both ways, of two users over two families.
            ensure!(bed.sockets("a1", "stopped_except")? >= 12, "refusals are not counted");
            let events = bed.succeed(&["events", "--once"])?;
            ensure!(events.contains("stopped_except") && events.contains(&SERVER_V4.to_string()), "{events}");
        }
    }
    // The kernel looks for its own addresses before all rules.
    let own = [IpAddr::V4(client_v4(0)), client_v6(0).into()];
    let all = ["--local", "host", "--except", "0.0.0.0/1=refuse,8000::/1=refuse"];
    bed.succeed(&[&["attach", bed.cgroup.path(), "-i", "a1"], &all[..]].concat())?;
    let here = Server::start(&bed.net.client)?;
    for address in own {
        check_reached(&probe(&bed, User::Nobody, &[address], here.port())?, address)?;
    }
    Ok(())
}

fn the_longest_prefix_wins() -> Outcome {
    let bed = Bed::new("reach-longest")?;
    let except = format!("198.51.100.0/24=a1,{SERVER_V4}=a0,198.51.0.0/16=refuse,fd00:ffff::/32=a0,{SERVER_V6}=refuse");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "lan", "--except", &except])?;
    check_reached(&probe(&bed, User::Nobody, &[SERVER_V4.into()], bed.server.port())?, client_v4(0).into())?;
    let mut spy = Spy::on(&bed, &[])?;
    let refused = [IpAddr::V6(SERVER_V6), Ipv4Addr::new(198, 51, 7, 7).into()];
    check_refused(&probe(&bed, User::Nobody, &refused, bed.server.port())?)?;
    spy.saw_nothing()?;
    // All of IPv6, with the prefix that would hold the mapped IPv4 addresses.
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--except", "::/1=refuse,8000::/1=refuse"])?;
    check_reached(&probe(&bed, User::Nobody, &[SERVER_V4.into()], bed.server.port())?, client_v4(1).into())?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    check_refused(&probe(&bed, User::Nobody, &[SERVER_V6.into()], bed.server.port())?)?;
    spy.saw_nothing()
}

fn while_the_uplink_is_missing() -> Outcome {
    let mut bed = Bed::new("reach-missing")?;
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\", \"lan\"]\ncgroups = [\"@\"]\n";
    let _daemon = bed.daemon(config)?;
    let here = Server::start(&bed.net.client)?;
    for round in 0..2 {
        bed.net.remove_uplink(1)?;
        bed.check_closed(&bed.cgroup).with_context(|| format!("round {round}"))?;
        check_reached(
            &probe(&bed, User::Nobody, &[Ipv4Addr::LOCALHOST.into()], here.port())?,
            Ipv4Addr::LOCALHOST.into(),
        )?;
        check_reached(&probe(&bed, User::Nobody, &[gateway_v4(0).into()], bed.server.port())?, client_v4(0).into())?;
        bed.net.create_uplink(1)?;
        wait_until("the routes of the uplink", PATIENCE, || bed.check_steered(&bed.cgroup, 1).is_ok())?;
    }
    Ok(())
}

/// A command does not know the daemon's file.
fn commands_use_the_marks_of_the_daemon() -> Outcome {
    let bed = Bed::new("reach-marks")?;
    let policy = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\"]\ncgroups = [\"@\"]\n";
    let daemon = bed.daemon(&format!("[route]\nmark_mask = \"0xf0000000\"\n{policy}"))?;
    let rules = || bed.ip("-4 rule");
    let before = rules()?;
    ensure!(before.contains("0xf0000000"), "{before}");
    let ran =
        bed.run(&["exec", "-i", "a1", "--local", "host", "--except", "198.51.100.0/24=a0", "--", "ip", "rule"])?;
    let kept = before.lines().all(|rule| ran.stdout.contains(rule.trim()));
    ensure!(ran.code == 0 && kept && !ran.stderr.contains("mark_mask"), "{ran:?}");
    ensure!(!daemon.log().contains("another program removed"), "{}", daemon.log());
    bed.check_steered(&bed.cgroup, 1)
}

/// Other tools delete rules and routes.
fn routes_are_put_back() -> Outcome {
    let bed = Bed::new("reach-back")?;
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\", \"lan\"]\ncgroups = [\"@\"]\n";
    let daemon = bed.daemon(config)?;
    let before = tables(&bed)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    for delete in [
        "rule delete pref 40000",
        "-6 rule delete pref 40000",
        "rule delete pref 40001",
        "rule delete pref 40999",
        "-6 rule delete pref 40999",
        "-4 flush",
        "-6 flush",
    ] {
        let load = bed.load(&bed.cgroup)?;
        match delete.strip_suffix(" flush") {
            Some(family) => bed.flush_steer_routes(family)?,
            None => drop(bed.ip(delete)?),
        }
        wait_until("the tables to be as before", PATIENCE, || tables(&bed).is_ok_and(|now| now == before))
            .with_context(|| delete.to_owned())?;
        let report = load.stop()?;
        spy.saw_nothing().with_context(|| format!("{delete}: {report:?}"))?;
        bed.check_steered(&bed.cgroup, 1).with_context(|| delete.to_owned())?;
    }
    ensure!(daemon.log().contains("another program removed"), "{}", daemon.log());
    Ok(())
}

/// An address that goes while its route is written is no fault to report.
fn addresses_that_come_and_go() -> Outcome {
    let bed = Bed::new("reach-addresses")?;
    let config = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"lan\"]\ncgroups = [\"@\"]\n";
    let daemon = bed.daemon(config)?;
    let before = tables(&bed)?;
    let script = bed.directory.join("batch");
    // All of a group at once, again and again, so that a reading is often old when it is used.
    let group = |action: &str| {
        let lines: Vec<String> = (1..9).map(|i| format!("address {action} 10.9.{i}.2/24 dev a0\n")).collect();
        lines.concat()
    };
    std::fs::write(&script, (group("add") + &group("delete")).repeat(1000))?;
    bed.ip(&format!("-batch {}", script.display()))?;
    wait_until("the tables to be as before", PATIENCE, || tables(&bed).is_ok_and(|now| now == before))?;
    ensure!(!daemon.log().contains("not written"), "{}", daemon.log());
    bed.check_steered(&bed.cgroup, 1)
}

fn nothing_stays_behind() -> Outcome {
    let bed = Bed::new("reach-off")?;
    let before = tables(&bed)?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host,lan", "--except", "203.0.113.0/24=a0"])?;
    ensure!(bed.succeed(&["status"])?.contains("  strict; local host, lan; 1 exception\n"), "no exception in status");
    bed.succeed(&["attach", inner.path(), "-i", "a0", "--local", "host"])?;
    ensure!(tables(&bed)? != before);
    bed.succeed(&["detach", inner.path()])?;
    bed.succeed(&["detach", bed.cgroup.path()])?;
    ensure!(tables(&bed)? == before, "detach: {}", tables(&bed)?);
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    bed.succeed(&["off", "--forget"])?;
    ensure!(tables(&bed)? == before, "off: {}", tables(&bed)?);
    // From another namespace, with no process in the one of the policy but the daemon, and then with none.
    let daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [\"host\"]\ncgroups = [\"@\"]\n")?;
    ensure!(tables(&bed)? != before);
    let off = || output(&mut bed.steer_here(&["off", "--forget"]));
    ensure!(off()?.code == 0 && daemon.wait()? == Some(0));
    ensure!(tables(&bed)? == before, "off elsewhere: {}", tables(&bed)?);
    let mount = Mounted::netns(&bed)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--local", "host"])?;
    ensure!(off()?.code == 0);
    drop(mount);
    ensure!(tables(&bed)? == before, "off without a process: {}", tables(&bed)?);
    let probe = bed.copy_of("STEER_PROBE", "steer-probe")?;
    let mut command = bed.steer(&["exec", "-i", "a1", "--local", "host,lan", "--"]);
    ensure!(output(command.arg(probe).arg("--help"))?.code == 0);
    wait_until("the keeper to remove everything", PATIENCE, || tables(&bed).is_ok_and(|now| now == before))?;
    Ok(())
}

fn without_a_daemon_the_keeper_follows() -> Outcome {
    let bed = Bed::new("reach-keeper")?;
    let probe = bed.copy_of("STEER_PROBE", "steer-probe")?;
    let mut command = bed.steer(&["exec", "-i", "a1", "--local", "lan", "--"]);
    let mut running = command.arg(probe).arg("--prober").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    wait_until("the rules", PATIENCE, || tables(&bed).is_ok_and(|tables| tables.contains("goto")))?;
    let before = tables(&bed)?;
    bed.ip("rule delete pref 40001")?;
    wait_until("the rule to be put back", PATIENCE, || tables(&bed).is_ok_and(|now| now == before))?;
    bed.ip("address add 10.9.0.2/24 dev a0")?;
    wait_until("the new network", PATIENCE, || {
        tables(&bed).is_ok_and(|tables| tables.matches("10.9.0.0/24").count() > 1)
    })?;
    drop(running.stdin.take());
    running.wait()?;
    wait_until("the keeper to remove everything", PATIENCE, || {
        tables(&bed).is_ok_and(|tables| !tables.contains("goto"))
    })?;
    Ok(())
}

/// A running program gets what a reload adds, and loses what it removes. Its sockets from before go on.
fn added_by_reload() -> Outcome {
    let bed = Bed::new("reach-reload")?;
    let here = Server::start(&bed.net.client)?;
    // The second policy keeps the rules.
    let config = |local: &str| {
        format!(
            "[[policy]]\nname = \"p\"\ninterface = \"a1\"\nlocal = [{local}]\ncgroups = [\"@\"]\n\
             [[policy]]\nname = \"q\"\ninterface = \"a1\"\nlocal = [\"host\"]\ncgroups = [\"@-other\"]\n"
        )
    };
    let _daemon = bed.daemon(&config(""))?;
    let mut client = Prober::start(&mut bed.client(Some(&bed.cgroup), User::Root)?)?;
    client.ask(Request::Keep)?;
    client.answer()?;
    let local = [Ipv4Addr::LOCALHOST.into()];
    let mut spy = Spy::on(&bed, &["a1"])?;
    for _ in 0..2 {
        check_refused(&probe(&bed, User::Nobody, &local[..], here.port())?[..3])?;
        bed.check_steered(&bed.cgroup, 1)?;
        check_kept(&bed, &mut client)?;
        bed.write_config(&config("\"host\""))?;
        bed.succeed(&["reload"])?;
        check_reached(&probe(&bed, User::Nobody, &local, here.port())?, Ipv4Addr::LOCALHOST.into())?;
        bed.check_steered(&bed.cgroup, 1)?;
        check_kept(&bed, &mut client)?;
        bed.write_config(&config(""))?;
        bed.succeed(&["reload"])?;
    }
    spy.saw_nothing()
}

/// Checks that the sockets which a client kept send by the uplink. The first datagram after a change may be refused.
fn check_kept(bed: &Bed, client: &mut Prober) -> Outcome {
    const FIRST: u16 = 5_000;
    const SECOND: u16 = 5_100;
    // Before, no program of `sendmsg` may change a socket, so such sockets stay refused.
    if !linux_is_at_least(5, 12) {
        return Ok(());
    }
    let mut uplink = Capture::start(&bed.net.client, "a1")?;
    client.ask(Request::SendKept(FIRST))?;
    client.answer()?;
    client.ask(Request::SendKept(SECOND))?;
    let sent: Vec<_> = client.answer()?.into_iter().filter(|sent| sent.way == Way::Kept).collect();
    ensure!(!sent.is_empty() && sent.iter().all(|sent| sent.error.is_none()), "{sent:?}");
    let mut seen = BTreeSet::new();
    wait_until("the datagrams on the uplink", PATIENCE, || {
        seen.extend(uplink.take().unwrap_or_default().into_iter().filter_map(|packet| packet.dst_port));
        sent.iter().all(|sent| seen.contains(&sent.port))
    })?;
    Ok(())
}

/// The client's network namespace, mounted as `ip netns` does. Unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    fn netns(bed: &Bed) -> anyhow::Result<Self> {
        let place = bed.directory.join("netns");
        fs::write(&place, "")?;
        let netns = format!("/proc/self/fd/{}", bed.net.client.fd().as_raw_fd());
        mount(Some(netns.as_str()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(Self(place))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}

/// All rules and routes of the client.
pub(crate) fn tables(bed: &Bed) -> anyhow::Result<String> {
    let mut all = String::new();
    for arguments in ["rule", "-6 rule", "route show table all", "-6 route show table all"] {
        let printed = bed.ip(arguments)?;
        let mut lines: Vec<&str> = printed.lines().collect();
        lines.sort_unstable();
        all += &lines.join("\n");
    }
    Ok(all)
}

/// A policy without a mark is closed until others have given theirs back; everything else is in force.
fn more_policies_than_marks() -> Outcome {
    let bed = Bed::new("reach-marks")?;
    let (plain, last) = (bed.cgroup.child("plain")?, bed.cgroup.child("last")?);
    // A mask of 4 bits has 7 marks.
    let config = |names: &str| {
        let policy = |name: &str, cgroup: &str, local: &str| {
            format!("[[policy]]\nname = \"{name}\"\ninterface = \"a1\"\nlocal = [{local}]\ncgroups = [\"{cgroup}\"]\n")
        };
        let host = "\"host\"";
        let others =
            names.chars().map(|name| policy(&name.to_string(), &format!("@/{name}"), host)).collect::<String>();
        let plain = policy("plain", plain.path(), "");
        format!("[route]\nmark_mask = 0xf0000000\n{others}{}{plain}", policy("last", last.path(), host))
    };
    bed.write_config(&config("abcdefg"))?;
    let too_many = bed.run(&["check", &bed.config_file().to_string_lossy()])?;
    ensure!(too_many.code != 0 && too_many.stderr.contains("need 8 marks"), "{too_many:?}");
    let _daemon = bed.daemon(&config("abcd").replace("a1", "a0"))?;
    bed.check_steered(&last, 0)?;
    // The old policies have 4 of 7 marks until the new ones are in force, and `last` comes after the others.
    bed.write_config(&config("efgh"))?;
    // The daemon may have seen the file before, and have given the marks back by now.
    let reload = bed.run(&["reload"])?;
    ensure!(reload.code == 0 || reload.stderr.contains("marks"), "{reload:?}");
    let mut spy = Spy::on(&bed, &["a1"])?;
    bed.check_steered(&plain, 1)?;
    // Until it has a mark, it is closed.
    let retried =
        || bed.check_steered(&last, 1).is_ok() && bed.policy("last").is_ok_and(|policy| policy["interface"] == "a1");
    wait_until("the retry to give a mark", PATIENCE, retried)?;
    spy.saw_nothing()
}
