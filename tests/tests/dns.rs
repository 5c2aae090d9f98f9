//! Names: whichever server a program asks, the query goes to the policy's resolver by the uplink, and to no other
//! server.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{
    Capture, Direction, Family, NameServer, SERVER_V4, SERVER_V6, Step, Vector, client_v4, client_v6, gateway_v4,
    gateway_v6,
    name_server::{ADDRESS_V4, LONG, Question},
    parse_outcomes, wait_until,
};
use steer_tests::{Bed, Cgroup, Held, Outcome, PATIENCE, Scene, Spy, Try, USERS, User, output, replace_file};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("every_way_of_asking", every_way_of_asking),
    ("the_c_library", the_c_library),
    ("the_other_family_is_not_redirected", the_other_family_is_not_redirected),
    ("no_server_beside_the_uplink_is_asked", no_server_beside_the_uplink_is_asked),
    ("no_server_of_this_host_is_asked_for_a_member", no_server_of_this_host_is_asked_for_a_member),
    ("queries_that_are_not_redirected_are_stopped", queries_that_are_not_redirected_are_stopped),
    ("without_an_uplink_no_server_is_asked", without_an_uplink_no_server_is_asked),
    ("resolvers_change_by_reload", resolvers_change_by_reload),
    ("resolvers_change_with_the_member", resolvers_change_with_the_member),
    ("no_member_asks_the_resolver_of_another", no_member_asks_the_resolver_of_another),
    ("the_inner_policys_resolver_is_asked", the_inner_policys_resolver_is_asked),
    ("a_local_resolver_causes_a_warning", a_local_resolver_causes_a_warning),
    ("an_unusable_resolver_is_refused", an_unusable_resolver_is_refused),
];

pub(crate) const STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
pub(crate) const RESOLVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
pub(crate) const RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
pub(crate) const OTHER_RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 54);
pub(crate) const OTHER_RESOLVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x54);

/// A bed whose server has resolvers and another name server that must get no query, and whose client has its own stub
/// resolver.
pub(crate) struct Names {
    pub(crate) bed: Bed,
    pub(crate) far: NameServer,
    pub(crate) stub: NameServer,
}

impl Names {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let bed = Bed::new(name)?;
        let far = [RESOLVER_V4.into(), OTHER_RESOLVER.into(), RESOLVER_V6.into(), OTHER_RESOLVER_V6.into()];
        for address in far {
            bed.net.server.add_address("lo", address, if address.is_ipv4() { 32 } else { 128 })?;
        }
        let far = [&far[..], &[SERVER_V4.into(), SERVER_V6.into()]].concat();
        let far = NameServer::start(&bed.net.server, &far)?;
        let stub = NameServer::start(&bed.net.client, &[STUB.into(), Ipv6Addr::LOCALHOST.into()])?;
        Ok(Self { bed, far, stub })
    }

    fn attach(&self, cgroup: &Cgroup, interface: &str, more: &[&str]) -> Outcome {
        self.bed.succeed(&[&["attach", cgroup.path(), "-i", interface], more].concat()).map(drop)
    }

    /// Queries every server in every way.
    pub(crate) fn ask(
        &self,
        cgroup: &Cgroup,
        user: User,
        servers: &[IpAddr],
    ) -> anyhow::Result<Vec<steer_lab::Outcome>> {
        let mut outcomes = Vec::new();
        for name in ["short.example", &format!("{LONG}.example")] {
            for mapped in [&[][..], &["--mapped"]] {
                let mut command = self.bed.client(Some(cgroup), user)?;
                command.args(["--json", "--timeout-ms", "3000", "--resolve", name]).args(mapped);
                command.args(["--proto", "udp", "--proto", "udp-unconnected", "--proto", "tcp"]);
                for server in servers.iter().filter(|server| mapped.is_empty() || server.is_ipv4()) {
                    command.args(["--target", &server.to_string()]);
                }
                outcomes.extend(parse_outcomes(&output(&mut command)?.stdout)?);
            }
        }
        Ok(outcomes)
    }

    /// Every query was answered, only by the resolvers and only over uplink `a1`.
    pub(crate) fn check(&self, cgroup: &Cgroup, resolver: Ipv4Addr) -> Outcome {
        self.check_by(cgroup, 1, resolver, RESOLVER_V6)
    }

    /// The same over any uplink.
    pub(crate) fn check_by(&self, cgroup: &Cgroup, uplink: u8, v4: Ipv4Addr, v6: Ipv6Addr) -> Outcome {
        let servers = [IpAddr::from(STUB), SERVER_V4.into(), v4.into(), Ipv6Addr::LOCALHOST.into(), SERVER_V6.into()];
        for user in USERS {
            let mut spy = Spy::on(&self.bed, &[self.bed.net.link(uplink)])?;
            self.far.take();
            let outcomes = self.ask(cgroup, user, &servers)?;
            ensure!(outcomes.len() == 2 * (3 * 5 + 3 * 3), "{outcomes:?}");
            let failed: Vec<_> = outcomes.iter().filter(|o| o.saw != Some(ADDRESS_V4.to_string())).collect();
            ensure!(failed.is_empty(), "{user:?}: {failed:#?}");
            spy.saw_nothing()?;
            let asked = self.far.take();
            ensure!(!asked.is_empty());
            for question in asked {
                ensure!(is_by(&question, uplink), "{user:?}: {question:?}");
                ensure!(question.server == v4 || question.server == v6, "{user:?}: {question:?}");
            }
            ensure!(self.stub.take().is_empty(), "{user:?}: the stub on this host was asked");
        }
        Ok(())
    }
}

fn is_by(question: &Question, uplink: u8) -> bool {
    question.peer.ip() == client_v4(uplink) || question.peer.ip() == client_v6(uplink)
}

fn resolvers() -> String {
    format!("{RESOLVER_V4},{RESOLVER_V6}")
}

pub(crate) fn every_way_of_asking() -> Outcome {
    let names = Names::new("dns-ways")?;
    for enforce in ["strict", "steer"] {
        names.attach(&names.bed.cgroup, "a1", &["--dns", &resolvers(), "--enforce", enforce])?;
        names.check(&names.bed.cgroup, RESOLVER_V4).context(enforce)?;
    }
    let policy = names.bed.policy("a1")?;
    ensure!(policy["dns"] == serde_json::json!([RESOLVER_V4, RESOLVER_V6]), "{policy}");
    // Traffic to other ports than 53 is not redirected.
    names.bed.check_steered(&names.bed.cgroup, 1)
}

/// The resolver of the C library, with the stub of systemd-resolved in resolv.conf.
fn the_c_library() -> Outcome {
    let names = Names::new("dns-libc")?;
    names.attach(&names.bed.cgroup, "a1", &["--dns", &resolvers()])?;
    let resolv_conf = names.bed.directory.join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {STUB}\n"))?;
    for user in USERS {
        for name in ["short.example", &format!("{LONG}.example")] {
            let mut spy = Spy::on(&names.bed, &["a1"])?;
            let mut command = Command::new("getent");
            replace_file(&mut command, Path::new("/etc/resolv.conf"), &resolv_conf);
            names.bed.place(&mut command, Some(&names.bed.cgroup), user);
            let found = output(command.args(["ahosts", name]))?;
            ensure!(found.stdout.contains(&ADDRESS_V4.to_string()), "{name} as {user:?}: {found:?}");
            spy.saw_nothing()?;
            let asked = names.far.take();
            let right = |question: &Question| is_by(question, 1) && question.server == RESOLVER_V4;
            ensure!(!asked.is_empty() && asked.iter().all(right), "{asked:?}");
        }
    }
    ensure!(names.stub.take().is_empty());
    Ok(())
}

fn the_other_family_is_not_redirected() -> Outcome {
    let names = Names::new("dns-family")?;
    names.attach(&names.bed.cgroup, "a1", &["--dns", &RESOLVER_V4.to_string()])?;
    let mut spy = Spy::on(&names.bed, &["a1"])?;
    for outcome in names.ask(&names.bed.cgroup, User::Nobody, &[SERVER_V4.into(), SERVER_V6.into()])? {
        ensure!(outcome.is_ok(), "{outcome:?}");
    }
    spy.saw_nothing()?;
    let asked = names.far.take();
    ensure!(asked.iter().all(|question| is_by(question, 1)), "{asked:?}");
    let servers: std::collections::BTreeSet<_> = asked.iter().map(|question| question.server).collect();
    ensure!(servers == [RESOLVER_V4.into(), SERVER_V6.into()].into(), "{servers:?}");
    Ok(())
}

/// With `local`, servers of the LAN and of this host are in reach. In a family without a resolver, they get no query either.
fn no_server_beside_the_uplink_is_asked() -> Outcome {
    let bed = Bed::new("dns-beside")?;
    let near: [[IpAddr; 4]; 2] = [
        [Ipv4Addr::LOCALHOST.into(), STUB.into(), client_v4(0).into(), gateway_v4(0).into()],
        [Ipv6Addr::LOCALHOST.into(), client_v6(1).into(), client_v6(0).into(), gateway_v6(0).into()],
    ];
    for (resolver, servers) in [(IpAddr::from(RESOLVER_V6), near[0]), (RESOLVER_V4.into(), near[1])] {
        for user in USERS {
            let cgroup = bed.cgroup.child(&format!("{user:?}-{}", resolver.is_ipv4()))?;
            bed.succeed(&["attach", cgroup.path(), "-i", "a1", "--local", "host,lan", "--dns", &resolver.to_string()])?;
            let mut spy = Capture::start_except(&bed.net.client, &[])?;
            for server in servers {
                for vector in [Vector::UdpUnconnected, Vector::Udp] {
                    let timeout = Duration::from_millis(200);
                    let this = Try { vector, user, family: Family::of(server), scene: Scene::Steered, timeout };
                    let mut program = bed.escape_program(this, &cgroup)?;
                    let ran = output(program.args(["--server", &server.to_string(), "--port", "53"]))?;
                    ensure!(ran.stdout.contains("\"EPERM\""), "{server} by {vector:?} as {user:?}: {ran:?}");
                }
            }
            let packets = spy.take()?;
            let asked = packets.iter().find(|packet| packet.dst_port == Some(53) && packet.dst != Some(resolver));
            ensure!(asked.is_none(), "{resolver} as {user:?}: {asked:?}");
            let stopped = counted(&bed.status()?, &cgroup, "stopped_dns");
            ensure!(stopped.is_some_and(|stopped| stopped > 0), "{stopped:?}");
        }
    }
    Ok(())
}

/// The same for a member without a resolver, while another one has one.
fn no_server_of_this_host_is_asked_for_a_member() -> Outcome {
    let bed = Bed::new("dns-beside-member")?;
    let members = format!("[\"a1\", {{ interface = \"a0\", tier = 2, dns = [\"{RESOLVER_V4}\"] }}]");
    let _daemon = bed.daemon(&format!(
        "[[uplink]]\nname = \"g\"\nmembers = {members}\n\
         [[policy]]\nname = \"p\"\nuplink = \"g\"\nlocal = [\"host\", \"lan\"]\ncgroups = [\"@\"]\n"
    ))?;
    let mut spy = Capture::start_except(&bed.net.client, &["a1"])?;
    for user in USERS {
        for server in [IpAddr::from(STUB), client_v4(0).into(), gateway_v4(0).into()] {
            let (vector, scene, timeout) = (Vector::UdpUnconnected, Scene::Steered, Duration::from_millis(200));
            let this = Try { vector, user, family: Family::V4, scene, timeout };
            let mut program = bed.escape_program(this, &bed.cgroup)?;
            let ran = output(program.args(["--server", &server.to_string(), "--port", "53"]))?;
            ensure!(ran.stdout.contains("\"EPERM\""), "{server} as {user:?}: {ran:?}");
        }
    }
    let packets = spy.take()?;
    let asked = packets.iter().find(|packet| packet.dst_port == Some(53));
    ensure!(asked.is_none(), "{asked:?}");
    Ok(())
}

/// By a raw socket, by source routes, and by sockets that were connected before there was a resolver.
fn queries_that_are_not_redirected_are_stopped() -> Outcome {
    let names = Names::new("dns-around")?;
    let bed = &names.bed;
    let cases = [
        (Vector::RawUdp, User::Root, Scene::Steered),
        (Vector::SourceRoute, User::Root, Scene::Steered),
        (Vector::Udp, User::Nobody, Scene::SteeredAfter(Step::Connect)),
        (Vector::Tcp, User::Nobody, Scene::SteeredAfter(Step::Connect)),
    ];
    for (vector, user, scene) in cases {
        for family in [Family::V4, Family::V6] {
            let cgroup = bed.cgroup.child(&format!("{vector:?}-{family:?}"))?;
            let attach = || names.attach(&cgroup, "a1", &["--dns", &resolvers()]);
            if scene == Scene::Steered {
                attach()?;
            } else {
                names.attach(&cgroup, "a1", &[])?;
            }
            let this = Try { vector, user, family, scene, timeout: Duration::from_millis(400) };
            let mut program = bed.escape_program(this, &cgroup)?;
            let gateway: IpAddr = if family == Family::V4 { gateway_v4(1).into() } else { gateway_v6(1).into() };
            program.args(["--port", "53", "--gateway", &gateway.to_string()]);
            let mut uplink = None;
            let seen = bed.watch_attempt(this, program, &["a1"], || {
                attach()?;
                uplink = Some(Capture::start(&bed.net.client, "a1")?);
                Ok(())
            });
            let what = format!("{vector:?} {family:?}: {seen:?}");
            let policy = bed.status()?;
            let stopped = counted(&policy, &cgroup, "stopped_dns");
            ensure!(seen.is_ok() && stopped.is_some_and(|stopped| stopped > 0), "{what} {policy}");
            if let Some(mut uplink) = uplink {
                let packets = uplink.take()?;
                let astray =
                    packets.iter().find(|packet| packet.direction == Direction::Out && packet.dst_port == Some(53));
                ensure!(astray.is_none(), "{what}: {astray:?}");
            }
            bed.succeed(&["detach", cgroup.path()])?;
        }
    }
    let asked = names.far.take();
    ensure!(asked.iter().all(|question| question.server == RESOLVER_V4 || question.server == RESOLVER_V6), "{asked:?}");
    Ok(())
}

/// A counter of the policy that is attached to a cgroup.
fn counted(status: &serde_json::Value, cgroup: &Cgroup, counter: &str) -> Option<u64> {
    let attached = |policy: &&serde_json::Value| {
        policy["cgroups"].as_array().is_some_and(|cgroups| cgroups.iter().any(|found| found["path"] == cgroup.path()))
    };
    status["policies"].as_array()?.iter().find(attached)?["counters"][counter].as_u64()
}

fn without_an_uplink_no_server_is_asked() -> Outcome {
    let names = Names::new("dns-closed")?;
    names.attach(&names.bed.cgroup, "a1", &["--dns", &resolvers()])?;
    names.bed.net.remove_uplink(1)?;
    let mut spy = Spy::on(&names.bed, &[])?;
    for user in USERS {
        for outcome in names.ask(&names.bed.cgroup, user, &[STUB.into(), SERVER_V4.into(), SERVER_V6.into()])? {
            ensure!(!outcome.is_ok(), "{user:?}: {outcome:?}");
        }
    }
    spy.saw_nothing()?;
    ensure!(names.far.take().is_empty() && names.stub.take().is_empty());
    Ok(())
}

fn resolvers_change_by_reload() -> Outcome {
    let names = Names::new("dns-reload")?;
    let config = |resolver| {
        format!(
            "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n\
             dns = [\"{resolver}\", \"{RESOLVER_V6}\"]\n"
        )
    };
    let daemon = names.bed.daemon(&config(RESOLVER_V4))?;
    names.check(&names.bed.cgroup, RESOLVER_V4)?;
    names.bed.write_config(&config(OTHER_RESOLVER))?;
    wait_until("the reload", PATIENCE, || daemon.log().contains("reloaded"))?;
    names.check(&names.bed.cgroup, OTHER_RESOLVER)?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}

fn group(members: &str, local: &str) -> String {
    format!(
        "[[uplink]]\nname = \"lines\"\nmembers = {members}\n\
         [[policy]]\nname = \"p\"\nuplink = \"lines\"\nlocal = {local}\ncgroups = [\"@\"]\n"
    )
}

/// Also for a connected UDP socket that goes on by the other member.
fn resolvers_change_with_the_member() -> Outcome {
    for local in ["[]", "[\"host\"]"] {
        let names = Names::new("dns-members")?;
        let bed = &names.bed;
        let members = format!(
            "[{{ interface = \"a1\", dns = [\"{RESOLVER_V4}\", \"{RESOLVER_V6}\"] }}, \
             {{ interface = \"a0\", tier = 2, dns = [\"{OTHER_RESOLVER}\", \"{OTHER_RESOLVER_V6}\"] }}]"
        );
        let _daemon = bed.daemon(&group(&members, local))?;
        let mut client = bed.client(Some(&bed.cgroup), User::Nobody)?;
        client.args(["--json", "--timeout-ms", "1000", "--port", "53", "--proto", "udp"]);
        client.args(["--target", &SERVER_V4.to_string(), "--target", &SERVER_V6.to_string()]);
        let mut held = Held::start(&mut client)?;
        let round_by = |held: &mut Held, uplink: u8, resolvers: [IpAddr; 2]| {
            names.far.take();
            held.round().is_ok_and(|outcomes| outcomes.iter().all(steer_lab::Outcome::is_ok))
                && names.far.take().iter().all(|query| is_by(query, uplink) && resolvers.contains(&query.server))
        };
        ensure!(round_by(&mut held, 1, [RESOLVER_V4.into(), RESOLVER_V6.into()]), "local = {local}");
        names.check(&bed.cgroup, RESOLVER_V4).with_context(|| format!("the first member, local = {local}"))?;
        // The link goes on, and is no member any more.
        bed.ip("link set a1 name b1")?;
        wait_until("queries by the other member", PATIENCE, || {
            round_by(&mut held, 0, [OTHER_RESOLVER.into(), OTHER_RESOLVER_V6.into()])
        })?;
        names
            .check_by(&bed.cgroup, 0, OTHER_RESOLVER, OTHER_RESOLVER_V6)
            .with_context(|| format!("the other member, local = {local}"))?;
    }
    Ok(())
}

/// One that has no resolver asks the server that the program asks, unless it is a resolver behind another member.
fn no_member_asks_the_resolver_of_another() -> Outcome {
    let names = Names::new("dns-member")?;
    let bed = &names.bed;
    let members = format!("[\"a1\", {{ interface = \"a0\", tier = 2, dns = [\"{OTHER_RESOLVER}\"] }}]");
    let _daemon = bed.daemon(&group(&members, "[]"))?;
    let mut spy = Spy::on(bed, &["a1"])?;
    for outcome in names.ask(&bed.cgroup, User::Root, &[SERVER_V4.into(), OTHER_RESOLVER.into()])? {
        ensure!(outcome.is_ok() == (outcome.target == SERVER_V4), "{outcome:?}");
    }
    spy.saw_nothing()?;
    let asked = names.far.take();
    ensure!(asked.iter().all(|question| is_by(question, 1) && question.server == SERVER_V4), "{asked:?}");
    ensure!(bed.sockets("p", "stopped_dns")? > 0);
    ensure!(bed.policy("p")?["members"][1]["dns"] == serde_json::json!([OTHER_RESOLVER]), "{}", bed.policy("p")?);
    Ok(())
}

fn the_inner_policys_resolver_is_asked() -> Outcome {
    for enforce in ["steer", "strict"] {
        let names = Names::new("dns-nested")?;
        let (inner, exempt) = (names.bed.cgroup.child("inner")?, names.bed.cgroup.child("exempt")?);
        names.attach(&names.bed.cgroup, "a0", &["--dns", &OTHER_RESOLVER.to_string()])?;
        names.attach(&inner, "a1", &["--dns", &resolvers(), "--enforce", enforce])?;
        names.attach(&exempt, "none", &["--enforce", enforce])?;
        names.check(&inner, RESOLVER_V4).with_context(|| format!("inner, {enforce}"))?;
        for outcome in names.ask(&exempt, User::Nobody, &[STUB.into()])? {
            ensure!(outcome.is_ok(), "exempt, {enforce}: {outcome:?}");
        }
        ensure!(names.far.take().is_empty() && !names.stub.take().is_empty());
    }
    Ok(())
}

fn a_local_resolver_causes_a_warning() -> Outcome {
    let bed = Bed::new("dns-local")?;
    let resolv_conf = bed.directory.join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {STUB}\n"))?;
    let steer = |arguments: &[&str]| {
        let mut command = bed.steer_here(arguments);
        replace_file(&mut command, Path::new("/etc/resolv.conf"), &resolv_conf);
        output(bed.net.client.enter(&mut command))
    };
    let exec = |more: &[&str]| steer(&[&["exec", "-i", "a1"], more, &["--", "true"]].concat());
    let warned = exec(&[])?;
    ensure!(warned.code == 0 && warned.stderr.contains("127.0.0.53") && warned.stderr.contains("--dns"), "{warned:?}");
    let quiet = exec(&["--dns", &resolvers()])?;
    ensure!(quiet.code == 0 && quiet.stderr.is_empty(), "{quiet:?}");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    let status = steer(&["status"])?;
    ensure!(status.stdout.contains("warning: a1: /etc/resolv.conf names 127.0.0.53"), "{status:?}");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--dns", &resolvers()])?;
    let status = steer(&["status"])?;
    ensure!(!status.stdout.contains("warning") && status.stdout.contains(&RESOLVER_V6.to_string()), "{status:?}");
    Ok(())
}

fn an_unusable_resolver_is_refused() -> Outcome {
    let bed = Bed::new("dns-refused")?;
    for (interface, dns, code, want) in [
        ("a1", "127.0.0.53", 2, "is this host"),
        ("a1", "203.0.113.53,203.0.113.54", 2, "second of its family"),
        ("none", "203.0.113.53", 2, "an exemption has no uplink"),
    ] {
        let refused = bed.run(&["attach", bed.cgroup.path(), "-i", interface, "--dns", dns])?;
        ensure!(refused.code == code && refused.stderr.contains(want), "{refused:?}");
    }
    Ok(())
}
