//! A command in a cgroup of its own: `steer exec`, `attach --only`, and the daemon for users without privilege make it in the same way.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::{
    apply::{
        manual::{self, Wanted},
        permit::Origin,
        resolve::Namespace,
    },
    host::{
        cgroup::{Hierarchy, scope::Scope},
        pidfd::Pidfd,
    },
    kernel::{Datapath, Pins},
};

/// Attaches the policy. Returns whether the command needs a seccomp filter.
pub(crate) fn attach(
    hierarchy: &Hierarchy,
    pins: &Pins,
    scope: &Scope,
    wanted: &Wanted,
    namespace: Namespace<'_>,
) -> anyhow::Result<bool> {
    let lock = pins.create_and_lock()?;
    let mut datapath = Datapath::open_or_load(pins, &lock)?;
    datapath.clean_up(&lock, hierarchy)?;
    manual::attach(&mut datapath, &lock, hierarchy, &scope.cgroup, (Origin::Exec, wanted), namespace)?;
    Ok(manual::needs_filter(&datapath, &scope.cgroup)?)
}

/// Starts the keeper in its own session. At the end it says on the terminal what was stopped; a daemon that answers at the socket tells more. It
/// moves out of the caller's cgroup if that has an owner. Returns the descriptor whose end the keeper waits for.
pub(crate) fn start_keeper(
    scope: &Scope,
    pins: &Pins,
    terminal: Option<(&File, &Path)>,
) -> anyhow::Result<io::PipeWriter> {
    let (reader, writer) = io::pipe()?;
    let (reader_fd, lock_fd) = (reader.as_raw_fd(), scope.lock_fd());
    let terminal_fd = terminal.map(|(terminal, _)| terminal.as_raw_fd());
    let inherited = [Some(reader_fd), Some(lock_fd), terminal_fd, pins.anchor()];
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg0("steer-keeper").arg("--bpffs").arg(pins.root());
    if let Some((_, socket)) = terminal {
        keeper.arg("--socket").arg(socket);
    }
    keeper
        .args(["keep", scope.cgroup.path.as_str(), &reader_fd.to_string(), &lock_fd.to_string()])
        .arg(pins.name())
        .args(terminal_fd.map(|fd| format!("--terminal-fd={fd}")));
    start_apart(keeper, inherited.into_iter().flatten().collect()).context("start the keeper")?;
    Ok(writer)
}

/// Starts the process that says on the terminal what was stopped of this one, when this one has ended: the daemon's keeper has no terminal.
/// The id of the cgroup is to be written to the descriptor.
pub(crate) fn start_teller(terminal: &File, socket: &Path) -> anyhow::Result<io::PipeWriter> {
    let (reader, writer) = io::pipe()?;
    let this = Pidfd::open(std::process::id())?;
    let inherited = vec![reader.as_raw_fd(), this.as_raw_fd(), terminal.as_raw_fd()];
    let mut teller = Command::new("/proc/self/exe");
    teller.arg0("steer-teller").arg("--socket").arg(socket).arg("tell").args(inherited.iter().map(i32::to_string));
    start_apart(teller, inherited).context("start the process that tells what was stopped")?;
    Ok(writer)
}

/// Starts a process in a session of its own that is no child of this one, with these descriptors and no others.
fn start_apart(mut command: Command, inherited: Vec<i32>) -> anyhow::Result<()> {
    let others = open_descriptors().context("list the open descriptors")?;
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one closure, one argument")]
    // SAFETY: only async-signal-safe calls between fork and exec: fcntl, setsid, fork, _exit.
    unsafe {
        command.pre_exec(move || {
            // Other inherited descriptors, such as the other end of a pipe, belong to the caller.
            for &fd in &others {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            // Inherited by this process, not by what the caller becomes.
            for &fd in &inherited {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            // Not a child of what the caller becomes, which may wait for all its children.
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                _ => libc::_exit(0),
            }
        });
    }
    let status = command.status()?;
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}

/// All descriptors of this process except the standard ones.
pub(crate) fn open_descriptors() -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|&fd| fd > 2).collect())
}
