//! Cgroups of a test.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use steer_lab::wait_until;

/// A cgroup made by a test. On drop, its processes are killed and it is removed with all cgroups below it.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    path: String,
}

impl Cgroup {
    /// A cgroup right below the root of the hierarchy.
    pub(crate) fn create_root(name: &str) -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        });
        let directory = mount.context("no cgroup2 is mounted")?.join(name);
        fs::create_dir(&directory)?;
        Ok(Self { directory, path: format!("/{name}") })
    }

    /// A cgroup in this one.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        let child = Self { directory: self.directory.join(name), path: format!("{}/{name}", self.path) };
        fs::create_dir(&child.directory).with_context(|| format!("create {}", child.path))?;
        Ok(child)
    }

    /// Its path from the root of the hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its id.
    pub fn id(&self) -> anyhow::Result<u64> {
        Ok(fs::metadata(&self.directory)?.ino())
    }

    /// Makes a command start in it.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        enter(command, self.directory.join("cgroup.procs"))
    }

    /// The names of the cgroups in it.
    pub fn children(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Removes it now, with all cgroups below it. Its processes must have ended.
    pub fn remove(self) -> anyhow::Result<()> {
        remove_tree(&self.directory).with_context(|| format!("remove {}", self.path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.directory.exists() {
            let _ = fs::write(self.directory.join("cgroup.kill"), "1");
            let gone = wait_until("the cgroup to be removed", crate::PATIENCE, || remove_tree(&self.directory).is_ok());
            if let Err(error) = gone {
                eprintln!("{error}");
            }
        }
    }
}

/// Makes a command start in the cgroup of this `cgroup.procs`.
pub(crate) fn enter(command: &mut Command, procs: PathBuf) -> &mut Command {
    // SAFETY: opens and writes one file; the path was allocated before.
    unsafe { command.pre_exec(move || fs::write(&procs, "0")) }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory).or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
}
