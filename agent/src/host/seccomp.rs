//! A seccomp filter for a command, which refuses what no program sees where the kernel runs no security programs: sockets past
//! the IP stack, io_uring, which makes such sockets without a system call, and the 32 bit calls that set socket options.
//!
//! It is written here because the crate `seccompiler` kills at a system call of another architecture, does not see x32, and
//! sets `no_new_privs`, which breaks sudo and ping.
//!
//! **Invariant:** every call that it refuses returns an error. Nothing is killed, and set-user-ID programs work as before.

use std::{io, mem::offset_of};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, seccomp_data, sock_filter, sock_fprog,
};
use steer_common::family;

/// System call numbers of one architecture.
struct Calls {
    /// `AUDIT_ARCH_*`
    arch: u32,
    socket: u32,
    socketpair: u32,
    /// The calls of a foreign architecture that set a socket option: the kernel runs no cgroup program for them (Linux 5.10
    /// to 6.18). `socketcall` has its arguments in memory, where a filter cannot read them.
    setsockopt: &'static [u32],
}

/// It has the same number on all architectures (Linux 5.1).
const IO_URING_SETUP: u32 = 425;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Calls; 2] = [
    Calls { arch: 0xc000_003e, socket: 41, socketpair: 53, setsockopt: &[] },
    Calls { arch: 0x4000_0003, socket: 359, socketpair: 360, setsockopt: &[102, 366] },
];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Calls; 2] = [
    Calls { arch: 0xc000_00b7, socket: 198, socketpair: 199, setsockopt: &[] },
    Calls { arch: 0x4000_0028, socket: 281, socketpair: 288, setsockopt: &[294] },
];
/// None: every call would be refused.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURES: [Calls; 0] = [];

/// The first number of x32, which has the architecture of x86-64. Debian's kernels have it switched off.
const X32: u32 = 0x4000_0000;

const ALLOW: sock_filter = answer(SECCOMP_RET_ALLOW);
const REFUSE: sock_filter = answer(SECCOMP_RET_ERRNO | libc::EPERM as u32);
const UNKNOWN: sock_filter = answer(SECCOMP_RET_ERRNO | libc::ENOSYS as u32);

/// Installs the filter for this process and everything that it executes. Needs CAP_SYS_ADMIN (Linux 3.17).
pub fn refuse_unseen_calls() -> io::Result<()> {
    if ARCHITECTURES.is_empty() {
        return Err(io::Error::other("the numbers of the system calls of this architecture are not known"));
    }
    let mut filter = filter();
    let program =
        sock_fprog { len: u16::try_from(filter.len()).map_err(io::Error::other)?, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn filter() -> Vec<sock_filter> {
    let mut filter = vec![load(offset_of!(seccomp_data, arch))];
    for calls in &ARCHITECTURES {
        add(&mut filter, BPF_JEQ, calls.arch, &of(calls));
    }
    // An architecture that this kernel did not have when this was written.
    filter.push(UNKNOWN);
    filter
}

fn of(calls: &Calls) -> Vec<sock_filter> {
    let mut filter = vec![load(offset_of!(seccomp_data, nr))];
    if cfg!(target_arch = "x86_64") {
        add(&mut filter, BPF_JGE, X32, &[UNKNOWN]);
    }
    for &call in [IO_URING_SETUP].iter().chain(calls.setsockopt) {
        add(&mut filter, BPF_JEQ, call, &[REFUSE]);
    }
    for call in [calls.socket, calls.socketpair] {
        add(&mut filter, BPF_JEQ, call, &by_family());
    }
    filter.push(ALLOW);
    filter
}

/// [`family::passes`], of family, type and protocol.
fn by_family() -> Vec<sock_filter> {
    let mut of_ip = vec![load_argument(2)];
    add(&mut of_ip, BPF_JEQ, family::IPPROTO_SMC.cast_unsigned(), &[REFUSE]);
    of_ip.push(load_argument(1));
    of_ip.push(sock_filter {
        code: code(BPF_ALU | BPF_AND | BPF_K),
        jt: 0,
        jf: 0,
        k: family::TYPE_MASK.cast_unsigned(),
    });
    add(&mut of_ip, BPF_JEQ, family::SOCK_PACKET.cast_unsigned(), &[REFUSE]);
    of_ip.push(ALLOW);
    let mut filter = vec![load_argument(0)];
    for family in family::LOCAL {
        add(&mut filter, BPF_JEQ, family.cast_unsigned(), &[ALLOW]);
    }
    for family in family::IP {
        add(&mut filter, BPF_JEQ, family.cast_unsigned(), &of_ip);
    }
    filter.push(REFUSE);
    filter
}

/// Adds a comparison with what was loaded. If it is true, `then` runs, which ends with an answer.
fn add(filter: &mut Vec<sock_filter>, comparison: u32, with: u32, then: &[sock_filter]) {
    let skipped = u8::try_from(then.len()).expect("the parts of this filter are short");
    filter.push(sock_filter { code: code(BPF_JMP | comparison | BPF_K), jt: 0, jf: skipped, k: with });
    filter.extend_from_slice(then);
}

fn load(offset: usize) -> sock_filter {
    let k = u32::try_from(offset).expect("the structure is short");
    sock_filter { code: code(BPF_LD | BPF_W | BPF_ABS), jt: 0, jf: 0, k }
}

/// Loads the lower half of an argument: the kernel takes an `int`.
fn load_argument(number: usize) -> sock_filter {
    let half = if cfg!(target_endian = "big") { 4 } else { 0 };
    load(offset_of!(seccomp_data, args) + 8 * number + half)
}

const fn answer(k: u32) -> sock_filter {
    sock_filter { code: code(BPF_RET | BPF_K), jt: 0, jf: 0, k }
}

#[expect(clippy::cast_possible_truncation, reason = "the codes of classic BPF have 16 bits")]
const fn code(code: u32) -> u16 {
    code as u16
}
