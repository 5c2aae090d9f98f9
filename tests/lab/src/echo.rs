//! ICMP echo messages, as ping sends them.
//!
//! **Invariant:** a reply is accepted only if it carries the data of its request, because a raw socket receives all
//! replies of the host.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

/// An ICMP echo request with data that no other request of this machine has.
pub(crate) struct Echo([u8; 24]);

impl Echo {
    const DATA: usize = 8;

    pub(crate) fn new(ipv4: bool, sequence: u32) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let now_ns =
            SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        let mut message = [0; 24];
        message[0] = if ipv4 { 8 } else { 128 };
        message[4..6].copy_from_slice(&serial[2..]);
        message[6..8].copy_from_slice(&sequence.to_be_bytes()[2..]);
        message[8..16].copy_from_slice(&now_ns.to_be_bytes());
        message[16..20].copy_from_slice(&std::process::id().to_be_bytes());
        message[20..24].copy_from_slice(&serial);
        if ipv4 {
            let checksum = checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        Self(message)
    }

    pub(crate) fn request(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_answered_by(&self, message: &[u8]) -> bool {
        matches!(message.first(), Some(0 | 129)) && message.get(Self::DATA..) == Some(&self.0[Self::DATA..])
    }
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let [_, _, high, low] = ((sum & 0xffff) + (sum >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_message_with_its_checksum_is_zero() {
        assert_eq!(checksum(&Echo::new(true, 77).0), 0);
    }

    #[test]
    fn only_the_reply_to_the_request_itself_answers() {
        for ipv4 in [true, false] {
            let (one, other) = (Echo::new(ipv4, 1), Echo::new(ipv4, 1));
            let mut reply = one.0;
            assert!(!one.is_answered_by(&reply), "a request is not a reply");
            reply[0] = if ipv4 { 0 } else { 129 };
            assert!(one.is_answered_by(&reply) && !other.is_answered_by(&reply));
            assert!(!one.is_answered_by(&reply[..20]) && !one.is_answered_by(&[]));
        }
    }
}
