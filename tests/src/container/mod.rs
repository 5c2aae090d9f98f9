//! Beds for containers: a host of them inside a bed, the runtimes that start them, and the check of where their traffic
//! goes.
//!
//! **Invariant:** whatever a runtime does, it does in namespaces that end with the bed: its mounts, its bridges and
//! its rules of the packet filter are on no network or directory of this machine.

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

/// Where an installed program is. [`NotHere`] where it is not.
fn installed(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = directories.iter().map(|directory| Path::new(directory).join(program)).find(|path| path.exists());
    let missing = || NotHere(format!("{program} is not installed; Debian's package {package} has it"));
    Ok(found.ok_or_else(missing)?)
}
