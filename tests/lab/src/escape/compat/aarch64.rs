//! 32 bit system calls of arm. A 64 bit program cannot make them: a 32 bit program that is written to memory makes one, and waits until
//! its result has been taken.
//!
//! **Invariant:** a kernel or a processor without 32 bit programs is ENOSYS.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
};

use super::Argument;

pub(super) const SOCKET: u32 = 281;
pub(super) const SETSOCKOPT: u32 = 294;

/// Where the program is loaded, above the lowest address that may be mapped.
const BASE: u32 = 0x10_0000;
/// Size of the headers of an ELF file with one segment.
const HEADERS: u32 = 52 + 32;

/// Instructions of A32, which the assembler of a 64 bit target does not know. Behind them are the number and five arguments.
const CODE: [u32; 22] = [
    0xe28f_8050, // add r8, pc, #0x50: behind the last one
    0xe598_7000, // ldr r7, [r8]
    0xe598_0004, // ldr r0, [r8, #4]
    0xe598_1008, // ldr r1, [r8, #8]
    0xe598_200c, // ldr r2, [r8, #12]
    0xe598_3010, // ldr r3, [r8, #16]
    0xe598_4014, // ldr r4, [r8, #20]
    0xef00_0000, // svc 0
    0xe588_0000, // str r0, [r8]
    0xe3a0_7004, // mov r7, #4: write(1, r8, 4)
    0xe3a0_0001, // mov r0, #1
    0xe1a0_1008, // mov r1, r8
    0xe3a0_2004, // mov r2, #4
    0xef00_0000, // svc 0
    0xe3a0_7003, // mov r7, #3: read(0, r8, 1)
    0xe3a0_0000, // mov r0, #0
    0xe1a0_1008, // mov r1, r8
    0xe3a0_2001, // mov r2, #1
    0xef00_0000, // svc 0
    0xe3a0_7001, // mov r7, #1: exit(0)
    0xe3a0_0000, // mov r0, #0
    0xef00_0000, // svc 0
];

pub(super) fn call(number: u32, arguments: &mut [Argument<'_>]) -> io::Result<i32> {
    let mut words = vec![number];
    let (mut memory, mut copies, mut inherited) = (Vec::new(), Vec::new(), None);
    let start = BASE + HEADERS + 4 * 28;
    for argument in arguments {
        words.push(match argument {
            Argument::Number(number) => *number,
            Argument::Descriptor(fd) => inherited.insert(*fd).cast_unsigned(),
            Argument::Memory(bytes) => {
                let address = start + u32::try_from(memory.len()).map_err(io::Error::other)?;
                memory.extend_from_slice(bytes);
                memory.resize(memory.len().next_multiple_of(8), 0);
                copies.push((address, bytes));
                address
            }
        });
    }
    words.resize(6, 0);
    let code = CODE.into_iter().chain(words).flat_map(u32::to_le_bytes);
    let mut child = start_program(&program(code.chain(memory).collect()), inherited)?;
    let result = finish(&mut child, copies);
    // Its input ends, and so does the program.
    drop(child.stdin.take());
    child.wait()?;
    result
}

/// There is no `socketcall` in the binary interface of today's programs.
pub(super) fn socketcall(_: RawFd, _: i32, _: i32, _: &[u8]) -> io::Result<i32> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// An ELF file with one segment, which is all of it.
fn program(contents: Vec<u8>) -> Vec<u8> {
    const EXECUTABLE: u32 = 2;
    const ARM: u32 = 40;
    const EABI5: u32 = 0x0500_0000;
    let size = HEADERS + u32::try_from(contents.len()).unwrap_or(u32::MAX);
    let ident = [0x464c_457f, 0x0001_0101, 0, 0];
    let header = [ARM << 16 | EXECUTABLE, 1, BASE + HEADERS, 52, 0, EABI5, 32 << 16 | 52, 1, 0];
    // Loaded, at an address, readable, writable and executable.
    let segment = [1, 0, BASE, BASE, size, size, 7, 0x1000];
    let headers = ident.into_iter().chain(header).chain(segment).flat_map(u32::to_le_bytes);
    headers.chain(contents).collect()
}

fn start_program(program: &[u8], inherited: Option<RawFd>) -> io::Result<Child> {
    // SAFETY: a new file, which nothing else owns.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"call".as_ptr(), libc::MFD_CLOEXEC)) });
    file.write_all(program)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(fd) = inherited {
        // SAFETY: fcntl(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }
    command.spawn().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOEXEC) => io::Error::from_raw_os_error(libc::ENOSYS),
        _ => error,
    })
}

/// The result, what the kernel wrote to memory, and a new descriptor.
fn finish(child: &mut Child, copies: Vec<(u32, &mut &mut [u8])>) -> io::Result<i32> {
    let mut result = [0; 4];
    child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut result)?;
    let result = i32::from_le_bytes(result);
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    let memory = File::open(format!("/proc/{}/mem", child.id()))?;
    for (address, bytes) in copies {
        memory.read_exact_at(bytes, u64::from(address))?;
    }
    if result == 0 { Ok(0) } else { take(child.id(), result) }
}

/// Takes a descriptor of a child (Linux 5.6).
fn take(pid: u32, fd: i32) -> io::Result<i32> {
    // SAFETY: the calls have no pointers.
    let (process, flags) = (unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }, 0);
    if process < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, flags) };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(taken).map_err(io::Error::other)
}
