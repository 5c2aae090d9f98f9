//! Raw and ping sockets, which sock_diag does not list: the kernel can be built without its list of raw sockets, and has none of
//! ping sockets.
//!
//! **Invariant:** the list holds each such socket of the calling thread's network namespace that can receive.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The kernel's tables of them. A kernel without IPv6 lacks two.
const TABLES: [&str; 4] = ["raw", "raw6", "icmp", "icmp6"];

/// The inodes of all raw and ping sockets, with the peers of those that are connected. The tables have neither binding, nor mark, nor
/// cgroup.
pub(crate) fn peers() -> io::Result<BTreeMap<u32, Option<IpAddr>>> {
    let mut peers = BTreeMap::new();
    for table in TABLES {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        peers.extend(text.lines().skip(1).filter_map(row));
    }
    // Sockets that no process has, such as the kernel's own.
    peers.remove(&0);
    Ok(peers)
}

/// The inode and the peer of a row: number, own address, peer, state, queues, timer, retransmissions, user, timeout, inode.
fn row(row: &str) -> Option<(u32, Option<IpAddr>)> {
    const ESTABLISHED: &str = "01";
    let columns: Vec<&str> = row.split_whitespace().collect();
    let peer = match *columns.get(3)? {
        ESTABLISHED => Some(address(columns.get(2)?.split(':').next()?)?),
        _ => None,
    };
    Some((columns.get(9)?.parse().ok()?, peer))
}

/// An address in words of 32 bits, each in the byte order of this machine.
fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(8 * at..8 * (at + 1))?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::row;

    #[test]
    fn rows() {
        let columns = "00000000:00000000 00:00000000 00000000     0        0 188833134 2 00000000d596ab33 0";
        let parsed = |own: &str, peer: &str, state| row(&format!(" 219: {own} {peer} {state} {columns}"));
        let six = |last: u32| format!("000000FD000000000000000{}:0000", format_args!("0{:08X}", last.to_be()));
        // As a machine with the low byte first writes it.
        if cfg!(target_endian = "little") {
            let peer = |text: &str| Some((188_833_134, Some(text.parse().expect("an address"))));
            assert_eq!(parsed("0100007F:0001", "016433C6:0000", "01"), peer("198.51.100.1"));
            assert_eq!(parsed(&six(2), &six(1), "01"), peer("fd00::1"));
        }
        assert_eq!(parsed("0100007F:0001", "00000000:0000", "07"), Some((188_833_134, None)));
        assert_eq!(row("  sl  local_address rem_address"), None);
    }
}
