//! Stores policies: the configuration file, the directory `policies.d` beside it, and a runtime directory that is empty
//! after a boot. Commands and the API write to the two directories, one file for each policy.
//!
//! A file of the runtime directory hides one of the same name in `policies.d`, so a policy that moves between them is never there
//! twice.
//!
//! **Invariant:** a file is written only if all files together are a valid configuration, under a lock. A file is either the old
//! or the new one, even if its writer is killed.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::Flock;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use super::{account, file};
use crate::model::config::{self, Config, Problems, Source};

/// Where a policy is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// In the configuration file, which steer never changes.
    File,
    /// In a separate file in `policies.d`.
    Stored,
    /// In a separate file that is gone after a boot.
    Runtime,
}

/// What can go wrong with stored policies.
#[derive(Debug, Error)]
pub enum Error {
    /// The configuration has mistakes.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The policy is in a file that steer does not change.
    #[error("policy {name:?} is in {file}: edit that file instead")]
    InFile {
        /// Its name.
        name: String,
        /// The configuration file.
        file: String,
    },
    /// There is no such policy.
    #[error("there is no policy {name:?}")]
    Missing {
        /// The requested name.
        name: String,
    },
    /// A file operation.
    #[error("{action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process is changing the policies.
    #[error("{path} is locked by another steer process, which did not finish within {} s", PATIENCE.as_secs())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
}

/// The three places.
#[derive(Clone, Debug)]
pub struct Store {
    file: PathBuf,
    stored: PathBuf,
    runtime: PathBuf,
    released: PathBuf,
}

const SUFFIX: &str = "toml";
/// The file in `policies.d` that is locked for a change. Only its owner may open it, and so lock it.
const LOCK: &str = ".lock";
/// How long a change waits for another one to finish. It is shorter than a client of the API waits for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

impl Store {
    /// Uses this configuration file, this runtime directory, and this file of what `steer off` has released. None needs to exist.
    pub fn new(file: &Path, runtime: &Path, released: &Path) -> Self {
        let stored = file.parent().unwrap_or(Path::new("/")).join("policies.d");
        Self { file: file.to_owned(), stored, runtime: runtime.to_owned(), released: released.to_owned() }
    }

    /// The same with another configuration file. The directories stay.
    #[must_use]
    pub fn with_file(self, file: &Path) -> Self {
        Self { file: file.to_owned(), ..self }
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The file of what `steer off` has released.
    pub fn released(&self) -> &Path {
        &self.released
    }

    /// The directories with one file for each policy.
    pub fn directories(&self) -> [&Path; 2] {
        [&self.stored, &self.runtime]
    }

    /// All existing files that are read, in the order in which they apply.
    pub fn files(&self) -> Result<Vec<PathBuf>, Error> {
        let (stored, runtime) = (list(&self.stored)?, list(&self.runtime)?);
        let hiding: BTreeSet<_> = runtime.iter().filter_map(|path| path.file_name()).collect();
        let stored = stored.into_iter().filter(|path| path.file_name().is_none_or(|name| !hiding.contains(name)));
        Ok([self.file.clone()].into_iter().chain(stored).chain(runtime.iter().cloned()).collect())
    }

    /// Reads and parses all files, and looks up the names in them.
    pub fn read(&self) -> Result<Config, Error> {
        let mut config = config::parse_all(&self.sources()?)?;
        let missing = self.directories().into_iter().filter(|directory| !directory.exists());
        config.missing = missing.map(|directory| directory.display().to_string()).collect();
        let known = account::known(config.patterns());
        config.resolve(&known);
        Ok(config)
    }

    fn sources(&self) -> Result<Vec<Source>, Error> {
        let mut sources = Vec::new();
        for path in self.files()? {
            match file::read(&path) {
                Ok(text) => sources.push(Source { file: path.display().to_string(), text }),
                // Removed since it was listed; the configuration file itself must be there, and what a symbolic link names.
                Err(error) if is_gone(&path, &error) && path != self.file => {}
                Err(source) => return Err(Error::File { action: "read", path, source }),
            }
        }
        Ok(sources)
    }

    /// Where a policy that was read is stored.
    pub fn kept(&self, policy: &config::Policy) -> Kept {
        match Path::new(&policy.file).parent() {
            Some(parent) if parent == self.stored => Kept::Stored,
            Some(parent) if parent == self.runtime => Kept::Runtime,
            _ => Kept::File,
        }
    }

    /// The text of the file of a policy, and where it is; `None` if it has no file of its own.
    pub fn written(&self, name: &str) -> Result<Option<(Kept, String)>, Error> {
        for kept in [Kept::Runtime, Kept::Stored] {
            let path = self.path(name, kept);
            match file::read(&path) {
                Ok(text) => return Ok(Some((kept, text))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { action: "read", path, source }),
            }
        }
        Ok(None)
    }

    /// Stores a policy, given as the text of a file with only this policy. Replaces a policy of the same name. Returns whether
    /// it is new.
    pub fn put(&self, name: &str, text: &str, kept: Kept) -> Result<bool, Error> {
        let _lock = self.lock()?;
        let before = self.find(name)?;
        if before == Some(Kept::File) || kept == Kept::File {
            return Err(self.in_file(name));
        }
        let path = self.path(name, kept);
        let replaced = before.map(|before| self.path(name, before).display().to_string());
        let mut sources = self.sources()?;
        sources.retain(|source| Some(&source.file) != replaced.as_ref());
        // Last, so that a conflict with the others is reported as a mistake in this file.
        sources.push(Source { file: path.display().to_string(), text: text.to_owned() });
        config::parse_all(&sources)?;
        let failed = |source| Error::File { action: "write", path: path.clone(), source };
        file::replace(&path, text).map_err(failed)?;
        // A file in `policies.d` stays, hidden, for the time after the next boot.
        if kept == Kept::Stored {
            remove(&self.path(name, Kept::Runtime))?;
        }
        Ok(before.is_none())
    }

    /// Removes a policy.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let _lock = self.lock()?;
        match self.find(name)? {
            None => Err(Error::Missing { name: name.to_owned() }),
            Some(Kept::File) => Err(self.in_file(name)),
            // The hidden one first.
            Some(_) => [Kept::Stored, Kept::Runtime].iter().try_for_each(|kept| remove(&self.path(name, *kept))),
        }
    }

    /// Waits for the lock of all changes. Where `policies.d` is read-only, only the runtime directory can change.
    fn lock(&self) -> Result<Flock<fs::File>, Error> {
        let (path, file) = match open_lock(&self.stored) {
            (_, Err(error)) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => open_lock(&self.runtime),
            opened => opened,
        };
        let failed = |source| Error::File { action: "lock", path: path.clone(), source };
        match file::lock_until(file.map_err(failed)?, Instant::now() + PATIENCE) {
            Some(locked) => locked.map_err(|errno| failed(errno.into())),
            None => Err(Error::Locked { path }),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Kept>, Error> {
        let config = self.read()?;
        let found = config.policies.iter().find(|policy| policy.name == name);
        match found.map(|policy| (policy, self.kept(policy))) {
            // Only a policy with a separate file, under its own name, can be changed.
            Some((policy, kept)) if Path::new(&policy.file) == self.path(name, kept) => Ok(Some(kept)),
            Some(_) => Ok(Some(Kept::File)),
            None => Ok(None),
        }
    }

    fn in_file(&self, name: &str) -> Error {
        let config = self.read().unwrap_or_default();
        let file = config.policies.into_iter().find(|policy| policy.name == name).map(|policy| policy.file);
        Error::InFile { name: name.to_owned(), file: file.unwrap_or_else(|| self.file.display().to_string()) }
    }

    fn path(&self, name: &str, kept: Kept) -> PathBuf {
        let directory = match kept {
            Kept::File => return self.file.clone(),
            Kept::Stored => &self.stored,
            Kept::Runtime => &self.runtime,
        };
        directory.join(format!("{}.{SUFFIX}", file_name(name)))
    }
}

/// The name as a file name. Letters, digits, `-`, `_` and `.` stay unchanged. All other characters are percent-encoded, and
/// so is a leading dot, which would hide the file.
fn file_name(name: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');
    let encoded = utf8_percent_encode(name, ENCODED).to_string();
    match encoded.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => encoded,
    }
}

/// Whether a file in one of the directories is read.
pub fn is_policy_file(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == SUFFIX)
}

/// Whether there is nothing of this name, not even a symbolic link to nothing.
fn is_gone(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { action: "list", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(directory, &error) => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    // Editors and this program create temporary files with other endings.
    files.retain(|path| path.file_name().is_some_and(is_policy_file));
    files.sort();
    Ok(files)
}

fn open_lock(directory: &Path) -> (PathBuf, io::Result<fs::File>) {
    let path = directory.join(LOCK);
    let open = || fs::File::options().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = fs::create_dir_all(directory).and_then(|()| open());
    (path, file)
}

fn remove(path: &Path) -> Result<(), Error> {
    file::remove(path).map_err(|source| Error::File { action: "remove", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Error, Kept, Store, file_name};

    fn text(name: &str, cgroup: &str) -> String {
        format!("[[policy]]\nname = \"{name}\"\ninterface = \"wg0\"\ncgroups = [\"{cgroup}\"]\n")
    }

    #[test]
    fn stores_and_removes() {
        let directory = std::env::temp_dir().join(format!("steer-store-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let store = Store::new(&directory.join("steer.toml"), &directory.join("run"), &directory.join("released"));
        fs::write(store.file(), text("written", "/w")).expect("the configuration file");

        assert!(store.put("a", &text("a", "/a"), Kept::Stored).expect("new"));
        assert!(!store.put("a", &text("a", "/b"), Kept::Stored).expect("changed"));
        assert!(!store.put("a", &text("a", "/r"), Kept::Runtime).expect("hidden"));
        let config = store.read().expect("valid");
        let origins: Vec<_> = config.policies.iter().map(|policy| (policy.name.as_str(), store.kept(policy))).collect();
        assert_eq!(origins, [("written", Kept::File), ("a", Kept::Runtime)]);

        let clash = store.put("b", &text("b", "/w"), Kept::Stored).expect_err("claimed");
        assert!(matches!(clash, Error::Invalid(_)), "{clash}");
        assert!(matches!(store.put("written", &text("written", "/w"), Kept::Stored), Err(Error::InFile { .. })));
        assert!(matches!(store.remove("written"), Err(Error::InFile { .. })));
        assert!(matches!(store.remove("b"), Err(Error::Missing { .. })));
        assert!(!store.put("a", &text("a", "/c"), Kept::Runtime).expect("changed"));
        let stored = fs::read_to_string(directory.join("policies.d/a.toml")).expect("for after the next boot");
        assert_eq!(stored, text("a", "/b"));
        let written = store.written("a").expect("readable").expect("there");
        assert_eq!(written, (Kept::Runtime, text("a", "/c")));
        assert_eq!(store.written("written").expect("readable"), None, "in the configuration file");
        assert!(!store.put("a", &text("a", "/s"), Kept::Stored).expect("stored again"));
        assert_eq!(store.written("a").expect("readable"), Some((Kept::Stored, text("a", "/s"))));
        store.remove("a").expect("there");
        assert_eq!(store.read().expect("valid").policies.len(), 1);
        fs::remove_dir_all(directory).expect("removable");
    }

    #[test]
    fn file_names() {
        assert_eq!(file_name("vpn-1.0_x"), "vpn-1.0_x");
        assert_eq!(file_name("../a b"), "%2E.%2Fa%20b");
        assert_eq!(file_name("\u{e9}"), "%C3%A9");
    }
}
