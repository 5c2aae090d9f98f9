//! A line that fails behind a live carrier: a client connects all the while, and keeps one connection.
//!
//! **Invariant:** the times are those of the client. What the daemon says of it is quoted from its log.

use std::{
    fmt, fs,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use steer_lab::{Clients, ClientsReport, SERVER_V4, Server, Uplinks, client_v4, clients, wait_until};

/// Longer than the start of the daemon and of the client take.
const PATIENCE: Duration = Duration::from_mins(1);
/// The time between two connections of the client.
const INTERVAL: Duration = Duration::from_millis(10);
/// The members of the group, and its probes.
const GROUP: &str = "[[uplink]]\nname = \"lines\"\nmembers = [\"a1\", { interface = \"a0\", tier = 2 }]\n\
                     probe = { targets = [\"gateway\"], interval = \"300ms\" }\n";

/// What happened.
#[derive(Debug, Serialize)]
pub(crate) struct Failover {
    /// From the failure to the client's first connection by the other line, in milliseconds.
    pub(crate) connected_ms: Option<u128>,
    /// From the failure to the end of the kept connection, in milliseconds, and the name of its errno.
    pub(crate) ended_ms: Option<(u128, String)>,
    /// Sockets that were made on the failed line after one was made on the other.
    pub(crate) late: u64,
    /// Connections by `a0` and by `a1`.
    pub(crate) connections: [u64; 2],
    /// What the daemon logged after the failure.
    pub(crate) log: Vec<String>,
}

/// The client: runs in the cgroup.
pub(crate) fn client(cgroup: &Path, how: &str) -> anyhow::Result<bool> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join {}", cgroup.display()))?;
    let clients: Clients = serde_json::from_str(how)?;
    println!("{}", serde_json::to_string(&clients.run()?)?);
    Ok(true)
}

/// Cuts a1. `steer` is the command, with the options for all subcommands, `this` is this program.
pub(crate) fn run(lab: &Uplinks, server: &Server, steer: Command, this: &Path) -> anyhow::Result<Failover> {
    let place = Place::new()?;
    let log = place.directory.join("log");
    let _daemon = Daemon::start(lab, steer, &place)?;
    let target = SocketAddr::new(SERVER_V4.into(), server.port());
    let after = Duration::from_millis(200);
    let how = Clients { target, count: 1, interval: INTERVAL, kept: 1, addresses: 2, after, patience: PATIENCE / 2 };
    server.take_seen();
    let mut command = Command::new(this);
    command.arg("clients").arg(&place.cgroup).arg(serde_json::to_string(&how)?);
    let client = lab.client.enter(command.stdin(Stdio::null()).stdout(Stdio::piped())).spawn();
    let client = client.with_context(|| format!("start {}", this.display()))?;
    let came = wait_until("connections of the client", PATIENCE, || server.seen().len() > 20);
    let logged = fs::metadata(&log).map_or(0, |log| log.len());
    let cut = clients::now();
    let cut_off = came.and_then(|()| lab.black_hole(1, true));
    // It ends by itself.
    let output = client.wait_with_output()?;
    cut_off?;
    lab.black_hole(1, false)?;
    ensure!(output.status.success(), "the client failed: {}", output.status);
    let report = ClientsReport::parse(&String::from_utf8_lossy(&output.stdout))?;
    let since_cut = |at: Duration| at.saturating_sub(cut).as_millis();
    let by = |uplink| report.connected.get(&client_v4(uplink).into());
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let since = text.get(usize::try_from(logged)?..).unwrap_or_default();
    let lines = since.lines().filter_map(|line| line.split_once("] ").map(|(_, line)| line.to_owned()));
    Ok(Failover {
        connected_ms: by(0).map(|connected| since_cut(connected.first)),
        ended_ms: report.ended.first().map(|(at, errno)| (since_cut(*at), errno.clone())),
        late: report.late(),
        connections: [0, 1].map(|uplink| by(uplink).map_or(0, |connected| connected.count)),
        log: lines.collect(),
    })
}

/// The client's cgroup, in that of this process, and a directory. Removed on drop.
struct Place {
    cgroup: PathBuf,
    /// The cgroup's path in the hierarchy.
    path: String,
    directory: PathBuf,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let name = format!("steer-demo-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("this process has no cgroup")?;
        let path = format!("{}/{name}", own.trim_end_matches('/'));
        let cgroup = Path::new(mount.context("no cgroup2 is mounted")?).join(path.trim_start_matches('/'));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let place = Self { cgroup, path, directory };
        fs::create_dir(&place.directory).with_context(|| format!("create {}", place.directory.display()))?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // An ended process can be in its cgroup for a moment.
        let removed = wait_until("the cgroup to be empty", PATIENCE, || fs::remove_dir(&self.cgroup).is_ok());
        for error in [removed.err().map(|error| error.to_string()), remove(&self.directory)].into_iter().flatten() {
            eprintln!("steer-demo: {error}");
        }
    }
}

fn remove(directory: &Path) -> Option<String> {
    let error = fs::remove_dir_all(directory).err()?;
    Some(format!("remove {}: {error}", directory.display()))
}

/// Ended on drop.
struct Daemon(Child);

impl Daemon {
    fn start(lab: &Uplinks, mut steer: Command, place: &Place) -> anyhow::Result<Self> {
        let (config, notify) = (place.directory.join("steer.toml"), place.directory.join("notify"));
        let policy = format!("\n[[policy]]\nname = \"demo\"\nuplink = \"lines\"\ncgroups = [\"{}\"]\n", place.path);
        fs::write(&config, format!("{GROUP}{policy}"))?;
        let ready = UnixDatagram::bind(&notify)?;
        ready.set_read_timeout(Some(PATIENCE))?;
        steer.arg("--socket").arg(place.directory.join("api.sock")).args(["daemon", "--config"]).arg(config);
        steer.env("STEER_LOG", "info").env("NOTIFY_SOCKET", &notify).env_remove("JOURNAL_STREAM");
        steer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(place.directory.join("log"))?);
        let daemon = Self(lab.client.enter(&mut steer).spawn().context("start the daemon")?);
        ready.recv(&mut [0; 64]).context("the daemon is not ready")?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("steer-demo: end the daemon: {error}");
        }
    }
}

impl Failover {
    /// Whether new connections went by the other line, and none by the failed one after that.
    pub(crate) fn worked(&self) -> bool {
        self.connected_ms.is_some() && self.connections.iter().all(|count| *count > 0) && self.late == 0
    }
}

impl fmt::Display for Failover {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [by_a0, by_a1] = self.connections;
        writeln!(
            formatter,
            "A program under a group of a1 and, if that fails, a0, connects every 10 ms and keeps one connection open. After\n\
             {by_a1} connections by a1, the line behind a1 is cut. Its carrier stays. The group is probed every 300 ms."
        )?;
        match self.connected_ms {
            Some(ms) => writeln!(formatter, "{ms:>6} ms later: the first connection by a0, and {by_a0} in all by it")?,
            None => writeln!(formatter, "There was NO connection by a0.")?,
        }
        match &self.ended_ms {
            Some((ms, errno)) => writeln!(formatter, "{ms:>6} ms later: the kept connection ended ({errno})")?,
            None => writeln!(formatter, "The kept connection did not end.")?,
        }
        writeln!(formatter, "Sockets that were made on a1 after that: {}. The daemon logged:", self.late)?;
        self.log.iter().try_for_each(|line| writeln!(formatter, "  {line}"))
    }
}
