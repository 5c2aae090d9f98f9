//! The embedded object: loads it, pins its programs and maps, and replaces an old version by a new one.
//!
//! **Invariant:** maps are created once, and every later version of the same ABI reuses them, so policies and records
//! survive an upgrade. A link gets its new program by `BPF_LINK_UPDATE`, which has no gap.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramError},
};
use aya_obj::generated::bpf_attach_type;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};
use steer_common::{map, policy_flags, program};

use super::{Error, Lock, Pins, bpf, btf, events, lsm, moved, pins::file_name};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer"));

/// A program of the object, its hook, and the policies that need it.
pub(super) struct Hook {
    pub(super) name: &'static str,
    pub(super) attach_type: bpf_attach_type,
    /// The [`policy_flags`] that need it; 0 is every policy.
    needed_by: u32,
}

const DNS: u32 = policy_flags::DNS4 | policy_flags::DNS6;

/// Every hook, in the order they are attached. The hooks that a policy needs form one attachment. The IPv6 hooks also see
/// mapped IPv4 addresses, except sendmsg.
pub(super) static HOOKS: [Hook; 19] = [
    hook(program::FAMILY, bpf_attach_type::BPF_LSM_CGROUP, policy_flags::SEES),
    hook(program::COMPAT_OPTION, bpf_attach_type::BPF_LSM_CGROUP, policy_flags::SEES),
    hook(program::COMPAT_RING, bpf_attach_type::BPF_LSM_CGROUP, policy_flags::SEES),
    hook(program::EGRESS, bpf_attach_type::BPF_CGROUP_INET_EGRESS, policy_flags::SEES | policy_flags::ACCOUNT),
    hook(
        program::INGRESS,
        bpf_attach_type::BPF_CGROUP_INET_INGRESS,
        policy_flags::GUARD_INGRESS | policy_flags::ACCOUNT,
    ),
    hook(program::SETSOCKOPT, bpf_attach_type::BPF_CGROUP_SETSOCKOPT, policy_flags::SEES),
    hook(program::SOCK_OPS, bpf_attach_type::BPF_CGROUP_SOCK_OPS, policy_flags::GUARD),
    hook(program::TRAFFIC, bpf_attach_type::BPF_CGROUP_SOCK_OPS, policy_flags::GROUP),
    hook(program::RECVMSG4, bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG, policy_flags::DNS4),
    hook(program::RECVMSG6, bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG, DNS),
    hook(program::GETPEERNAME4, bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME, policy_flags::DNS4),
    hook(program::GETPEERNAME6, bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME, DNS),
    hook(program::SENDMSG4, bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG, policy_flags::SEES | policy_flags::DNS4),
    hook(program::SENDMSG6, bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG, policy_flags::SEES | policy_flags::DNS6),
    hook(program::CONNECT4, bpf_attach_type::BPF_CGROUP_INET4_CONNECT, policy_flags::RESTORE | policy_flags::DNS4),
    hook(program::CONNECT6, bpf_attach_type::BPF_CGROUP_INET6_CONNECT, policy_flags::RESTORE | DNS),
    hook(program::BIND4, bpf_attach_type::BPF_CGROUP_INET4_BIND, policy_flags::RESTORE),
    hook(program::BIND6, bpf_attach_type::BPF_CGROUP_INET6_BIND, policy_flags::RESTORE),
    hook(program::SOCK_CREATE, bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE, 0),
];

/// Creates the record of a cgroup that was never attached; see [`program::ANCHOR`].
pub(super) static ANCHOR: Hook = hook(program::ANCHOR, bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE, 0);

/// Writes what the agent tells into the ring of events; see [`program::TELL`].
static TELL: Hook = hook(program::TELL, bpf_attach_type::BPF_CGROUP_INET_EGRESS, 0);

/// The hooks that can be attached for a policy, in order.
pub(super) fn available(pins: &Pins) -> Vec<&'static Hook> {
    HOOKS.iter().filter(|hook| hook.is_available(pins)).collect()
}

/// Every program of the object.
fn all_programs() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().chain([&ANCHOR, &TELL])
}

const fn hook(name: &'static str, attach_type: bpf_attach_type, needed_by: u32) -> Hook {
    Hook { name, attach_type, needed_by }
}

impl Hook {
    /// Whether a policy with these flags needs it.
    pub(super) fn is_needed(&self, flags: u32) -> bool {
        self.needed_by == 0 || flags & self.needed_by != 0
    }

    /// Whether an attachment has it. Its own policy may need it. Or a policy `around` it does, and this attachment's program
    /// must run first to note that this attachment decides.
    pub(super) fn is_wanted(&self, flags: u32, around: u32) -> bool {
        self.is_needed(flags) || self.notes() && self.is_needed(around)
    }

    /// Whether its program runs for a call that it can bind or stop. A packet needs no note, and neither does a count. An answer is
    /// renamed only if its query was redirected.
    fn notes(&self) -> bool {
        use bpf_attach_type::{
            BPF_CGROUP_INET4_BIND, BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_BIND, BPF_CGROUP_INET6_CONNECT,
            BPF_CGROUP_SETSOCKOPT, BPF_CGROUP_SOCK_OPS, BPF_CGROUP_UDP4_SENDMSG, BPF_CGROUP_UDP6_SENDMSG,
        };
        self.name != program::TRAFFIC
            && matches!(
                self.attach_type,
                BPF_CGROUP_INET4_BIND
                    | BPF_CGROUP_INET6_BIND
                    | BPF_CGROUP_INET4_CONNECT
                    | BPF_CGROUP_INET6_CONNECT
                    | BPF_CGROUP_UDP4_SENDMSG
                    | BPF_CGROUP_UDP6_SENDMSG
                    | BPF_CGROUP_SETSOCKOPT
                    | BPF_CGROUP_SOCK_OPS
            )
    }

    /// Whether it attaches to a security hook.
    fn is_security_hook(&self) -> bool {
        self.attach_type == bpf_attach_type::BPF_LSM_CGROUP
    }

    /// Whether not every kernel has or runs it.
    pub(super) fn is_optional(&self) -> bool {
        self.is_security_hook() || self.attach_type == bpf_attach_type::BPF_CGROUP_SOCK_OPS
    }

    /// Whether it can be attached for a policy. An optional hook needs a program that could be loaded.
    pub(super) fn is_available(&self, pins: &Pins) -> bool {
        !self.is_optional() || pins.program(self.name).exists()
    }
}

/// What the programs write to their log ring buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// No messages; the verifier removes the code.
    #[default]
    Off,
    /// Every decision about every socket.
    Trace,
}

impl LogLevel {
    fn as_u8(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Trace => aya_log::Level::Trace as u8,
        }
    }
}

pub(super) fn maps_are_pinned(pins: &Pins) -> bool {
    map::ALL.iter().all(|name| pins.map(name).exists())
}

/// Whether all programs and maps are pinned.
pub(super) fn is_complete(pins: &Pins) -> bool {
    maps_are_pinned(pins) && all_programs().all(|hook| hook.is_optional() || pins.program(hook.name).exists())
}

/// Sets aside the leftovers of a removal that was killed. Programs without all of their maps cannot be used. Their links,
/// if any, are treated as another version's.
fn set_fragments_aside(pins: &Pins) -> Result<(), Error> {
    let abi = pins.abi();
    if is_complete(pins) || !abi.exists() {
        return Ok(());
    }
    let aside = (0..).map(|number| abi.with_file_name(format!("{}-fragment-{number}", file_name(&abi))));
    let aside = aside.into_iter().find(|path| !path.exists()).unwrap_or_else(|| abi.clone());
    fs::rename(&abi, &aside).map_err(|source| Error::Pin { action: "set aside", path: abi, source })
}

/// Removes the program of an optional hook, so that no policy uses it.
pub(super) fn remove_program(pins: &Pins, hook: &Hook) -> Result<(), Error> {
    let path = pins.program(hook.name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Pin { action: "remove", path, source: error })
        }
        _ => Ok(()),
    }
}

/// A hook with its pinned program, opened.
pub(super) struct Pinned {
    pub(super) hook: &'static Hook,
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
}

/// Opens the pinned programs of all available hooks.
pub(super) fn programs(pins: &Pins) -> Result<Vec<Pinned>, Error> {
    available(pins).into_iter().map(|hook| open(pins, hook)).collect()
}

/// Opens a pinned program.
pub(super) fn open(pins: &Pins, hook: &'static Hook) -> Result<Pinned, Error> {
    let path = pins.program(hook.name);
    let open = || {
        let fd = bpf::open_pin(&path)?;
        let id = bpf::program_info(fd.as_fd())?.id;
        Ok(Pinned { hook, fd, id })
    };
    open().map_err(|source| Error::Pin { action: "open", path: path.clone(), source })
}

/// Loads the object with the pinned maps, if any, and pins its programs unless identical ones are pinned. Returns the
/// loaded object, which is needed only to read the programs' log.
pub fn load(pins: &Pins, _lock: &Lock, log_level: LogLevel) -> Result<aya::Ebpf, Error> {
    set_fragments_aside(pins)?;
    pins.create()?;
    let _raised = Memlock::raise();
    let constants = events::constants();
    match load_with(pins, log_level, &constants, 1) {
        // Before Linux 5.12 the verifier does not allow bpf_setsockopt there.
        Err(Error::Program {
            name: program::BIND4 | program::BIND6 | program::SENDMSG4 | program::SENDMSG6,
            source,
        }) => {
            log::debug!("the bind and sendmsg programs cannot bind on this kernel: {source}");
            load_with(pins, log_level, &constants, 0)
        }
        loaded => loaded,
    }
}

fn load_with(pins: &Pins, log_level: LogLevel, constants: &[(&str, u8)], rebinds: u8) -> Result<aya::Ebpf, Error> {
    let level = log_level.as_u8();
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global(program::REBINDS, &rebinds, true);
    for (name, value) in constants {
        loader.override_global(name, value, true);
    }
    let found = btf::offsets().inspect_err(|error| log::warn!("read the structures of the kernel: {error}")).ok();
    let moved =
        found.as_ref().and_then(|found| usable(found.moved, "processes that leave steered cgroups are not reported"));
    let task =
        found.as_ref().and_then(|found| usable(found.task, "socket options of 32 bit system calls are not refused"));
    let ring = found
        .as_ref()
        .and_then(|found| usable(found.ring, "socket options of 32 bit rings of io_uring are not refused"));
    if let Some(offsets) = &moved {
        loader.override_global(program::MOVED_OFFSETS, offsets, true);
    }
    let compat = ring.or(task);
    if let Some(offsets) = &compat {
        loader.override_global(program::COMPAT_OFFSETS, offsets, true);
    }
    let mut object = loader.load(OBJECT)?;
    let security_hooks = lsm::bpf_is_active().unwrap_or_else(|error| {
        log::warn!("read the list of active security modules: {error}; no program is attached to a security hook");
        false
    });
    let is_loaded = |hook: &&Hook| match hook.name {
        program::COMPAT_OPTION => security_hooks && task.is_some(),
        program::COMPAT_RING => security_hooks && ring.is_some(),
        _ => security_hooks || !hook.is_security_hook(),
    };
    for hook in all_programs().filter(is_loaded) {
        match pin_program(pins, &mut object, hook, log_level) {
            // Security hooks do not exist before Linux 6.0, and a helper of `sock_ops` not before 5.15. A kernel may also be configured to
            // accept no program for a security hook.
            Err(Error::Program { source, .. }) if hook.is_optional() => {
                log::info!("the kernel does not take the program {}: {source}", hook.name);
            }
            pinned => pinned?,
        }
    }
    let watched = moved.map_or(Ok(()), |_| moved::watch(pins, &mut object));
    if let Err(error) = watched {
        log::info!("processes that leave steered cgroups are not reported: {error}");
    }
    Ok(object)
}

/// What was found, or a warning that says what is not done without it.
fn usable<T>(found: Result<T, btf::Missing>, without: &str) -> Option<T> {
    found.inspect_err(|missing| log::warn!("{missing}, which this version of steer needs: {without}")).ok()
}

fn pin_program(pins: &Pins, object: &mut aya::Ebpf, hook: &Hook, log_level: LogLevel) -> Result<(), Error> {
    let failed = |source: ProgramError| Error::Program { name: hook.name, source };
    let path = pins.program(hook.name);
    let program = object.program_mut(hook.name).ok_or_else(|| Error::Foreign { path: path.clone() })?;
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::LsmCgroup(program) => {
            Btf::from_sys_fs().map_err(ProgramError::from).and_then(|btf| program.load(lsm::hook_of(hook.name), &btf))
        }
        _ => return Err(Error::Foreign { path }),
    }
    .map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd();
    let pinned = |action: &'static str| {
        let path = path.clone();
        move |source: io::Error| Error::Pin { action, path, source }
    };
    let new = bpf::program_info(fd).map_err(pinned("read the program of"))?;
    if path.exists() {
        let old = bpf::open_pin(&path).and_then(|old| bpf::program_info(old.as_fd())).map_err(pinned("open"))?;
        // The tag does not cover the log level, a constant outside the instructions. The length after the verifier does.
        if old.tag == new.tag && old.xlated_bytes == new.xlated_bytes && log_level == LogLevel::Off {
            return Ok(());
        }
    }
    let next = path.with_file_name(format!("{}-next", hook.name));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(pinned("replace")(error)),
        _ => {}
    }
    bpf::pin(fd, &next).map_err(pinned("pin"))?;
    fs::rename(&next, &path).map_err(pinned("replace"))
}

/// Before Linux 5.11 BPF memory counts against RLIMIT_MEMLOCK; later kernels ignore it. Drop restores the old limit:
/// `steer exec` must not change the limit of its command.
pub(super) struct Memlock(Option<(rlim_t, rlim_t)>);

impl Memlock {
    pub(super) fn raise() -> Self {
        let before = getrlimit(Resource::RLIMIT_MEMLOCK).ok();
        let raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        Self(before.filter(|_| raised.is_ok()))
    }
}

impl Drop for Memlock {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0
            && let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)
        {
            log::warn!("restore RLIMIT_MEMLOCK: {error}");
        }
    }
}
