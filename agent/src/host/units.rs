//! Units of systemd: their files, and what a running systemd says about them.
//!
//! The daemon reads the files only: it starts before there is a bus, and must not wait for another process.
//!
//! **Invariant:** reads only. Where there is no systemd, there is no unit, which is no error.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::model::unit_name;

/// Directories of units of the system, the first goes before the others (systemd.unit(5)).
const SYSTEM: [&str; 9] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];
/// Directories of units of all users.
const USER: [&str; 5] = [
    "/etc/systemd/user",
    "/run/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
    "/usr/share/systemd/user",
];

/// Whose units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The system's.
    System,
    /// The users'.
    User,
}

impl Manager {
    fn directories(self) -> &'static [&'static str] {
        match self {
            Self::System => &SYSTEM,
            Self::User => &USER,
        }
    }
}

/// Whether systemd runs here.
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The names of all files of units.
pub fn files(manager: Manager) -> BTreeSet<String> {
    let entries = manager.directories().iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // Directories of drop-ins and dependencies belong to a unit.
    names.filter(|name| ![".d", ".wants", ".requires", ".upholds"].iter().any(|end| name.ends_with(end))).collect()
}

/// Whether a unit, or the template of an instance, has a file.
pub fn has_file(manager: Manager, name: &str) -> bool {
    let has = |name: &str| {
        manager.directories().iter().any(|directory| Path::new(directory).join(name).symlink_metadata().is_ok())
    };
    has(name) || unit_name::template(name).is_some_and(|template| has(&template))
}

/// The unit's name, if this is another name of it: a symbolic link to its file.
pub fn other_name(name: &str) -> Option<String> {
    let ending = name.rsplit_once('.')?.1;
    let target = SYSTEM.iter().find_map(|directory| {
        let file = Path::new(directory).join(name);
        file.symlink_metadata().is_ok().then(|| fs::canonicalize(file).ok())
    })??;
    let target = target.file_name()?.to_str()?;
    // An instance is a link to its template, and a masked unit one to /dev/null.
    let is_unit = target != name && target.ends_with(&format!(".{ending}")) && !target.contains("@.");
    is_unit.then(|| target.to_owned())
}

/// What systemd says about a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub id: String,
    /// `loaded`, `not-found`, `masked` and others.
    pub load_state: String,
    /// Its cgroup; empty if it does not run.
    pub cgroup: String,
}

/// Asks systemd for a unit. `None`: systemd does not answer.
pub fn show(name: &str) -> Option<Shown> {
    if !systemd_runs() {
        return None;
    }
    let arguments = ["show", "--property=Id,LoadState,ControlGroup", "--", name];
    let asked = Command::new("systemctl").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(asked.stdout).ok().filter(|_| asked.status.success())?;
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    Some(Shown { id: value("Id")?, load_state: value("LoadState")?, cgroup: value("ControlGroup").unwrap_or_default() })
}

/// Whether there is such a unit, running or not.
pub fn exists(name: &str) -> bool {
    show(name).map_or_else(|| has_file(Manager::System, name), |shown| shown.load_state != "not-found")
}
