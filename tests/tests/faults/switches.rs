//! The daemon is killed while it switches from one member of a group to another: nothing leaves by a link that was never a member, and the
//! next daemon completes the switch.
//!
//! **Invariant:** the calls at which it is killed are those that write, as a switch before has shown them.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{Capture, Kind, Packet, leaks, wait_until};
use steer_tests::{Bed, Daemon, Outcome, PATIENCE, Spy, User, check_outcomes, strace, stride};

use crate::uplink_health::{go_by, held, wait_for};

/// The methods: bind, and route.
const METHODS: [&str; 2] = ["[]", "[\"host\"]"];
/// The system calls that write in a switch, and what of their arguments tells that they do; nothing: always.
const WRITES: [(&str, &[&str]); 5] = [
    ("bpf", &["BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM"]),
    // Routes, rules, and SOCK_DESTROY. strace does not know the protocol of a netlink socket in another namespace.
    ("sendto", &["type=0x18", "type=0x19", "type=0x20", "type=0x21", "type=0x15", "RTM_NEW", "RTM_DEL"]),
    ("pidfd_getfd", &[]),
    ("setsockopt", &["SO_BINDTODEVICE", "SO_BINDTOIFINDEX", "SO_MARK"]),
    ("connect", &["AF_INET", "AF_UNSPEC"]),
];
/// The flag of TCP segments that begin a connection.
const SYN: u8 = 0x02;
/// How many of them are tried usually, by each method.
const USUALLY: usize = 2;

/// A call of a thread, by its number among those of the same name.
type Point = (&'static str, usize);

pub(super) fn while_it_switches() -> Outcome {
    for local in METHODS {
        let bed = Bed::with_links("kill-switch", 3)?;
        bed.write_config(&format!(
            "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", {{ interface = \"a2\", tier = 2 }}]\nhold = \"0s\"\n\
             [[policy]]\nname = \"p\"\nuplink = \"lines\"\nlocal = {local}\ncgroups = [\"@\"]\n"
        ))?;
        let trace = bed.directory.join("trace");
        let names: Vec<_> = WRITES.iter().map(|(name, _)| *name).collect();
        switch(&bed, &["-e", &format!("trace={}", names.join(","))], &trace)?;
        let points = writes(&fs::read_to_string(&trace)?);
        let kinds: BTreeSet<_> = points.iter().map(|(name, _)| *name).collect();
        ensure!(kinds.contains("bpf") && kinds.contains("sendto"), "local = {local}: {points:?}");
        let step = if stride(0) == 1 { 1 } else { points.len().div_ceil(USUALLY) };
        let mut killed = 0;
        for (name, number) in points.iter().step_by(step) {
            let inject = format!("inject={name}:signal=KILL:when={number}");
            let options = ["-e", &format!("trace={name}"), "-e", &inject];
            let ended = switch(&bed, &options, Path::new("/dev/null"));
            killed += usize::from(ended.with_context(|| format!("local = {local}, {name} {number}"))?);
        }
        ensure!(killed > 0, "local = {local}: never killed at {points:?}");
    }
    Ok(())
}

/// The calls in a trace that write.
pub(super) fn writes(trace: &str) -> Vec<Point> {
    let mut counts = std::collections::BTreeMap::<(&str, &str), usize>::new();
    let mut points = BTreeSet::new();
    for line in trace.lines() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        for (name, words) in WRITES {
            let Some(arguments) = line.trim_start().strip_prefix(name).filter(|rest| rest.starts_with('(')) else {
                continue;
            };
            let count = counts.entry((thread, name)).or_default();
            *count += 1;
            if words.is_empty() || words.iter().any(|word| arguments.contains(word)) {
                points.insert((name, *count));
            }
        }
    }
    points.into_iter().collect()
}

/// A daemon, traced with these options, switches when the interface of the member loses its name. Then the next daemon runs. Returns whether
/// the first was killed.
fn switch(bed: &Bed, options: &[&str], trace: &Path) -> anyhow::Result<bool> {
    let mut daemon = Daemon::start(bed)?;
    wait_for(bed, "a1")?;
    let mut held = held(bed)?;
    ensure!(go_by(&mut held, 1, 1)?);
    let mut spy = Spy::on(bed, &["a1", "a2"])?;
    let tracer = Tracer::start(&daemon, options, trace)?;
    // It goes on as it was, and is no member any more.
    bed.ip("link set a1 name b1")?;
    wait_until("the daemon to switch, or to be killed", PATIENCE, || {
        !daemon.is_running() || go_by(&mut held, 2, 2).unwrap_or_default()
    })
    .with_context(|| daemon.log())?;
    let was_killed = !daemon.is_running();
    drop(tracer);
    if !was_killed {
        ensure!(daemon.end(Signal::SIGKILL)?.is_none());
    }
    let next = Daemon::start(bed)?;
    wait_for(bed, "a2")?;
    wait_until("sockets on the other member", PATIENCE, || go_by(&mut held, 2, 2).unwrap_or_default())?;
    let mut left = Capture::start(&bed.net.client, "b1")?;
    ensure!(go_by(&mut held, 2, 2)?);
    check_outcomes(&bed.probe(Some(&bed.cgroup), User::Nobody)?, User::Nobody, 2)?;
    let packets = left.take()?;
    // The kernel may still end connections there: this link was a member.
    let is_end = |packet: &&Packet| {
        packet.kind == Kind::Tcp && packet.payload_len == 0 && packet.tcp_flags.is_some_and(|flags| flags & SYN == 0)
    };
    let packets: Vec<_> = leaks(&packets).into_iter().filter(|packet| !is_end(packet)).collect();
    ensure!(packets.is_empty(), "the next daemon left sockets on the line: {packets:?}");
    spy.saw_nothing()?;
    bed.ip("link set b1 name a1")?;
    wait_for(bed, "a1")?;
    ensure!(next.end(Signal::SIGKILL)?.is_none());
    Ok(was_killed)
}

/// strace of a daemon.
struct Tracer(Child);

impl Tracer {
    /// Starts it, and waits until it traces every thread.
    fn start(daemon: &Daemon, options: &[&str], trace: &Path) -> anyhow::Result<Self> {
        let pid = daemon.pid();
        let mut command = Command::new(strace()?);
        command.args(["-f", "-q", "-o"]).arg(trace).args(options).args(["-p", &pid.to_string()]);
        let tracer = Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        wait_until("the daemon to be traced", PATIENCE, || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::flatten);
            threads.is_ok_and(|mut threads| {
                threads.all(|thread| {
                    let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
                })
            })
        })?;
        Ok(tracer)
    }
}

impl Drop for Tracer {
    /// It lets the daemon go.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.0.wait();
    }
}
