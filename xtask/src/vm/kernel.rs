//! The choice of a kernel, and the paths of its image and modules.
//!
//! **Invariant**: a kernel is described by the contents of its image, not by the name of the file.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::dist::arch::Arch;

/// The kernels that can be chosen by name, and their Debian suites. The last one moves with Debian.
const NAMED: [(&str, &str); 4] =
    [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("latest", "trixie-backports")];

/// The end of a name: boot it without BPF among the security modules.
const WITHOUT_LSM: &str = "-without-bpf-lsm";
/// Ubuntu's list of security modules (CONFIG_LSM).
const UBUNTU_LSM: &str = "lsm=landlock,lockdown,yama,integrity,apparmor";

/// All names, by age.
pub(super) fn names() -> impl Iterator<Item = String> {
    NAMED.into_iter().flat_map(|(name, _)| [name.to_owned(), format!("{name}{WITHOUT_LSM}")])
}

/// A kernel as requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest kernel of a Debian suite.
    Debian { name: &'static str, suite: &'static str, bpf_lsm: bool },
    /// The image in this file.
    File(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (plain, bpf_lsm) = text.strip_suffix(WITHOUT_LSM).map_or((text, true), |plain| (plain, false));
        if let Some(&(name, suite)) = NAMED.iter().find(|(name, _)| *name == plain) {
            return Ok(Self::Debian { name, suite, bpf_lsm });
        }
        if Path::new(text).is_file() {
            return Ok(Self::File(text.into()));
        }
        let names: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
        Err(format!("neither a file nor one of {}, also with {WITHOUT_LSM} at the end", names.join(", ")))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { name, bpf_lsm, .. } => {
                write!(formatter, "{name}{}", if *bpf_lsm { "" } else { WITHOUT_LSM })
            }
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

impl Wanted {
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Finds the kernel. Downloads it to below `place` if it is not there yet.
    pub(super) fn obtain(&self, arch: Arch, flavour: &str, place: &Path, refresh: bool) -> Result<Kernel> {
        match self {
            Self::File(image) => Kernel::read(image, arch),
            Self::Debian { suite, bpf_lsm, .. } => {
                let unpacked = place.join("kernels").join(suite).join(flavour);
                if refresh || image_below(&unpacked).is_err() {
                    let state = place.join("apt").join(arch.name()).join(suite);
                    debian::unpack_kernel(suite, arch, flavour, &state, &unpacked)?;
                }
                let kernel = Kernel::read(&image_below(&unpacked)?, arch)?;
                Ok(Kernel { parameters: if *bpf_lsm { "" } else { UBUNTU_LSM }, ..kernel })
            }
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The output of `uname -r`; "unknown" if the image does not contain it.
    pub(super) release: String,
    pub(super) arch: Arch,
    pub(super) image: PathBuf,
    /// Further parameters.
    pub(super) parameters: &'static str,
    /// Its directory of modules, if it has one.
    pub(super) modules: Option<PathBuf>,
}

impl Kernel {
    /// Its release, and what its parameters change.
    pub(super) fn name(&self) -> String {
        format!("{}{}", self.release, if self.parameters == UBUNTU_LSM { ", without BPF LSM" } else { "" })
    }

    fn read(image: &Path, arch: Arch) -> Result<Self> {
        let image = fs::canonicalize(image).with_context(|| format!("find {}", image.display()))?;
        let bytes = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
        let release = release(&bytes).unwrap_or_else(|| "unknown".to_owned());
        let beside = image.parent().unwrap_or(Path::new("/"));
        let above = beside.parent().unwrap_or(Path::new("/"));
        let modules =
            [beside.to_owned(), above.join("lib/modules").join(&release), above.join("usr/lib/modules").join(&release)];
        let modules = modules.into_iter().find(|directory| directory.join("kernel").is_dir());
        Ok(Self { release, arch, image, parameters: "", modules })
    }
}

/// The image in a tree of unpacked packages: Debian keeps it in `boot`, and since 7.x with the modules.
fn image_below(unpacked: &Path) -> Result<PathBuf> {
    let mut places = vec![unpacked.join("boot")];
    for modules in ["lib/modules", "usr/lib/modules"] {
        let directories = fs::read_dir(unpacked.join(modules)).into_iter().flatten().flatten();
        places.extend(directories.map(|directory| directory.path()));
    }
    for place in places {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("vmlinuz") {
                return Ok(entry.path());
            }
        }
    }
    bail!("there is no kernel image below {}", unpacked.display())
}

/// Reads the release from a bzImage, whose set-up header (boot protocol 2.00) points to it, or from the banner of an image that is not
/// compressed, such as that of arm64.
fn release(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    if image.get(0x202..0x206)? != b"HdrS" {
        let at = image.windows(BANNER.len()).position(|window| window == BANNER)?;
        let version = image.get(at + BANNER.len()..)?.split(|&byte| byte == b' ').next()?;
        return String::from_utf8(version.to_vec()).ok();
    }
    let pointer = usize::from(u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?]));
    let version = image.get(0x200 + pointer..)?.split(|&byte| byte == 0 || byte == b' ').next()?;
    String::from_utf8(version.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_image() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x312].copy_from_slice(b"6.1.0-1-amd64 (d@x");
        assert_eq!(release(&image).as_deref(), Some("6.1.0-1-amd64"));
        assert_eq!(release(b"\x7fELF"), None);
        image[0x202..0x206].fill(0);
        image.extend(b"\0Linux version 6.1.0-1-arm64 (d@x");
        assert_eq!(release(&image).as_deref(), Some("6.1.0-1-arm64"));
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(release(&image[..0x300]).as_deref(), Some(""), "cut short");
    }

    #[test]
    fn names_and_files_are_distinguished() {
        let named: Wanted = "6.1".parse().expect("6.1 is a name");
        assert_eq!(named, Wanted::Debian { name: "6.1", suite: "bookworm", bpf_lsm: true });
        let ubuntu: Wanted = "6.1-without-bpf-lsm".parse().expect("6.1 is a name");
        assert_eq!(ubuntu.to_string(), "6.1-without-bpf-lsm");
        let file: Wanted = "/proc/self/exe".parse().expect("this program is a file");
        assert!(file.is_file());
        assert!("6.99".parse::<Wanted>().is_err_and(|error| error.contains("5.10, 6.1, 6.12, latest")));
    }
}
