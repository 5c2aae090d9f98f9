//! Anonymous network namespaces, and code and commands that run inside them.
//!
//! **Invariant:** a namespace has no name on the host and is held only by file descriptors, so it ends with the last
//! process that uses it, even on SIGKILL. The calling thread never changes its own namespace. Only the network
//! namespace is ever changed: `/sys/fs/cgroup` and `/sys/fs/bpf` are the same inside.

use crate::{
    error::{Doing, Error, Result},
    sys,
};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::Arc,
    thread,
};

/// Sysctls that make a namespace silent and permissive: IPv6 works but sends nothing by itself, packets may return on
/// another link than they left on, and all users may ping.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/lo/rp_filter", "0"),
    // What an ended process leaves of a connection goes soon.
    ("net/ipv4/tcp_orphan_retries", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/router_solicitations", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/dad_transmits", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    // 1: the kernel generates no link-local address.
    ("net/ipv6/conf/all/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
];

/// A network namespace. Clones are handles of the same namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Makes a namespace with `lo` up. `name` is used only in errors.
    pub fn new(name: &str) -> Result<Self> {
        let fd = on_thread(name, || -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })?
        .doing(|| format!("make network namespace {name}"))?;
        let netns = Self { name: name.into(), fd: Arc::new(fd) };
        netns.run(|| SYSCTLS.iter().try_for_each(|(path, value)| set_sysctl(path, value)))??;
        netns.set_up("lo")?;
        Ok(netns)
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/ns/net");
        let fd = File::open(&file).doing(|| format!("open {file}"))?;
        Ok(Self { name: format!("of process {pid}").into(), fd: Arc::new(fd.into()) })
    }

    /// The label given to [`Netns::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's descriptor, as `setns(2)` and netlink's `IFLA_NET_NS_FD` take it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `f` inside the namespace, on a separate thread that stays in the caller's process and cgroup. It returns an
    /// error if the thread cannot enter the namespace.
    ///
    /// # Panics
    /// When `f` panics, with the same payload.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        on_thread(&self.name, || setns(&self.fd, CloneFlags::CLONE_NEWNET).map(|()| f()))?
            .doing(|| format!("enter network namespace {}", self.name))
    }

    /// Runs the future that `f` makes inside the namespace, on a single-threaded runtime with I/O enabled.
    ///
    /// # Panics
    /// When the future panics, with the same payload.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, f: impl FnOnce() -> F + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            Ok(runtime.block_on(async { f().await }))
        })?
        .map_err(|source| Error::Os { doing: format!("start a runtime in {}", self.name), source })
    }

    /// Sends netlink requests inside the namespace. `doing` names the operation in the error.
    pub fn rtnetlink<T: Send, F: Future<Output = Result<T, rtnetlink::Error>>>(
        &self,
        doing: &str,
        f: impl FnOnce(rtnetlink::Handle) -> F + Send,
    ) -> Result<T> {
        self.block_on(|| async {
            let (connection, handle, _) = rtnetlink::new_connection().doing(|| doing.to_owned())?;
            tokio::spawn(connection);
            f(handle).await.map_err(|error| Error::netlink(doing, error))
        })?
    }

    /// Makes `command` run inside the namespace. Do not combine it with [`CommandExt::uid`], which drops the right to
    /// enter before entering; use [`Netns::enter_as`] for that.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let fd = Arc::clone(&self.fd);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(move || Ok(setns(&fd, CloneFlags::CLONE_NEWNET)?)) }
    }

    /// Makes `command` run inside the namespace as another user, without supplementary groups.
    pub fn enter_as<'a>(&self, command: &'a mut Command, uid: u32, gid: u32) -> &'a mut Command {
        self.enter(command);
        let become_user = move || {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(gid.into())?;
            Ok(nix::unistd::setuid(uid.into())?)
        };
        // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
        unsafe { command.pre_exec(become_user) }
    }

    /// The kernel's number of the namespace, which is not reused until the next boot (`SO_NETNS_COOKIE`, Linux 5.14).
    pub fn cookie(&self) -> Result<u64> {
        self.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            sys::socket_option(&socket, libc::SOL_SOCKET, sys::SO_NETNS_COOKIE)
        })?
        .doing(|| format!("read the cookie of network namespace {}", self.name))
    }

    /// Writes a sysctl of the namespace. `path` is relative to `/proc/sys`, as in `net/ipv4/conf/a0/rp_filter`.
    pub fn write_sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.run(|| set_sysctl(path, value))?
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Writes a sysctl of the calling thread's network namespace.
fn set_sysctl(path: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{path}"), value).doing(|| format!("set sysctl {path} to {value}"))
}

/// Runs `f` on a thread that ends with it, so that the namespace that it enters ends with it too.
fn on_thread<R: Send>(name: &str, f: impl FnOnce() -> R + Send) -> Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(format!("netns-{name}")).spawn_scoped(scope, f);
        match thread.doing(|| format!("start a thread for network namespace {name}"))?.join() {
            Ok(value) => Ok(value),
            Err(payload) => std::panic::resume_unwind(payload),
        }
    })
}
