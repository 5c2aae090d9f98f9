//! Raw and ping sockets, which sock_diag does not list: the kernel can be built without its list of raw sockets, and has none of
//! ping sockets.
//!
//! **Invariant:** the list holds each such socket of the calling thread's network namespace that can receive.

use std::{collections::BTreeSet, fs, io};

/// The kernel's tables of them. A kernel without IPv6 lacks two.
const TABLES: [&str; 4] = ["raw", "raw6", "icmp", "icmp6"];
/// The column of the inode, in all tables.
const INODE: usize = 9;

/// The inodes of all raw and ping sockets. The tables have neither binding, nor mark, nor cgroup.
pub(crate) fn inodes() -> io::Result<BTreeSet<u32>> {
    let mut inodes = BTreeSet::new();
    for table in TABLES {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        let rows = text.lines().skip(1);
        inodes.extend(rows.filter_map(|row| row.split_whitespace().nth(INODE)?.parse::<u32>().ok()));
    }
    // Sockets that no process has, such as the kernel's own.
    inodes.remove(&0);
    Ok(inodes)
}
