//! A BPF program of another owner, attached beside other programs, or exclusively (which forbids other programs below
//! it).

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::Cgroup;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
#[expect(clippy::struct_field_names, reason = "the names of the kernel")]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

pub(crate) fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` has the layout of that command's part of `bpf_attr`, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

/// Loads a sock_create program called `name` that allows everything, and attaches it with flags 0, as `ip vrf exec`
/// does. It is removed with the cgroup.
pub fn exclusive_program(cgroup: &Cgroup, name: &str) -> anyhow::Result<()> {
    attach(cgroup, name, 0, true).map(drop)
}

/// The same, but it forbids all sockets, and gives way to any program on a cgroup below (`BPF_F_ALLOW_OVERRIDE`). This process holds it
/// as long as the descriptor.
pub fn overridable_filter(cgroup: &Cgroup, name: &str) -> anyhow::Result<OwnedFd> {
    const BPF_F_ALLOW_OVERRIDE: u32 = 1;
    attach(cgroup, name, BPF_F_ALLOW_OVERRIDE, false)
}

/// The same, attached after the existing programs and beside later ones (`BPF_F_ALLOW_MULTI`).
pub fn program_beside(cgroup: &Cgroup, name: &str) -> anyhow::Result<()> {
    const BPF_F_ALLOW_MULTI: u32 = 2;
    attach(cgroup, name, BPF_F_ALLOW_MULTI, true).map(drop)
}

fn attach(cgroup: &Cgroup, name: &str, attach_flags: u32, allows: bool) -> anyhow::Result<OwnedFd> {
    // r0 = allows; exit
    let instructions: [u64; 2] = [u64::from(allows) << 32 | 0xb7, 0x95];
    let mut load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        ..Load::default()
    };
    load.prog_name[..name.len()].copy_from_slice(name.as_bytes());
    let program = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: a new file descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let directory = fs::File::open(cgroup.directory())?;
    let attach = Attach {
        target_fd: directory.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_INET_SOCK_CREATE,
        attach_flags,
    };
    bpf(BPF_PROG_ATTACH, &attach)?;
    Ok(program)
}
