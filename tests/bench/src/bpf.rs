//! The bpf(2) commands that the benchmark needs: two small programs to compare with, links, and run time statistics.
//!
//! **Invariant:** pins are in a directory of the caller; everything else made here ends with this process.

use std::{
    ffi::CString,
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_info, bpf_prog_type, bpf_stats_type};

/// The hook of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    prog_type: bpf_prog_type,
    attach_type: bpf_attach_type,
}

impl Hook {
    const fn new(prog_type: bpf_prog_type, attach_type: bpf_attach_type) -> Self {
        Self { prog_type, attach_type }
    }

    /// A new socket.
    pub(crate) const SOCK_CREATE: Self =
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK, bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE);
    /// `connect`.
    pub(crate) const CONNECT: [Self; 2] = [
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    ];
    /// A datagram with a destination address.
    pub(crate) const SENDMSG: [Self; 2] = [
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    ];
    /// `bind`.
    pub(crate) const BIND: [Self; 2] = [
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_INET4_BIND),
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::BPF_CGROUP_INET6_BIND),
    ];
    /// `setsockopt`.
    pub(crate) const SETSOCKOPT: Self =
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCKOPT, bpf_attach_type::BPF_CGROUP_SETSOCKOPT);
    /// An outgoing packet.
    pub(crate) const EGRESS: Self =
        Self::new(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, bpf_attach_type::BPF_CGROUP_INET_EGRESS);
}

/// One instruction in the kernel's format.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    opcode: u8,
    /// The destination is in the low half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r0 = 1; exit`: allows everything unchanged.
pub(crate) const EMPTY: [Instruction; 2] = [
    Instruction { opcode: 0xb7, registers: 0, offset: 0, immediate: 1 },
    Instruction { opcode: 0x95, registers: 0, offset: 0, immediate: 0 },
];

/// `*(u32 *)(r1 + 0) = ifindex`, where 0 is the offset of `bound_dev_if`; then like [`EMPTY`].
pub(crate) const fn constant(ifindex: i32) -> [Instruction; 3] {
    [Instruction { opcode: 0x62, registers: 1, offset: 0, immediate: ifindex }, EMPTY[0], EMPTY[1]]
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers, for which all zeroes is the kernel's "not set".
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its whole size, and each caller keeps what it points to alive during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returns a new file descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a program.
pub(crate) fn load(hook: Hook, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_3.prog_type = hook.prog_type as u32;
    attr.__bindgen_anon_3.expected_attach_type = hook.attach_type as u32;
    attr.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    attr.__bindgen_anon_3.license = c"Dual MIT/GPL".as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// Attaches a program to a cgroup while the link is open (Linux 5.7).
pub(crate) fn attach(hook: Hook, program: &OwnedFd, cgroup: &Path) -> io::Result<OwnedFd> {
    link(hook, program, &File::open(cgroup)?)
}

/// The same for an open cgroup.
pub(crate) fn link(hook: Hook, program: &OwnedFd, cgroup: &File) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = raw(program.as_fd());
    attr.link_create.__bindgen_anon_2.target_fd = raw(cgroup.as_fd());
    attr.link_create.attach_type = hook.attach_type as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Pins a link at `path`.
pub(crate) fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.bpf_fd = raw(link.as_fd());
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens the object that is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// While this is open, the kernel times every run of every program (Linux 5.8).
pub(crate) fn enable_statistics() -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.enable_stats.type_ = bpf_stats_type::BPF_STATS_RUN_TIME as u32;
    bpf_fd(bpf_cmd::BPF_ENABLE_STATS, &mut attr)
}

/// The kernel's counters of a program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunTime {
    time: Duration,
    runs: u64,
}

impl RunTime {
    /// Reads a program's statistics.
    pub(crate) fn of(program: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a struct of integers; zero is valid and asks for none of the optional arrays.
        let mut info: bpf_prog_info = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut attr = zeroed_attr();
        attr.info.bpf_fd = raw(program.as_fd());
        attr.info.info_len = u32::try_from(size_of::<bpf_prog_info>()).map_err(io::Error::other)?;
        attr.info.info = std::ptr::from_mut(&mut info) as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        Ok(Self { time: Duration::from_nanos(info.run_time_ns), runs: info.run_cnt })
    }

    /// Nanoseconds per run since `earlier`; `None` when it has not run.
    pub(crate) fn per_run_since(self, earlier: Self) -> Option<f64> {
        let runs = u32::try_from(self.runs.saturating_sub(earlier.runs)).ok().filter(|runs| *runs > 0)?;
        Some(self.time.saturating_sub(earlier.time).as_secs_f64() * 1e9 / f64::from(runs))
    }
}
