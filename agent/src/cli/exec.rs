//! `steer exec`: run a command whose sockets all use one interface.
//!
//! This process becomes the command, so its terminal, signals and exit status are the command's own. It first starts another
//! process, the keeper, which waits outside the new cgroup and removes it when its last process has ended. If one of the two is
//! killed, at most an empty cgroup and its pins are left. The other process removes them, or the next `steer exec`, `attach`,
//! `detach` or daemon on the same pins.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal as _},
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use nix::sys::stat::{Mode, umask};
use thiserror::Error;

use super::{
    identity::Identity,
    target::{By, groups, links, marks},
};
use crate::{
    apply::{
        manual::{self, Wanted},
        permit::Origin,
        resolve::Namespace,
    },
    host::{
        capability::require_privilege,
        cgroup::{
            Hierarchy,
            scope::{self, Scope},
        },
        seccomp,
    },
    kernel::{self, Datapath, Pins},
    model::error_text::describe,
    run::instance::{CONFIG, PinDirectory},
};

/// Arguments of `steer exec`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: that of the command; 125 if steer failed before it started, 126 if it cannot be executed, \
                        127 if it was not found. If something of the command was stopped and standard error is a terminal, a line for each \
                        reason appears there when its last process has ended."
)]
pub(super) struct Args {
    #[command(flatten)]
    by: By,
    /// Run the command as this user, by name or id; without PAM, and with HOME, USER, LOGNAME and SHELL of the user
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Why the command did not start.
#[derive(Debug, Error)]
pub(crate) enum Failed {
    /// A step of steer failed.
    #[error("{}", describe(.0))]
    Steer(anyhow::Error),
    /// The command cannot be executed.
    #[error("run {command:?}: {source}")]
    Command {
        /// The command.
        command: OsString,
        /// The cause.
        source: io::Error,
    },
}

impl Failed {
    /// The exit status, as with env(1), nice(1) and timeout(1).
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Steer(_) => 125,
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
        }
    }
}

pub(super) fn run(args: Args, pins: &PinDirectory, callers_umask: Mode) -> anyhow::Result<ExitCode> {
    let user = args.user.as_deref().map(Identity::find).transpose().map_err(Failed::Steer)?;
    prepare(args.by, pins).map_err(Failed::Steer)?;
    let mut words = args.command.into_iter();
    let program = words.next().unwrap_or_default();
    umask(callers_umask);
    let mut command = Command::new(&program);
    command.args(words);
    if let Some(user) = &user {
        user.set_variables(&mut command);
        // Descriptors of root are not for the user.
        close_on_exec().context("close the descriptors").and_then(|()| user.become_it()).map_err(Failed::Steer)?;
    }
    let source = command.exec();
    Err(Failed::Command { command: program, source }.into())
}

/// Puts this process into a steered cgroup of its own.
fn prepare(by: By, pins: &PinDirectory) -> anyhow::Result<()> {
    require_privilege("exec")?;
    let by = by.with_defaults(CONFIG.as_ref())?;
    let hierarchy = Hierarchy::find()?;
    let links = links()?;
    let groups = groups(CONFIG.as_ref())?;
    let namespace = Namespace::own(&links, kernel::netns_cookie()?, marks(CONFIG.as_ref())?, &groups);
    let wanted = by.wanted(namespace)?;
    by.warn();
    let pins = pins.to_change()?;
    let place = scope::place(&hierarchy, &hierarchy.own()?)?;
    if let Err(error) = scope::clean_up(&hierarchy, &place) {
        log::warn!("clean up after a killed `steer exec`: {error}");
    }
    let scope = Scope::create(&hierarchy, &place)?;
    // From here on, the keeper cleans up, even if this process is killed.
    let wrapper = start_keeper(&scope, &pins, terminal().as_ref())?;
    let needs_filter = attach(&hierarchy, &pins, &scope, &wanted, namespace)?;
    scope.enter(&hierarchy)?;
    if needs_filter {
        seccomp::refuse_unseen_calls().context(
            "refuse sockets past the IP stack by a seccomp filter (needs CAP_SYS_ADMIN; `--enforce steer` does without)",
        )?;
    }
    // Closed on exec, which is the signal for the keeper to begin.
    std::mem::forget(wrapper);
    Ok(())
}

/// Attaches the policy. Returns whether the command needs a seccomp filter.
pub(super) fn attach(
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

/// The terminal of standard error, if it is one. A write never waits for it: it may be stopped.
fn terminal() -> Option<File> {
    let options = libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = || File::options().write(true).custom_flags(options).open("/proc/self/fd/2").ok();
    io::stderr().is_terminal().then(open).flatten()
}

/// Starts the keeper in its own session. At the end it says on `terminal` what was stopped. It moves out of the caller's cgroup if that has an owner. Returns the descriptor whose end the keeper waits for.
pub(super) fn start_keeper(scope: &Scope, pins: &Pins, terminal: Option<&File>) -> anyhow::Result<io::PipeWriter> {
    let (reader, writer) = io::pipe()?;
    let (reader_fd, lock_fd) = (reader.as_raw_fd(), scope.lock_fd());
    let terminal_fd = terminal.map(AsRawFd::as_raw_fd);
    let inherited = [Some(reader_fd), Some(lock_fd), terminal_fd, pins.anchor()];
    let others = open_descriptors().context("list the open descriptors")?;
    let mut keeper = Command::new("/proc/self/exe");
    keeper
        .arg0("steer-keeper")
        .arg("--bpffs")
        .arg(pins.root())
        .args(["keep", scope.cgroup.path.as_str(), &reader_fd.to_string(), &lock_fd.to_string()])
        .arg(pins.name())
        .args(terminal_fd.map(|fd| format!("--terminal-fd={fd}")))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one closure, one argument")]
    // SAFETY: only async-signal-safe calls between fork and exec: fcntl, setsid, fork, _exit.
    unsafe {
        keeper.pre_exec(move || {
            // Other inherited descriptors, such as the other end of a pipe, belong to the command, not to the keeper.
            for &fd in &others {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            // Inherited by the keeper, not by the command.
            for fd in inherited.into_iter().flatten() {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            // The keeper must not be a child of the command, which may wait for all its children.
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                _ => libc::_exit(0),
            }
        });
    }
    let status = keeper.status()?;
    anyhow::ensure!(status.success(), "start the keeper: {status}");
    Ok(writer)
}

/// Lets the command inherit the standard descriptors only.
fn close_on_exec() -> io::Result<()> {
    for fd in open_descriptors()? {
        // SAFETY: no pointers. A descriptor that has been closed is none to inherit.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// All descriptors of this process except the standard ones.
fn open_descriptors() -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|&fd| fd > 2).collect())
}
