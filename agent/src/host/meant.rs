//! The cgroup that a person means: its path, a unit, a user, a container, or a process in it.
//!
//! **Invariant:** a name that could mean several cgroups is refused.

use thiserror::Error;

use super::{
    account,
    cgroup::{self, Hierarchy},
    container, process,
    units::{self, Manager},
};
use crate::model::{
    cgroup_path::CgroupPath,
    quote::shown,
    similar::nearest,
    spec::{Known, Pattern},
    unit_name,
};

/// What commands say about their argument.
pub const HELP: &str = "A unit, user:NAME, container:NAME, the id of a process, or a cgroup by its path";

/// Why a name has no cgroup.
#[derive(Debug, Error)]
pub enum Error {
    /// It cannot be a name.
    #[error(
        "{text:?} is not a target: {problem}; expected a unit like x.service, user:NAME, container:NAME, the id of a process, or a cgroup like /system.slice/x.service"
    )]
    Invalid {
        /// What was given.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// No process has this id.
    #[error("there is no process {0}; `pgrep -a NAME` finds a process by its name")]
    NoProcess(String),
    /// There is no such unit.
    #[error("there is no unit {name}{}; `pgrep -a NAME` finds a process by its name", suggest(.perhaps.as_deref()))]
    NoUnit {
        /// Its name.
        name: String,
        /// The unit that may be meant.
        perhaps: Option<String>,
    },
    /// The unit does not run.
    #[error("{0} does not run, so it has no cgroup; `steer unit {0}` steers it from its start on")]
    NotRunning(String),
    /// There is no such user.
    #[error("there is no user {name}{}", suggest(.perhaps.as_deref()))]
    NoUser {
        /// The name.
        name: String,
        /// The user who may be meant.
        perhaps: Option<String>,
    },
    /// The user is not logged in.
    #[error("user {0} is not logged in, so there is no cgroup {1}")]
    NotLoggedIn(String, CgroupPath),
    /// No container with this name runs.
    #[error(
        "there is no running container {0} of Docker or Podman; give the id of one of its processes, or its cgroup"
    )]
    NoContainer(String),
    /// There are several.
    #[error("{text} is ambiguous: {}; give one of these paths", list(.paths))]
    Several {
        /// What was given.
        text: String,
        /// The cgroups.
        paths: Vec<CgroupPath>,
    },
    /// The cgroup cannot be found or read.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

fn suggest(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("; perhaps {}", shown(name)))
}

fn list(paths: &[CgroupPath]) -> String {
    paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meant {
    /// The cgroup. It exists, or did a moment ago.
    pub path: CgroupPath,
    /// The process that was named.
    pub process: Option<u32>,
}

/// Finds what a text means.
pub fn find(hierarchy: &Hierarchy, text: &str) -> Result<Meant, Error> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return of_process(hierarchy, text);
    }
    let path = match text.split_once(':') {
        _ if text.starts_with('/') => hierarchy.open(&hierarchy.parse(text)?)?.path,
        Some(("user", name)) => of_user(hierarchy, name)?,
        Some(("container", name)) => {
            let found = container::cgroups(hierarchy, name);
            one(text, found)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?
        }
        _ => of_unit(hierarchy, text)?,
    };
    Ok(Meant { path, process: None })
}

fn one(text: &str, mut found: Vec<CgroupPath>) -> Result<Option<CgroupPath>, Error> {
    if found.len() > 1 {
        return Err(Error::Several { text: text.to_owned(), paths: found });
    }
    Ok(found.pop())
}

fn of_process(hierarchy: &Hierarchy, text: &str) -> Result<Meant, Error> {
    let gone = || Error::NoProcess(text.to_owned());
    let pid = text.parse().map_err(|_too_large| gone())?;
    if process::name(pid).is_empty() {
        return Err(gone());
    }
    Ok(Meant { path: hierarchy.of_process(pid)?, process: Some(pid) })
}

fn of_user(hierarchy: &Hierarchy, name: &str) -> Result<CgroupPath, Error> {
    let no_user = || Error::NoUser { name: name.to_owned(), perhaps: nearest(name, account::local_names()) };
    let uid = match (account::find(name), name.parse::<u32>()) {
        (Ok(Some(user)), _) => user.uid.as_raw(),
        // Without an account, an id can be logged in.
        (_, Ok(uid)) => uid,
        _ => return Err(no_user()),
    };
    let path = CgroupPath::root().child("user.slice").child(&format!("user-{uid}.slice"));
    match hierarchy.open(&path) {
        Ok(cgroup) => Ok(cgroup.path),
        Err(cgroup::Error::Missing { .. }) => Err(Error::NotLoggedIn(name.to_owned(), path)),
        Err(error) => Err(error.into()),
    }
}

fn of_unit(hierarchy: &Hierarchy, text: &str) -> Result<CgroupPath, Error> {
    let invalid = |problem: String| Error::Invalid { text: text.to_owned(), problem };
    if unit_name::is_glob(text) {
        return Err(invalid("a glob may match several".to_owned()));
    }
    let mut unit = Pattern::unit(text).map_err(invalid)?;
    let name = unit.as_str().to_owned();
    if let Some(other) = units::other_name(&name) {
        unit.resolve(&Known { units: [(name.clone(), other)].into(), ..Known::default() });
    }
    if let Some(path) = one(text, matching(hierarchy, &unit))? {
        return Ok(path);
    }
    let of_users = Pattern::user_unit(text).map(|unit| matching(hierarchy, &unit)).unwrap_or_default();
    if let Some(path) = one(text, of_users)? {
        return Ok(path);
    }
    // systemd may run below the root of the hierarchy.
    let shown = units::show(&name);
    let own = shown.as_ref().and_then(|shown| shown.cgroup.parse().ok()).filter(|path: &CgroupPath| !path.is_root());
    if let Some(cgroup) = own.and_then(|path| hierarchy.open(&path).ok()) {
        return Ok(cgroup.path);
    }
    match shown {
        Some(shown) if shown.load_state != "not-found" => Err(Error::NotRunning(name)),
        None if units::has_file(Manager::System, &name) => Err(Error::NotRunning(name)),
        _ if text.contains('/') => Err(invalid(format!("a cgroup begins with a slash: /{text}"))),
        _ => Err(Error::NoUnit { perhaps: nearest(&name, units::files(Manager::System)), name }),
    }
}

/// The cgroups that a pattern matches.
fn matching(hierarchy: &Hierarchy, pattern: &Pattern) -> Vec<CgroupPath> {
    let (mut found, mut pending) = (Vec::new(), vec![CgroupPath::root()]);
    while let Some(path) = pending.pop() {
        let parts: Vec<_> = path.parts().collect();
        if pattern.may_match_below(&parts) {
            // A cgroup that cannot be listed is gone.
            pending.extend(hierarchy.children(&path).unwrap_or_default().into_iter().map(|child| child.path));
        }
        if pattern.matches(&parts) {
            found.push(path);
        }
    }
    found.sort();
    found
}
