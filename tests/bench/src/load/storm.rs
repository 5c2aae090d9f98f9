//! The loads: a process that repeats one action as fast as it can, or at a given rate, until its standard input closes.
//! It then prints the number of repetitions.
//!
//! **Invariant:** at its end, the cgroups that it made are removed, and the link that it renamed has its first name.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Socket, Type};

/// Renames per second.
const RENAMES: u32 = 3_000;

/// The action.
#[derive(clap::Args)]
pub(crate) struct Storm {
    /// Make and remove cgroups in this directory
    #[arg(long)]
    cgroups: Option<PathBuf>,
    /// Distinguishes processes that use the same directory
    #[arg(long, default_value_t = 0)]
    number: u32,
    /// Rename this link
    #[arg(long)]
    link: Option<String>,
}

impl Storm {
    pub(crate) fn cgroups(directory: &Path, number: u32) -> Self {
        Self { cgroups: Some(directory.to_owned()), number, link: None }
    }

    pub(crate) fn link(link: &str) -> Self {
        Self { cgroups: None, number: 0, link: Some(link.to_owned()) }
    }

    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let cgroups = self.cgroups.iter().flat_map(|directory| ["--cgroups".into(), directory.clone().into()]);
        let link = self.link.iter().flat_map(|link| ["--link".into(), link.into()]);
        cgroups.chain(link).chain(["--number".into(), self.number.to_string().into()]).collect()
    }
}

/// Repeats the action.
pub(crate) fn serve(storm: &Storm) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    thread::spawn(move || {
        // However the input ends, the parent process is done.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.store(true, Ordering::Relaxed);
    });
    let mut done = 0_u64;
    if let Some(directory) = &storm.cgroups {
        while !stop.load(Ordering::Relaxed) {
            let cgroup = directory.join(format!("s{}-{done}", storm.number));
            fs::create_dir(&cgroup)?;
            fs::remove_dir(&cgroup)?;
            done += 1;
        }
    }
    if let Some(link) = &storm.link {
        let renaming = Renaming::new(link)?;
        let (start, other) = (Instant::now(), format!("{link}x"));
        // An even number, so that the link has its name again.
        while !stop.load(Ordering::Relaxed) {
            renaming.rename(&other)?;
            renaming.rename(link)?;
            done += 2;
            let due = Duration::from_secs(1) / RENAMES * u32::try_from(done)?;
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    println!("{done}");
    Ok(())
}

/// Renames one link by rtnetlink.
struct Renaming {
    socket: Socket,
    index: u32,
}

impl Renaming {
    fn new(link: &str) -> Result<Self> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None).context("open a netlink socket")?;
        let index = if_nametoindex(link).with_context(|| format!("find the link {link}"))?;
        Ok(Self { socket, index })
    }

    fn rename(&self, name: &str) -> Result<()> {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        let length = u16::try_from(4 + value.len())?;
        value.resize(value.len().next_multiple_of(4), 0);
        let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK)?;
        let total = u32::try_from(16 + 16 + 4 + value.len())?;
        let header =
            [&total.to_ne_bytes()[..], &libc::RTM_SETLINK.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
        let link = [&[0; 4][..], &self.index.to_ne_bytes(), &[0; 8]].concat();
        let attribute = [&length.to_ne_bytes()[..], &libc::IFLA_IFNAME.to_ne_bytes(), &value].concat();
        self.socket.send(&[header, link, attribute].concat()).context("rename a link")?;
        let mut answer = [0; 1024];
        let received = (&self.socket).read(&mut answer).context("rename a link")?;
        let errno =
            answer[..received].get(16..20).map(|errno| i32::from_ne_bytes([errno[0], errno[1], errno[2], errno[3]]));
        ensure!(errno == Some(0), "rename a link: {errno:?}");
        Ok(())
    }
}
