//! A root of Debian packages with programs that others wrote, which `cargo xtask suites` makes.
//!
//! **Invariant:** the root never changes. Each command runs on an overlay of its own, with its own mounts and processes,
//! which end with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use steer_lab::Netns;

use crate::{Bed, Cgroup, NOBODY, NotHere, User};

/// The root.
#[derive(Debug)]
pub struct Debian {
    root: PathBuf,
    mounts: PathBuf,
    /// A directory that all commands share, which they see as `/shared`.
    pub shared: PathBuf,
}

impl Debian {
    /// The root that `STEER_DEBIAN` names. [`NotHere`] without it.
    pub fn of(bed: &Bed) -> anyhow::Result<Self> {
        let Some(root) = std::env::var_os("STEER_DEBIAN").map(PathBuf::from).filter(|root| root.join("usr").exists())
        else {
            return Err(NotHere("STEER_DEBIAN names no root; `cargo xtask suites` makes one".to_owned()).into());
        };
        let (mounts, shared) = (bed.directory.join("debian"), bed.directory.join("shared"));
        fs::create_dir(&mounts)?;
        fs::create_dir(&shared)?;
        Ok(Self { root, mounts, shared })
    }

    /// The arguments that run a command in the root as this user. The programs that it starts end with it.
    pub fn arguments(&self, user: User, command: &[&str]) -> Vec<String> {
        let owner = match user {
            User::Root => "0:0".to_owned(),
            User::Nobody => format!("{}:{}", NOBODY.0, NOBODY.1),
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"];
        let script = ["sh", "-c", include_str!("debian.sh"), "debian"].map(str::to_owned);
        let places = [text(&self.mounts), text(&self.shared), text(&self.root), owner];
        let all = unshare.map(str::to_owned).into_iter().chain(script).chain(places);
        all.chain(command.iter().map(ToString::to_string)).collect()
    }

    /// A command in the root and in the bed's network namespace, not steered.
    pub fn outside(&self, bed: &Bed, user: User, command: &[&str]) -> Command {
        self.at(&bed.net.client, None, user, command)
    }

    /// A command in the root, in a network namespace and perhaps in a cgroup.
    pub fn at(&self, netns: &Netns, cgroup: Option<&Cgroup>, user: User, command: &[&str]) -> Command {
        let arguments = self.arguments(user, command);
        let mut placed = Command::new(&arguments[0]);
        if let Some(cgroup) = cgroup {
            cgroup.enter(&mut placed);
        }
        netns.enter(placed.args(&arguments[1..])).stdin(Stdio::null());
        placed
    }

    /// The same under `steer exec` with these options.
    pub fn inside(&self, bed: &Bed, options: &[&str], user: User, command: &[&str]) -> Command {
        let mut inside = bed.steer(&["exec"]);
        inside.args(options).arg("--").args(self.arguments(user, command));
        bed.cgroup.enter(&mut inside);
        inside
    }
}
