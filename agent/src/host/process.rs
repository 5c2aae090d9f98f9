//! Processes: names, parents and children.
//!
//! **Invariant:** reads only. A process that has ended has no name and no children.

use std::{collections::BTreeMap, fs};

use super::sockets::holder;

/// The name of a process; empty if it has ended.
pub fn name(pid: u32) -> String {
    // A process name may contain any bytes.
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned()
}

/// A process and its descendants, parents before children.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(parent) = parent(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        found.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    found
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The inodes of the sockets that processes have open.
pub fn sockets(processes: &[u32]) -> std::collections::BTreeSet<u32> {
    let sockets = processes.iter().filter_map(|pid| holder::sockets_of(pid.cast_signed()).ok()).flatten();
    sockets.map(|(_, inode)| inode).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{name, tree};

    #[test]
    fn children_of_children() {
        let mut child =
            Command::new("sh").args(["-c", "cat; true"]).stdin(Stdio::piped()).spawn().expect("a shell with a child");
        let own = tree(std::process::id());
        assert!(own.contains(&child.id()) && own[0] == std::process::id(), "{own:?}");
        assert_eq!(tree(child.id())[0], child.id());
        assert!(!name(child.id()).is_empty());
        drop(child.stdin.take());
        child.wait().expect("ended");
    }
}
