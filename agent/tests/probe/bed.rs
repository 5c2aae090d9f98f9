//! Two uplinks to the same servers. `a0` has the better default route; probes are by `a1`.

use std::{
    io,
    process::Command,
    time::{Duration, Instant},
};

use steer::{
    host::{
        probe::{Failure, Method, Trust, Via, probe_trusting},
        route::{Instance, Local, Marked, State, Wanted, plan, write},
    },
    model::{
        mark::MarkMask,
        uplink::{Family, probe::Target},
    },
};
use steer_lab::{Capture, NameServer, Netns, Packet, Uplinks, leaks, name_server};
use tokio::{runtime::Handle, task::JoinSet};

use crate::servers::Servers;

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Long for a probe that is answered, even if the machine is busy.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// For a probe that is not.
pub(crate) const SHORT: Duration = Duration::from_millis(300);
const AUTHORITY: &[u8] = include_bytes!("certificates/authority.pem");
/// The number of the policy.
const NUMBER: u8 = 7;

pub(crate) struct Bed {
    pub(crate) lab: Uplinks,
    pub(crate) servers: Servers,
    names: NameServer,
}

/// `None`: this user may not make namespaces.
pub(crate) fn bed() -> Option<Bed> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a network namespace needs root");
        return None;
    }
    let lab = Uplinks::new().expect("a lab");
    // All names have these addresses.
    let (v4, v6) = (name_server::ADDRESS_V4.into(), name_server::ADDRESS_V6.into());
    lab.server.add_address("lo", v4, 32).expect("an address");
    lab.server.add_address("lo", v6, 128).expect("an address");
    let names = NameServer::start(&lab.server, &[steer_lab::SERVER_V4.into(), steer_lab::SERVER_V6.into()]);
    let bed = Bed { servers: Servers::start(&lab.server), names: names.expect("a name server"), lab };
    // Rules that send marked packets by `a1`.
    let policy = Marked {
        number: NUMBER,
        uplink: Some(bed.index(1)),
        local: Local::default(),
        resolvers: Vec::new(),
        exceptions: Vec::new(),
    };
    let wanted = Wanted { mask: mask(), instance: Instance::new(0x1a7), marked: vec![policy], bound: Vec::new() };
    let written = bed.lab.client.run(|| {
        let state = State::read()?;
        write(&plan(&wanted, &state).map_err(io::Error::other)?, &state, None)
    });
    assert!(written.expect("a namespace").expect("written").failed.is_empty());
    Some(bed)
}

fn mask() -> MarkMask {
    MarkMask::new(0xff00_0000)
}

/// Runs `ip`.
pub(crate) fn ip(netns: &Netns, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    let output = netns.enter(&mut command).output().expect("ip starts");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Bed {
    pub(crate) fn index(&self, uplink: u8) -> u32 {
        self.lab.ifindex(uplink).expect("a link")
    }

    /// Bound to an uplink.
    pub(crate) fn bound(&self, uplink: u8, family: Family) -> Via {
        let server = match family {
            Family::V4 => steer_lab::SERVER_V4.into(),
            Family::V6 => steer_lab::SERVER_V6.into(),
        };
        let resolver = Some(std::net::SocketAddr::new(server, 53));
        Via { family, ifindex: self.index(uplink), method: Method::Bind, resolver }
    }

    /// By `a1`, by each method.
    pub(crate) fn members(&self, family: Family) -> [Via; 2] {
        let mark = mask().mark(NUMBER).expect("a mark");
        let bound = self.bound(1, family);
        [bound, Via { method: Method::Mark(mark), ..bound }]
    }

    pub(crate) fn names(&self) -> &NameServer {
        &self.names
    }

    /// Each kind of target.
    pub(crate) fn targets(&self, family: Family) -> Vec<String> {
        let (host, plain) = match family {
            Family::V4 => ("198.51.100.1", "198.51.100.1"),
            Family::V6 => ("[fd00:ffff::1]", "fd00:ffff::1"),
        };
        let (http, https) = (self.servers.http, self.servers.https);
        vec![
            "gateway".to_owned(),
            format!("icmp:{plain}"),
            format!("dns:{host}"),
            format!("tcp:{host}:{http}"),
            format!("http://{host}:{http}/204"),
            format!("http://{host}:{http}/page status=200 body=Success"),
            format!("http://probe.test:{http}/204"),
            format!("https://{host}:{https}/page body=Success"),
            format!("https://probe.test:{https}/204"),
        ]
    }

    /// Asks, and trusts the authority of the servers.
    pub(crate) fn ask(&self, target: &str, via: Via, timeout: Duration) -> Result<Duration, Failure> {
        self.ask_trusting(target, via, timeout, &Trust::only(AUTHORITY).expect("an authority"))
    }

    /// Asks every kind of target at once.
    pub(crate) fn ask_all(
        &self,
        family: Family,
        via: Via,
        timeout: Duration,
    ) -> Vec<(String, Result<Duration, Failure>)> {
        let trust = Trust::only(AUTHORITY).expect("an authority");
        let ask = |text: String| {
            let (target, trust) = (Target::parse(&text).expect("a target"), trust.clone());
            async move { (text, probe_trusting(&target, &via, timeout, &trust).await) }
        };
        let asking = self.targets(family).into_iter().map(ask).collect::<Vec<_>>();
        self.block_on(|| async {
            let results = asking.into_iter().collect::<JoinSet<_>>().join_all().await;
            tasks_end().await;
            results
        })
    }

    pub(crate) fn ask_trusting(
        &self,
        target: &str,
        via: Via,
        timeout: Duration,
        trust: &Trust,
    ) -> Result<Duration, Failure> {
        let target = Target::parse(target).expect("a target");
        let started = Instant::now();
        self.block_on(|| async {
            let result = probe_trusting(&target, &via, timeout, trust).await;
            assert!(started.elapsed() < timeout + LONG, "{target}: {:?}", started.elapsed());
            tasks_end().await;
            result
        })
    }

    /// Runs a future in the client's namespace.
    pub(crate) fn block_on<T: Send, F: Future<Output = T>>(&self, make: impl FnOnce() -> F + Send) -> T {
        let ran = self.lab.client.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok::<_, io::Error>(runtime.block_on(async { make().await }))
        });
        ran.expect("a namespace").expect("a runtime")
    }

    pub(crate) fn spy(&self) -> Spy {
        let all_but = Capture::start_except(&self.lab.client, &["a1", "lo"]).expect("a capture");
        Spy { all_but, member: Capture::start(&self.lab.client, "a1").expect("a capture") }
    }

    /// The servers get what is sent by `a1`, and their answers are lost behind its live carrier.
    pub(crate) fn black_hole(&self, is_on: bool) {
        let change = if is_on { "add" } else { "del" };
        for (family, client) in [("-4", "10.0.1.2"), ("-6", "fd00:1::2")] {
            ip(&self.lab.server, &format!("{family} rule {change} pref 0 to {client} blackhole"));
        }
    }
}

/// Waits until the connections of probes have ended.
pub(crate) async fn tasks_end() {
    let ended = async {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.expect("all tasks end");
}

/// Captures what leaves by the member, and by every other link.
pub(crate) struct Spy {
    all_but: Capture,
    member: Capture,
}

impl Spy {
    /// The packets that the member got. Fails if another link got one.
    pub(crate) fn member_only(&mut self, what: &str) -> Vec<Packet> {
        let elsewhere = self.all_but.take().expect("packets");
        assert!(leaks(&elsewhere).is_empty(), "{what}: {:?}", leaks(&elsewhere));
        let packets = self.member.take().expect("packets");
        leaks(&packets).into_iter().cloned().collect()
    }
}
