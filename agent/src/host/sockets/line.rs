//! A line by which sockets leave: how its sockets are found, and how a socket is put on it.
//!
//! **Invariant:** a socket is on a line by its mark or by its binding, never by its addresses.

use std::{io, num::NonZeroU32};

use steer_common::Mark;

use super::diag::Socket;

/// A line by which sockets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The index of its interface.
    pub ifindex: i32,
    /// The mark of its sockets. `None`: they are bound to the interface.
    pub mark: Option<Mark>,
}

impl Line {
    /// Whether a socket is on it.
    pub(crate) fn has(self, socket: &Socket) -> bool {
        self.has_such(socket.bound(), socket.mark)
    }

    /// Whether a socket with this binding and this mark is on it.
    pub(crate) fn has_such(self, bound: i32, mark: u32) -> bool {
        self.mark.map_or(bound == self.ifindex, |own| own.is_in(mark))
    }

    /// Puts a socket on it. ENODEV: there is no such interface.
    pub(crate) fn take(self, own: &socket2::Socket) -> io::Result<()> {
        let ifindex = match self.mark {
            Some(_) if own.device()?.is_none() => None,
            Some(_) => Some(0),
            None if self.ifindex > 0 => Some(self.ifindex.cast_unsigned()),
            None => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        };
        steer(own, self.mark, ifindex)
    }
}

/// Marks a socket if there is a mark, and binds it if there is an index; index 0 unbinds it.
pub(crate) fn steer(own: &socket2::Socket, mark: Option<Mark>, ifindex: Option<u32>) -> io::Result<()> {
    if let Some(mark) = mark {
        own.set_mark(mark.set_in(own.mark()?))?;
    }
    ifindex.map_or(Ok(()), |ifindex| own.bind_device_by_index_v4(NonZeroU32::new(ifindex)))
}

/// Operations of sock_diag's programs (linux/inet_diag.h).
const JUMP: u8 = 1;
const BOUND: u8 = 9;
const MARKED: u8 = 10;
/// The length of an operation without its operand.
const OPERATION_BYTES: usize = 4;

/// The program with which sock_diag selects the sockets of these lines. The programs for the mark need CAP_NET_ADMIN.
///
/// An operation has the number of bytes to go on if it holds, and if it does not. One step past the end rejects the socket;
/// the end itself accepts it.
pub(super) fn filter(lines: &[Line]) -> Vec<u8> {
    let mut program = Vec::new();
    // From the last to the first, because a jump needs the length of what follows.
    for line in lines.iter().rev() {
        let (code, operand) = match line.mark {
            None => (BOUND, line.ifindex.to_ne_bytes().to_vec()),
            Some(mark) => (MARKED, [mark.value.to_ne_bytes(), mark.mask.to_ne_bytes()].concat()),
        };
        let holds = OPERATION_BYTES + operand.len();
        let mut condition = operation(code, holds, holds + OPERATION_BYTES);
        condition.extend(operand);
        if !program.is_empty() {
            condition.extend(operation(JUMP, OPERATION_BYTES, OPERATION_BYTES + program.len()));
        }
        condition.append(&mut program);
        program = condition;
    }
    program
}

fn operation(code: u8, holds: usize, fails: usize) -> Vec<u8> {
    let holds = u8::try_from(holds).expect("an operand has at most 8 bytes");
    let [low, high] = u16::try_from(fails).expect("as many conditions as lines").to_ne_bytes();
    vec![code, holds, low, high]
}
