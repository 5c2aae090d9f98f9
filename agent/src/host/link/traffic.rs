//! What links have sent and received, as the kernel counts it for each link in any case.

use std::{collections::BTreeMap, fs, io};

/// What a link has sent and received since it exists, whoever sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// Packets that were received.
    pub received_packets: u64,
}

/// The traffic of the links of the calling thread's network namespace, by name.
pub fn traffic() -> io::Result<BTreeMap<String, Traffic>> {
    let text = fs::read("/proc/thread-self/net/dev")?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(row).collect())
}

/// A row: the name, eight numbers of what was received, and eight of what was sent. Each begins with bytes and packets.
fn row(row: &str) -> Option<(String, Traffic)> {
    const SENT: usize = 8;
    let (name, numbers) = row.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let traffic = Traffic {
        sent_bytes: *numbers.get(SENT)?,
        sent_packets: *numbers.get(SENT + 1)?,
        received_bytes: *numbers.first()?,
        received_packets: *numbers.get(1)?,
    };
    Some((name.trim().to_owned(), traffic))
}

#[cfg(test)]
mod tests {
    use super::{Traffic, row};

    #[test]
    fn rows() {
        let traffic = Traffic { sent_bytes: 9, sent_packets: 10, received_bytes: 1, received_packets: 2 };
        assert_eq!(row("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"), Some(("eth0".to_owned(), traffic)));
        assert_eq!(row(" face |bytes    packets errs"), None);
        assert_eq!(row("eth0: 1 2 3"), None);
    }
}
