//! Finds out whether systemd-networkd removes routes that it has not made.
//!
//! **Invariant:** only reads. A file that is missing or cannot be read is treated as empty.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// It writes this file when it runs, and leaves it. The directory is there on every machine with systemd.
const STATE: &str = "/run/systemd/netif/state";
/// The main file, the first of those that exist.
const FILES: [&str; 4] = [
    "/etc/systemd/networkd.conf",
    "/run/systemd/networkd.conf",
    "/usr/local/lib/systemd/networkd.conf",
    "/usr/lib/systemd/networkd.conf",
];
/// The file with [`KEEPS_FOREIGN_ROUTES`].
pub const DROP_IN: &str = "/etc/systemd/networkd.conf.d/50-steer.conf";
/// The setting with which it keeps them.
pub const KEEPS_FOREIGN_ROUTES: &str = "[Network]\nManageForeignRoutes=no\n";

/// Whether it is there, and removes routes of others when it configures a link.
pub fn removes_foreign_routes() -> bool {
    let texts = || configuration().into_iter().filter_map(|file| fs::read_to_string(file).ok());
    Path::new(STATE).exists() && manages_foreign_routes(texts())
}

/// The files in the order in which systemd reads them: the main file, then drop-ins by name. Of those with one name, the
/// first directory's counts.
fn configuration() -> Vec<PathBuf> {
    let main = FILES.iter().map(PathBuf::from).find(|file| file.exists());
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for file in FILES {
        let entries = fs::read_dir(format!("{file}.d")).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "conf")) {
            drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    main.into_iter().chain(drop_ins.into_values()).collect()
}

/// The last assignment counts. An empty one, or one that is no word for yes or no, changes nothing.
fn manages_foreign_routes(texts: impl Iterator<Item = String>) -> bool {
    let mut manages = true;
    for text in texts {
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            if section == "[Network]" && key.trim() == "ManageForeignRoutes" {
                manages = match value.trim().to_ascii_lowercase().as_str() {
                    "no" | "n" | "false" | "f" | "off" | "0" => false,
                    "yes" | "y" | "true" | "t" | "on" | "1" => true,
                    _ => manages,
                };
            }
        }
    }
    manages
}

#[cfg(test)]
mod tests {
    use super::{KEEPS_FOREIGN_ROUTES, manages_foreign_routes};

    #[test]
    fn the_last_assignment_counts() {
        let manages = |texts: &[&str]| manages_foreign_routes(texts.iter().map(ToString::to_string));
        assert!(
            manages(&[]) && manages(&["[Network]\n#ManageForeignRoutes=no\n", "[DHCPv4]\nManageForeignRoutes=no\n"])
        );
        assert!(!manages(&[KEEPS_FOREIGN_ROUTES]) && !manages(&["[Network]\n ManageForeignRoutes = False \n"]));
        assert!(manages(&[KEEPS_FOREIGN_ROUTES, "[Network]\nManageForeignRoutes=yes\nManageForeignRoutes=maybe\n"]));
    }
}
