//! `steer exec`: run a command whose sockets all use one interface.
//!
//! This process becomes the command, so its terminal, signals and exit status are the command's own. It first starts another
//! process, the keeper, which waits outside the new cgroup and removes it when its last process has ended. If one of the two is
//! killed, at most an empty cgroup and its pins are left. The other process removes them, or the next `steer exec`, `attach`,
//! `detach` or daemon on the same pins.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    process::{Command, ExitCode},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::stat::{Mode, umask},
};
use thiserror::Error;

use super::{
    Mistake, cautions,
    identity::Identity,
    target::{By, groups, links_for, marks},
};
use crate::{
    apply::resolve::Namespace,
    host::{
        capability::require_privilege,
        cgroup::{
            Hierarchy,
            scope::{self, Scope},
        },
        seccomp,
    },
    kernel,
    model::{error_text::describe, quote::shown},
    run::{
        admission::Admitted,
        api::{
            client::Client,
            exec::{self, Ask},
        },
        command::{attach, open_descriptors, start_keeper, start_teller},
        instance::{CONFIG, Instance},
    },
};

/// Arguments of `steer exec`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "steer exec [OPTIONS] --interface IF|--uplink NAME|--policy NAME -- CMD...",
    after_help = "Exit status: that of the command; 125 if steer failed before it started, 126 if it cannot be executed, \
                        127 if it was not found. If something of the command was stopped and standard error is a terminal, a line for each \
                        reason appears there when its last process has ended; for a user without privilege, when the command has ended."
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
    #[error("{}", cannot_run(command, source))]
    Command {
        /// The command.
        command: OsString,
        /// The cause.
        source: io::Error,
    },
}

/// As a shell says it.
fn cannot_run(command: &OsStr, source: &io::Error) -> String {
    let name = command.to_string_lossy();
    let name = shown(name.as_ref());
    let is_path = command.as_bytes().contains(&b'/');
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if !is_path => format!("{name}: command not found"),
        Some(errno) => format!("{name}: {}", errno.desc()),
        None => format!("{name}: {source}"),
    }
}

impl Failed {
    /// The exit status, as with env(1), nice(1) and timeout(1).
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Steer(error) if error.is::<Mistake>() => 2,
            Self::Steer(_) => 125,
            Self::Command { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Command { .. } => 126,
        }
    }
}

pub(super) fn run(args: Args, instance: &Instance, callers_umask: Mode) -> anyhow::Result<ExitCode> {
    let user = args.user.as_deref().map(Identity::find).transpose().map_err(Failed::Steer)?;
    match (require_privilege("exec"), &args.by, &user) {
        (Ok(()), ..) => prepare(args.by, instance),
        (Err(_), By::Policy(policy), None) => be_let_in(policy, instance),
        (Err(unprivileged), ..) => Err(anyhow::anyhow!(
            "{unprivileged}\nwithout privilege, only `--policy` works, with a policy that allows you: see `allow_users` in steer.toml(5)"
        )),
    }
    .map_err(Failed::Steer)?;
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
fn prepare(by: By, instance: &Instance) -> anyhow::Result<()> {
    let mut by = by.with_defaults(CONFIG.as_ref())?;
    let hierarchy = Hierarchy::find()?;
    let mut links = links_for(&by)?;
    by.ask_the_link(&mut links)?;
    let groups = groups(CONFIG.as_ref())?;
    let (pins, cookie) = (instance.pins.to_change()?, kernel::netns_cookie()?);
    let namespace = Namespace::own(&links, cookie, marks(&pins, cookie, CONFIG.as_ref())?, &groups);
    let wanted = by.wanted(namespace)?;
    by.warn(&links);
    let place = scope::place(&hierarchy, &hierarchy.own()?)?;
    if let Err(error) = scope::clean_up(&hierarchy, &place) {
        log::warn!("clean up after a killed `steer exec`: {error}");
    }
    let scope = Scope::create(&hierarchy, &place)?;
    // From here on, the keeper cleans up, even if this process is killed.
    let wrapper = start_keeper(&scope, &pins, terminal().as_ref().map(|terminal| (terminal, &*instance.socket)))?;
    let needs_filter = attach(&hierarchy, &pins, &scope, &wanted, namespace)?;
    cautions::of_uplink(&pins, scope.cgroup.id);
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

/// Lets the daemon put this process into a steered cgroup of its own.
fn be_let_in(policy: &str, instance: &Instance) -> anyhow::Result<()> {
    let socket = &instance.users_socket;
    let teller = terminal().map(|terminal| start_teller(&terminal, &instance.socket)).transpose()?;
    let ask = async {
        let daemon = Client::find(socket).await.with_context(|| {
            format!("without privilege, the daemon has to run the command, and none answers at {}", socket.display())
        })?;
        let ask = Ask { policy: policy.to_owned() };
        Ok::<Admitted, anyhow::Error>(daemon.ask(exec::PATH, &ask).await?)
    };
    let admitted = super::block_on(ask)??;
    let own = Hierarchy::of_caller()?;
    anyhow::ensure!(own.to_string() == admitted.cgroup, "this process is in {own}, not in {}", admitted.cgroup);
    if let Some(mut teller) = teller {
        // It tells nothing if it has ended.
        let _ = write!(teller, "{}", admitted.cgroup_id);
        // Closed on exec.
        std::mem::forget(teller);
    }
    if admitted.needs_filter {
        nix::sys::prctl::set_no_new_privs().context("give up set-user-ID programs")?;
        seccomp::refuse_unseen_calls().context("refuse sockets past the IP stack by a seccomp filter")?;
    }
    Ok(())
}

/// The terminal of standard error, if it is one. A write never waits for it: it may be stopped.
fn terminal() -> Option<File> {
    let options = libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = || File::options().write(true).custom_flags(options).open("/proc/self/fd/2").ok();
    io::stderr().is_terminal().then(open).flatten()
}

/// Lets the command inherit the standard descriptors only.
fn close_on_exec() -> io::Result<()> {
    for fd in open_descriptors()? {
        // SAFETY: no pointers. A descriptor that has been closed is none to inherit.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}
