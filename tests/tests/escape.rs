//! The escape suite: every known or suspected way to bypass a socket's binding, at every level, as root and as nobody,
//! over IPv4 and IPv6. The results are the captures on every link except the uplink.
//!
//! Below the strict level the rows must show the known leaks: that proves that the captures work. At the strict level
//! nothing leaks, except where a row states why it cannot be prevented.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::ensure;
use libtest_mimic::Trial;
use steer_lab::{Family, Step, Vector};
use steer_tests::{Bed, Level, Outcome, Scene, Try, USERS, User};

const LEVELS: [Level; 6] = [Level::Bind, Level::Steer, Level::Strict, Level::Group, Level::GroupRoute, Level::Lan];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The timeout of use that must work, however slow the machine.
const LONG: Duration = Duration::from_secs(5);
/// The timeout for an answer that may never come.
const SHORT: Duration = Duration::from_millis(400);

/// The users whose attempts get packets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaks {
    Never,
    AsRoot,
    Always,
}

use Leaks::{Always, AsRoot, Never};

/// A row: the attempt and its expected results.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) vector: Vector,
    pub(crate) scene: Scene,
    pub(crate) families: &'static [Family],
    /// With new sockets bound and nothing else.
    bind: Leaks,
    /// With lost bindings restored on connect.
    steer: Leaks,
    /// With strict enforcement, and the reason.
    strict: Option<(Leaks, &'static str)>,
    /// Whether strict enforcement refuses to make the socket, where steer reports that it covers that.
    past_ip: bool,
    /// Whether strict enforcement refuses to make the socket because it is one of MPTCP.
    mptcp: bool,
    /// The first level at which it must work, if any.
    works_from: Option<Level>,
    /// Whether it is refused by the route method: the kernel chooses a link that is not the uplink before any rule.
    not_routed: bool,
}

impl Row {
    /// An attempt that must get no packet out at any level.
    const fn futile(name: &'static str, vector: Vector) -> Self {
        Self {
            name,
            vector,
            scene: Scene::Steered,
            families: &FAMILIES,
            bind: Never,
            steer: Never,
            strict: None,
            past_ip: false,
            mptcp: false,
            works_from: None,
            not_routed: false,
        }
    }

    /// Plain use, which must leave by the uplink and work at every level.
    const fn plain(name: &'static str, vector: Vector) -> Self {
        Self { works_from: Some(Level::Bind), ..Self::futile(name, vector) }
    }

    /// An attempt that only strict enforcement stops.
    const fn leaks(name: &'static str, vector: Vector, whose: Leaks) -> Self {
        Self { bind: whose, steer: whose, ..Self::futile(name, vector) }
    }

    /// An attempt that bypasses the IP stack. Only strict enforcement refuses the socket, and not on every machine.
    const fn past_ip(self) -> Self {
        Self { past_ip: true, ..self }
    }

    /// With a new MPTCP socket.
    const fn mptcp(self) -> Self {
        Self { mptcp: true, ..self }
    }

    /// The program on `connect` refuses it.
    const fn refused_on_connect(self) -> Self {
        Self { steer: Never, ..self }
    }

    /// Use that loses its binding, which is restored on connect.
    const fn repaired(name: &'static str, vector: Vector) -> Self {
        Self { bind: Always, works_from: Some(Level::Steer), ..Self::futile(name, vector) }
    }

    /// Use that strict enforcement redirects to the uplink.
    const fn redirected(name: &'static str, vector: Vector) -> Self {
        Self { works_from: Some(Level::Strict), ..Self::leaks(name, vector, Always) }
    }

    const fn not_routed(self) -> Self {
        Self { not_routed: true, ..self }
    }

    const fn v4(self) -> Self {
        Self { families: &[Family::V4], ..self }
    }

    const fn v6(self) -> Self {
        Self { families: &[Family::V6], ..self }
    }

    const fn scene(self, scene: Scene) -> Self {
        Self { scene, ..self }
    }

    const fn even_strict(self, leaks: Leaks, why: &'static str) -> Self {
        Self { strict: Some((leaks, why)), ..self }
    }
}

const FOREIGN_SOCKET: &str = "the socket belongs to the cgroup that made it, not to the one that uses it";
const OWN_GROUP: &str = "this host receives what it sends to a group, and no program knows which sources are its own";
const OLDER: &str =
    "no hook of a cgroup sees what a packet socket sends, and it was made before there was one for making it";

const fn made_before(step: Step) -> Scene {
    Scene::SteeredAfter(step)
}

pub(crate) const ROWS: &[Row] = &[
    Row::plain("tcp", Vector::Tcp),
    Row::plain("tcp-fast-open", Vector::TcpFastOpen),
    Row::plain("tcp-af-unspec", Vector::TcpAfUnspec),
    Row::plain("tcp-accept", Vector::TcpAccept).scene(Scene::CalledOn(1)),
    Row::futile("tcp-accept-other", Vector::TcpAccept).scene(Scene::CalledOn(0)),
    Row::plain("udp", Vector::Udp),
    Row::plain("udp-unconnected", Vector::UdpUnconnected),
    Row::plain("udp-lite", Vector::UdpLite),
    Row::plain("udp-gso", Vector::UdpGso),
    Row::plain("ping", Vector::Ping),
    Row::plain("raw", Vector::Raw),
    Row::plain("raw-udp", Vector::RawUdp),
    Row::plain("zerocopy", Vector::Zerocopy),
    Row::plain("sendfile", Vector::Sendfile),
    Row::plain("splice", Vector::Splice),
    Row::plain("sendmmsg", Vector::Sendmmsg),
    Row::plain("mapped-tcp", Vector::MappedTcp).v4(),
    Row::plain("mapped-udp", Vector::MappedUdp).v4(),
    Row::plain("uring", Vector::Uring),
    Row::plain("uring-sqpoll", Vector::UringSqpoll),
    Row::repaired("mptcp", Vector::Mptcp).mptcp(),
    Row::repaired("mptcp-fast-open", Vector::MptcpFastOpen).mptcp(),
    Row::repaired("mptcp-accept", Vector::MptcpAccept).scene(Scene::CalledOn(1)).mptcp(),
    Row::repaired("mptcp-accept-dual", Vector::MptcpAcceptDual).scene(Scene::CalledOn(1)).mptcp(),
    Row { bind: Always, ..Row::futile("mptcp-accept-other", Vector::MptcpAccept).scene(Scene::CalledOn(0)) }.mptcp(),
    Row::leaks("mptcp-accept-unbound", Vector::MptcpAcceptUnbound, Always).scene(Scene::CalledOn(1)).mptcp(),
    Row::leaks("udp-af-unspec", Vector::UdpAfUnspec, Always),
    Row::repaired("udp-af-unspec-connect", Vector::UdpAfUnspecConnect),
    Row::leaks("udp-af-unspec-cork", Vector::UdpAfUnspecCork, Always),
    Row::leaks("mapped-af-unspec", Vector::MappedAfUnspec, Always).v4(),
    Row::leaks("ping-af-unspec", Vector::PingAfUnspec, Always),
    Row::leaks("raw-af-unspec", Vector::RawAfUnspec, AsRoot),
    Row::leaks("ip-pktinfo", Vector::IpPktinfo, Always).v4(),
    Row::leaks("ip-pktinfo-cork", Vector::IpPktinfoCork, Always).v4(),
    Row::leaks("ip-pktinfo-sendmmsg", Vector::IpPktinfoSendmmsg, Always).v4(),
    Row::leaks("ip-pktinfo-mapped", Vector::IpPktinfoMapped, Always).v4(),
    Row::leaks("ip-pktinfo-uring", Vector::IpPktinfoUring, Always).v4(),
    Row::leaks("ip-pktinfo-ping", Vector::PingPktinfo, Always).v4(),
    Row::leaks("ip-pktinfo-raw", Vector::RawPktinfo, AsRoot).v4(),
    Row::leaks("ip-pktinfo-header", Vector::RawHeader, AsRoot).v4(),
    Row::futile("ipv6-pktinfo", Vector::Ipv6Pktinfo).v6(),
    Row::futile("ipv6-pktinfo-sticky", Vector::Ipv6PktinfoSticky).v6(),
    Row::futile("ipv6-pktinfo-ping", Vector::PingPktinfo).v6(),
    Row::futile("ipv6-pktinfo-raw", Vector::RawPktinfo).v6(),
    Row::futile("ipv6-pktinfo-header", Vector::RawHeader).v6(),
    Row::leaks("link-local-scope", Vector::LinkLocalScope, Always).v6(),
    Row::futile("link-local-ping", Vector::LinkLocalPing).v6(),
    Row::leaks("link-local-raw", Vector::LinkLocalRaw, AsRoot).v6(),
    Row::leaks("link-local-multicast", Vector::LinkLocalMulticast, Always).v6(),
    Row::futile("link-local-tcp", Vector::LinkLocalTcp).v6(),
    Row { bind: Always, ..Row::futile("link-local-mptcp", Vector::LinkLocalMptcp).v6() }.mptcp(),
    Row { bind: Always, ..Row::futile("link-local-af-unspec", Vector::LinkLocalAfUnspec).v6() },
    Row::leaks("bindtodevice", Vector::Bindtodevice, AsRoot),
    Row::leaks("bindtodevice-cleared", Vector::BindtodeviceCleared, AsRoot),
    Row { bind: AsRoot, ..Row::futile("bindtoifindex", Vector::Bindtoifindex) },
    Row::leaks("bindtodevice-af-unspec", Vector::BindtodeviceAfUnspec, Always),
    Row { bind: Always, ..Row::futile("bindtodevice-mptcp", Vector::BindtodeviceMptcp) }.mptcp(),
    Row::leaks("bindtodevice-uring", Vector::BindtodeviceUring, AsRoot),
    Row::leaks("vrf", Vector::Vrf, AsRoot),
    Row::futile("mark", Vector::Mark),
    Row::leaks("mark-af-unspec", Vector::MarkAfUnspec, AsRoot),
    Row::futile("unicast-if", Vector::UnicastIf),
    Row::leaks("unicast-if-af-unspec", Vector::UnicastIfAfUnspec, Always),
    Row::futile("multicast-if", Vector::MulticastIf),
    Row::leaks("multicast-if-af-unspec", Vector::MulticastIfAfUnspec, Always),
    Row::futile("bind-other", Vector::BindOther),
    Row::leaks("bind-other-udp", Vector::BindOtherUdp, Always),
    Row::futile("bind-other-raw", Vector::BindOtherRaw),
    Row::futile("freebind", Vector::Freebind),
    Row::futile("transparent", Vector::Transparent),
    Row::leaks("forged-header", Vector::ForgedHeader, AsRoot),
    Row::leaks("forged-multicast", Vector::ForgedMulticast, AsRoot).v6().even_strict(AsRoot, OWN_GROUP).not_routed(),
    Row::leaks("forged-echo", Vector::ForgedEcho, AsRoot),
    Row::leaks("forged-ping", Vector::ForgedPing, AsRoot).v4(),
    Row::leaks("forged-ping-v6", Vector::ForgedPing, Always).v6(),
    Row::leaks("forged-transparent", Vector::ForgedTransparent, AsRoot),
    Row::leaks("forged-transparent-tcp", Vector::ForgedTransparentTcp, AsRoot).refused_on_connect(),
    Row::futile("forged-freebind-v4", Vector::ForgedFreebind).v4(),
    Row::leaks("forged-freebind", Vector::ForgedFreebind, Always).v6(),
    Row::leaks("forged-freebind-of-v4", Vector::ForgedFreebindOfV4, Always).v6(),
    Row::futile("forged-freebind-tcp-v4", Vector::ForgedFreebindTcp).v4(),
    Row::leaks("forged-freebind-tcp", Vector::ForgedFreebindTcp, Always).v6().refused_on_connect(),
    Row::futile("forged-pktinfo-v4", Vector::ForgedPktinfo).v4(),
    Row::leaks("forged-pktinfo", Vector::ForgedPktinfo, Always).v6(),
    Row::futile("source-route", Vector::SourceRoute),
    Row::futile("dontroute", Vector::Dontroute),
    Row::futile("broadcast-subnet", Vector::BroadcastSubnet).v4(),
    Row::futile("broadcast-limited", Vector::BroadcastLimited).v4(),
    Row::plain("multicast-send", Vector::MulticastSend).v4(),
    Row::plain("multicast-send-v6", Vector::MulticastSend).v6().not_routed(),
    Row::leaks("join", Vector::Join, Always),
    Row::redirected("join-by-address", Vector::JoinByAddress).v4(),
    Row::redirected("join-by-route", Vector::JoinByRoute),
    Row::leaks("join-group", Vector::JoinGroup, Always),
    Row::leaks("join-source", Vector::JoinSource, Always),
    Row::leaks("join-source-by-address", Vector::JoinSourceByAddress, Always).v4(),
    Row::leaks("join-mapped", Vector::JoinMapped, Always).v4(),
    Row::futile("join-tcp", Vector::JoinTcp),
    Row::leaks("filter-by-index", Vector::FilterByIndex, Always).scene(made_before(Step::Option)),
    Row::leaks("filter-by-address", Vector::FilterByAddress, Always).v4().scene(made_before(Step::Option)),
    Row::leaks("block-by-index", Vector::BlockByIndex, Always).scene(made_before(Step::Option)),
    Row::leaks("block-by-address", Vector::BlockByAddress, Always).v4().scene(made_before(Step::Option)),
    Row::leaks("multicast-routing", Vector::MulticastRouting, AsRoot),
    Row::leaks("packet-raw", Vector::PacketRaw, AsRoot).past_ip(),
    Row::leaks("packet-dgram", Vector::PacketDgram, AsRoot).past_ip(),
    Row::leaks("packet-bypass", Vector::PacketBypass, AsRoot).past_ip(),
    Row::leaks("packet-legacy", Vector::PacketLegacy, AsRoot).past_ip(),
    Row::leaks("packet-uring", Vector::PacketUring, AsRoot).past_ip(),
    Row::leaks("xdp", Vector::Xdp, AsRoot).past_ip(),
    Row::futile("sctp", Vector::Sctp),
    Row::repaired("smc", Vector::Smc).past_ip(),
    Row::plain("smc-inet", Vector::SmcInet).past_ip(),
    Row { bind: Always, ..Row::futile("smc-upper-layer", Vector::SmcUpperLayer) },
    Row::leaks("compat-bindtodevice", Vector::CompatBindtodevice, AsRoot),
    Row::leaks("compat-join", Vector::CompatJoin, Always).past_ip(),
    Row::leaks("compat-join-socketcall", Vector::CompatJoinSocketcall, Always).past_ip(),
    Row::leaks("compat-join-uring", Vector::CompatJoinUring, Always).past_ip(),
    Row::leaks("compat-packet", Vector::CompatPacket, AsRoot).past_ip(),
    Row::futile("user-namespace", Vector::UserNamespace),
    Row::futile("network-namespace", Vector::NetworkNamespace),
    Row::plain("sub-cgroup", Vector::SubCgroup),
    Row::leaks("sub-cgroup-af-unspec", Vector::SubCgroupAfUnspec, AsRoot),
    Row::leaks("leave-cgroup", Vector::LeaveCgroup, AsRoot)
        .even_strict(AsRoot, "a process that may write to another cgroup may move there"),
    Row::leaks("inherited", Vector::Inherited, Always).even_strict(Always, FOREIGN_SOCKET),
    Row::leaks("passed", Vector::Passed, Always).even_strict(Always, FOREIGN_SOCKET),
    Row::repaired("tcp-made-before", Vector::Tcp).scene(made_before(Step::Socket)),
    Row::leaks("tcp-connected-before", Vector::Tcp, Always).scene(made_before(Step::Connect)),
    Row::leaks("udp-made-before", Vector::UdpUnconnected, Always).scene(made_before(Step::Socket)),
    Row::leaks("udp-connected-before", Vector::Udp, Always).scene(made_before(Step::Connect)),
    Row::repaired("mptcp-made-before", Vector::Mptcp).scene(made_before(Step::Socket)),
    Row::repaired("mptcp-accept-before", Vector::MptcpAccept).scene(made_before(Step::Socket)),
    Row::redirected("mptcp-listen-before", Vector::MptcpAcceptUnbound).scene(made_before(Step::Socket)),
    Row::leaks("mptcp-connected-before", Vector::Mptcp, Always).scene(made_before(Step::Connect)),
    Row::leaks("packet-made-before", Vector::PacketRaw, AsRoot)
        .scene(made_before(Step::Socket))
        .even_strict(AsRoot, OLDER),
];

/// One trial for each row and level that tells something.
pub(crate) fn trials(root: bool) -> Vec<Trial> {
    // The routed group has the rows of `group` and of `lan`, and takes the longest.
    let is_run = |level: &Level| *level != Level::GroupRoute || std::env::var_os("STEER_THOROUGH").is_some();
    let trials = LEVELS.into_iter().filter(is_run).flat_map(|level| {
        ROWS.iter().filter(move |row| row.is_tried_at(level)).map(move |row| {
            let run = move || row.check(level).map_err(|error| format!("{error:#}").into());
            Trial::test(format!("escape::{}::{}", level.name(), row.name), run).with_ignored_flag(!root)
        })
    });
    let complete = || every_vector_has_a_row().map_err(|error| format!("{error:#}").into());
    trials.chain([Trial::test("escape::every_vector_has_a_row", complete)]).collect()
}

fn every_vector_has_a_row() -> Outcome {
    let missing = Vector::all().iter().filter(|&&vector| ROWS.iter().all(|row| row.vector != vector));
    let missing = missing.collect::<Vec<_>>();
    ensure!(missing.is_empty(), "{missing:?}");
    Ok(())
}

impl Row {
    fn check(&self, level: Level) -> Outcome {
        let mut complaints = Vec::new();
        let mut clean_bed = beds().entry(level).or_default().pop();
        for user in USERS {
            for &family in self.families {
                let bed = match clean_bed.take() {
                    Some(bed) => bed,
                    None => level.bed(&format!("escape-{}", level.name()))?,
                };
                let must_work =
                    self.works_from.is_some_and(|from| level >= from) && !(self.not_routed && level.is_routed());
                let timeout = if must_work { LONG } else { SHORT };
                let this = Try { vector: self.vector, user, family, scene: self.scene, timeout };
                let seen = bed.attempt(this, level)?;
                let refused = level.is_strict() && (self.mptcp || self.past_ip && is_past_ip_refused(&bed)?);
                let must_work = must_work && !refused;
                let expected = !refused && self.expects(level, user);
                let (attempt, leaked) = (&seen.attempt, seen.leaked.len());
                let (text, complaint) = match (attempt.is_applicable(), leaked) {
                    (false, 0) => ("n/a".to_owned(), None),
                    (false, _) => (format!("LEAK {leaked}"), Some("leaked without having been tried")),
                    (true, 0) => {
                        let text = if attempt.is_ok() { "-" } else { "x" };
                        let complaint = if expected {
                            Some("should leak, or the captures are blind")
                        } else if refused && !matches!(attempt.step, Some(Step::Socket | Step::Option)) {
                            Some("should have been refused a socket or an option")
                        } else if must_work && !attempt.is_ok() {
                            Some("should work")
                        } else {
                            None
                        };
                        (text.to_owned(), complaint)
                    }
                    (true, _) => {
                        let complaint = (!expected).then_some("leaks");
                        (format!("LEAK {leaked}"), complaint)
                    }
                };
                record(self.name, (level, user, family), text);
                if let Some(complaint) = complaint {
                    complaints.push(format!("{user:?} {family:?} {complaint}: {attempt:?}, leaked {:?}", seen.leaked));
                }
                // Late packets of an attempt that leaks are not counted in the next one.
                clean_bed = (!expected && leaked == 0).then_some(bed);
            }
        }
        // The kernel reports the end of a membership from before some time after the program.
        if let Some(bed) = clean_bed
            && !matches!(self.scene, Scene::SteeredAfter(_))
        {
            beds().entry(level).or_default().push(bed);
        }
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        Ok(())
    }

    /// With the binding alone, only what the steer level changes tells something: steer adds programs that restore bindings, so what
    /// leaks there leaks without them, too, and what never leaves has no more to get past.
    fn is_tried_at(&self, level: Level) -> bool {
        level != Level::Bind || self.bind != self.steer || self.works_from > Some(Level::Bind)
    }

    /// Whether it is use that must work, at one level at least.
    pub(crate) fn is_plain_use(&self) -> bool {
        self.works_from.is_some()
    }

    /// Whether strict enforcement refuses to make the socket, where steer reports that it covers that.
    pub(crate) fn is_past_ip(&self) -> bool {
        self.past_ip
    }

    /// Whether it leaks, unless the socket is refused.
    pub(crate) fn expects(&self, level: Level, user: User) -> bool {
        let leaks = match (level, self.strict) {
            (_, _) if level.is_routed() && self.not_routed => Never,
            (Level::Bind, _) => self.bind,
            (Level::Steer | Level::Observe, _) => self.steer,
            (_, None) if self.past_ip => self.steer,
            (_, None) => Never,
            (_, Some((leaks, _))) => leaks,
        };
        match leaks {
            Never => false,
            AsRoot => user == User::Root,
            Always => true,
        }
    }
}

/// Beds in which nothing has leaked, for the next rows of their level. Programs are loaded only once in each.
static BEDS: Mutex<BTreeMap<Level, Vec<Bed>>> = Mutex::new(BTreeMap::new());

fn beds() -> MutexGuard<'static, BTreeMap<Level, Vec<Bed>>> {
    BEDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the beds.
pub(crate) fn remove_beds() {
    beds().clear();
}

/// Whether steer refuses sockets that bypass the IP stack on this machine, as it reports itself. If not, the reason is
/// kept for the table.
fn is_past_ip_refused(bed: &Bed) -> anyhow::Result<bool> {
    let not_covered = bed.not_covered()?;
    if let Some(what) = &not_covered {
        what.clone_into(&mut NOT_COVERED.lock().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(not_covered.is_none())
}

static NOT_COVERED: Mutex<String> = Mutex::new(String::new());

type Column = (Level, &'static str, &'static str);

static CELLS: Mutex<BTreeMap<(&'static str, Column), String>> = Mutex::new(BTreeMap::new());

fn record(row: &'static str, (level, user, family): (Level, User, Family), text: String) {
    let user = if user == User::Root { "root" } else { "nobody" };
    let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
    CELLS.lock().unwrap_or_else(PoisonError::into_inner).insert((row, (level, user, family)), text);
}

/// Prints the results of the trials as one table.
pub(crate) fn print_table() {
    let cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    let columns: Vec<Column> = ["root", "nobody"]
        .into_iter()
        .flat_map(|user| ["IPv4", "IPv6"].map(|family| (user, family)))
        .flat_map(|(user, family)| LEVELS.map(|level| (level, user, family)))
        .collect();
    let line = |head: &str, cells: &mut dyn Iterator<Item = String>| {
        println!("{}", cells.fold(format!("{head:<23}"), |line, cell| format!("{line}{cell:<12}")).trim_end());
    };
    println!();
    line("", &mut columns.iter().map(|(_, user, _)| (*user).to_owned()));
    line("", &mut columns.iter().map(|(_, _, family)| (*family).to_owned()));
    line("", &mut columns.iter().map(|(level, _, _)| level.name().to_owned()));
    let not_covered = NOT_COVERED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reasons = Vec::new();
    for row in ROWS {
        let cell = |&column: &Column| cells.get(&(row.name, column)).cloned();
        if columns.iter().all(|column| cell(column).is_none()) {
            continue;
        }
        line(row.name, &mut columns.iter().map(|column| cell(column).unwrap_or_default()));
        let leaks = |column: &Column| cell(column).is_some_and(|text| text.starts_with('L'));
        let mut strict = columns.iter().filter(|column| column.0.is_strict());
        let why = row.strict.map(|(_, why)| why).or(row.past_ip.then_some(not_covered.as_str()));
        if let Some(why) = why
            && row.expects(Level::Strict, User::Root)
            && strict.any(leaks)
        {
            reasons.push(format!("{}: {why}", row.name));
        }
    }
    println!(
        "\n- works, no leak    x refused or lost, no leak    LEAK n packets by another link    n/a cannot be tried here"
    );
    for reason in reasons {
        println!("{reason}");
    }
}
