//! One instance of steer: its pins, its socket, and its policies that last until the next boot.
//!
//! **Invariant:** all paths are derived from the whole path of the pin directory, so no two instances share one.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    path::{self, Component, Path, PathBuf},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

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

/// The paths of one instance of steer.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The pin directory.
    pub pins: PinDirectory,
    /// The API's socket.
    pub socket: PathBuf,
    /// The socket for all users: see `run::api::exec`.
    pub users_socket: PathBuf,
    /// Policies that last until the next boot.
    runtime: PathBuf,
    /// What `off` has released.
    pub released: PathBuf,
}

impl Instance {
    /// The instance of this pin directory. `socket` replaces the default path of the API's socket.
    pub fn new(bpffs: PathBuf, socket: Option<PathBuf>) -> Self {
        let name = name(&bpffs);
        let run = Path::new(RUN_DIRECTORY);
        let socket = socket.unwrap_or_else(|| run.join(format!("{name}.sock")));
        Self {
            pins: PinDirectory(bpffs),
            users_socket: socket.with_extension("exec.sock"),
            socket,
            runtime: run.join(format!("{name}.policies.d")),
            released: run.join(format!("{name}.released")),
        }
    }

    /// Removes the files that are not pins: the socket of a daemon that was killed, and the policies that last until the next boot.
    /// A socket with another path than the default one may be anybody's. The next daemon replaces it.
    pub fn remove_files(&self, errors: &mut Vec<String>) {
        let mut check = |path: &Path, removed: io::Result<()>| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("remove {}: {error}", path.display()));
            }
            _ => {}
        };
        let is_socket = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if self.socket == self.usual_socket() {
            for socket in [&self.socket, &self.users_socket].into_iter().filter(|socket| is_socket(socket)) {
                check(socket, fs::remove_file(socket));
            }
        }
        check(&self.runtime, fs::remove_dir_all(&self.runtime));
        // The directory is not empty while there is another instance.
        let _ = fs::remove_dir(RUN_DIRECTORY);
    }

    /// Whether it is the instance of the packaged units.
    pub fn is_default(&self) -> bool {
        self.pins.0 == Path::new(PIN_DIRECTORY)
    }

    fn usual_socket(&self) -> PathBuf {
        Self::new(self.pins.0.clone(), None).socket
    }

    /// The shell command that addresses this instance.
    pub fn command(&self) -> String {
        let bpffs = (!self.is_default()).then_some(("--bpffs", &self.pins.0));
        let socket = (self.socket != self.usual_socket()).then_some(("--socket", &self.socket));
        let options = bpffs.into_iter().chain(socket);
        let words = options.map(|(option, path)| format!(" {option} {}", quoted(&path.display().to_string())));
        format!("steer{}", words.collect::<String>())
    }

    /// The policy files that belong to a configuration file.
    pub fn store(&self, config: &Path) -> Store {
        Store::new(config, &self.runtime, &self.released)
    }
}

/// The name of an instance in file names: `steer` for the default pin directory. Any other is its whole path, with `-` for each
/// slash, and percent-encoded.
fn name(bpffs: &Path) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_');
    if bpffs == Path::new(PIN_DIRECTORY) {
        return "steer".to_owned();
    }
    let whole = path::absolute(bpffs).unwrap_or_else(|_| bpffs.to_owned());
    let parts = whole.components().filter(|part| *part != Component::RootDir);
    let encoded = parts.map(|part| percent_encode(part.as_os_str().as_bytes(), ENCODED));
    encoded.fold(String::new(), |name, part| name + "-" + &part.to_string())
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::{PIN_DIRECTORY, name};

    #[test]
    fn every_pin_directory_has_a_name_of_its_own() {
        assert_eq!(
            (name(Path::new(PIN_DIRECTORY)).as_str(), name(Path::new("/sys/fs/bpf//steer/"))),
            ("steer", "steer".to_owned())
        );
        assert_eq!(name(Path::new("/sys/fs/bpf/my-vpn")), "-sys-fs-bpf-my%2Dvpn");
        let paths = [
            "/steer",
            "/x/steer",
            "/sys/fs/bpf-steer",
            "/sys/fs/bpf/steer",
            "/sys/fs/bpf/steer/x",
            "/sys-fs/bpf/steer",
            "/",
        ];
        let names: BTreeSet<_> = paths.iter().map(|path| name(Path::new(path))).collect();
        assert_eq!(names.len(), paths.len(), "{names:?}");
    }
}
