//! One instance of steer: its pins, its socket, and its policies that last until the next boot.
//!
//! **Invariant:** all paths are derived from the pin directory.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use crate::{
    host::policy_files::Store,
    kernel::{self, Pins},
    model::quote::quoted,
};

/// The default configuration file.
pub const CONFIG: &str = "/etc/steer/steer.toml";
/// The default pin directory.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/steer";
/// The directory of sockets and of policies that last until the next boot.
const RUN_DIRECTORY: &str = "/run/steer";

/// The paths of one instance of steer. All are derived from the name of the pin directory.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The pin directory.
    pub pins: PinDirectory,
    /// The API's socket.
    pub socket: PathBuf,
    /// Policies that last until the next boot.
    runtime: PathBuf,
}

impl Instance {
    /// The instance of this pin directory. `socket` replaces the default path of the API's socket.
    pub fn new(bpffs: PathBuf, socket: Option<PathBuf>) -> Self {
        let name = bpffs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let run = Path::new(RUN_DIRECTORY);
        Self {
            pins: PinDirectory(bpffs),
            socket: socket.unwrap_or_else(|| run.join(format!("{name}.sock"))),
            runtime: run.join(format!("{name}.policies.d")),
        }
    }

    /// Removes the files that are not pins: the socket of a daemon that was killed, and the policies that last until the next boot.
    pub fn remove_files(&self, errors: &mut Vec<String>) {
        let mut check = |path: &Path, removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("remove {}: {error}", path.display()));
            }
            _ => {}
        };
        if fs::symlink_metadata(&self.socket).is_ok_and(|found| found.file_type().is_socket()) {
            check(&self.socket, fs::remove_file(&self.socket));
        }
        check(&self.runtime, fs::remove_dir_all(&self.runtime));
        // The directory is not empty while there is another instance.
        let _ = fs::remove_dir(RUN_DIRECTORY);
    }

    /// The shell command that addresses this instance.
    pub fn command(&self) -> String {
        let usual = Self::new(self.pins.0.clone(), None);
        let bpffs = (self.pins.0 != Path::new(PIN_DIRECTORY)).then_some(("--bpffs", &self.pins.0));
        let socket = (self.socket != usual.socket).then_some(("--socket", &self.socket));
        let options = bpffs.into_iter().chain(socket);
        let words = options.map(|(option, path)| format!(" {option} {}", quoted(&path.display().to_string())));
        format!("steer{}", words.collect::<String>())
    }

    /// The policy files that belong to a configuration file.
    pub fn store(&self, config: &Path) -> Store {
        Store::new(config, &self.runtime)
    }
}

/// The pin directory as the user named it.
#[derive(Clone, Debug)]
pub struct PinDirectory(pub PathBuf);

impl PinDirectory {
    /// For changes: mounts the bpffs if it is missing.
    pub fn to_change(&self) -> Result<Pins, kernel::Error> {
        Pins::find_or_mount(&self.0)
    }

    /// For reading: `None` when there is no bpffs, so nothing can be pinned.
    pub fn to_look(&self) -> Result<Option<Pins>, kernel::Error> {
        Pins::find(&self.0)
    }
}
