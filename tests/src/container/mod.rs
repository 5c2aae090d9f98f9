//! Beds for containers: a host of containers inside a bed, the runtimes that start them, and the checks of their
//! traffic.
//!
//! **Invariant:** a runtime acts only in namespaces that end with the bed. Its mounts, bridges and packet filter rules
//! are on no network and in no directory of this machine.

mod bundle;
mod check;
mod docker;
mod escape;
mod host;
mod own_network;
mod podman;
mod runtime;

pub use bundle::{Bundle, Network};
pub use check::{Ways, everything};
pub use docker::Docker;
pub use host::Host;
pub use own_network::OwnNetwork;
pub use podman::Podman;
pub use runtime::{Container, Runtime};

use std::path::{Path, PathBuf};

use crate::NotHere;

/// The path of an installed program. [`NotHere`] where it is not installed.
fn installed(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = directories.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.exists());
    let missing = || NotHere(format!("{program} is not installed; install Debian's package {package}"));
    Ok(found.ok_or_else(missing)?)
}
