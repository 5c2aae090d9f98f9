//! The programs that a guest has: steer, the tests, and what they start, with their libraries.
//!
//! **Invariant**: all are for the guest's processor. Those for this machine's own are this machine's; others are static, or Debian's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{debian, place};
use crate::{
    cargo,
    dist::{arch::Arch, recreate},
    toolchain,
};

/// The programs of the workspace.
const OWN: [&str; 4] = ["steer", "steer-probe", "steer-escape", "steer-demo"];
/// What the tests start beside them, and Debian's packages of these.
const TOOLS: [(&str, &str); 4] =
    [("install", "coreutils"), ("ip", "iproute2"), ("setpriv", "util-linux"), ("wg", "wireguard-tools")];
const BUSYBOX: (&str, &str) = ("busybox", "busybox-static");

/// Names below /bin, and their files.
pub(super) type Programs = Vec<(&'static str, PathBuf)>;

/// Where programs and libraries are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// On this machine.
    Here,
    /// Unpacked from packages of another processor.
    Unpacked(PathBuf),
}

impl Source {
    pub(super) fn of(arch: Arch) -> Result<Self> {
        if arch.is_host() {
            return Ok(Self::Here);
        }
        let unpacked = place()?.join("programs").join(arch.name());
        if TOOLS.iter().any(|(name, _)| program_below(&unpacked, name).is_none()) {
            let packages: Vec<_> = TOOLS.into_iter().chain([BUSYBOX]).map(|(_, package)| package).collect();
            let unfinished = unpacked.with_extension("new");
            debian::unpack_programs(&packages, arch, &place()?.join("apt").join(arch.name()).join("own"), &unfinished)?;
            recreate(&unpacked)?;
            fs::rename(&unfinished, &unpacked).with_context(|| format!("name {}", unpacked.display()))?;
        }
        Ok(Self::Unpacked(unpacked))
    }

    pub(super) fn busybox(&self) -> Result<PathBuf> {
        self.program(BUSYBOX.0)
    }

    /// The programs that only tests without a disk need.
    pub(super) fn tools(&self) -> Result<Programs> {
        TOOLS.into_iter().map(|(name, _)| Ok((name, self.program(name)?))).collect()
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        let found = match self {
            Self::Here => toolchain::program(name),
            Self::Unpacked(root) => program_below(root, name),
        };
        found.with_context(|| format!("{name} was removed"))
    }

    /// The libraries that a program is started with, and the dynamic linker: paths in the guest, and files. None for a static program.
    pub(super) fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        match self {
            Self::Here => {
                let output = Command::new("ldd").arg(program).output().context("start ldd")?;
                let paths = library_paths(&String::from_utf8_lossy(&output.stdout));
                Ok(paths.into_iter().map(|path| (path.clone(), path.into())).collect())
            }
            Self::Unpacked(root) => unpacked_libraries(root, program),
        }
    }
}

fn program_below(root: &Path, name: &str) -> Option<PathBuf> {
    let places = ["bin", "sbin", "usr/bin", "usr/sbin"];
    places.into_iter().map(|place| root.join(place).join(name)).find(|path| path.is_file())
}

/// The tests, and the programs of the workspace.
pub(super) fn own(arch: Arch) -> Result<Programs> {
    if arch.is_host() {
        let tests = cargo::integration_tests()?.path;
        let built = cargo::programs(&cargo::TESTED)?;
        let own = OWN.into_iter().map(|name| Ok((name, cargo::binary(&built, name)?)));
        return [Ok(("tests", tests))].into_iter().chain(own).collect();
    }
    let objects = cargo::kernel_objects()?;
    let built = cargo::tested_for(arch.target(), |command| {
        arch.prepare(command);
        // Programs with symbols would take most of the guest's memory.
        arch.flags(command, "-C strip=symbols -C debuginfo=0");
        command.env(toolchain::BUILT, objects);
    })?;
    let tests = built.iter().find(|executable| executable.is_test).context("cargo reported no tests")?;
    let own = OWN.into_iter().map(|name| Ok((name, cargo::binary(&built, name)?)));
    [Ok(("tests", tests.path.clone()))].into_iter().chain(own).collect()
}

/// Parses ldd(1): `libc.so.6 => /lib/x/libc.so.6 (0x...)`, a path alone, or a name without a file.
fn library_paths(listing: &str) -> Vec<String> {
    let path = |line: &str| {
        let words = || line.split_whitespace();
        words().find(|word| word.starts_with('/')).map(str::to_owned)
    };
    listing.lines().filter_map(path).collect()
}

/// The libraries of a program that does not run here. They are found by the names in the program, and put where the dynamic linker always
/// looks.
fn unpacked_libraries(root: &Path, program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut wanted = needed(program)?;
    while let Some(name) = wanted.pop() {
        let path = format!("/lib/{name}");
        if found.iter().any(|(known, _)| *known == path) {
            continue;
        }
        let output = Command::new("find").arg(root).args(["-name", &name]).output().context("start find")?;
        let listed = String::from_utf8_lossy(&output.stdout);
        // A symbolic link may be absolute, and lead to a file of this machine.
        let file = listed.lines().map(PathBuf::from).find_map(|file| resolved(&file));
        let file = file.with_context(|| format!("no package has {name}, which {} needs", program.display()))?;
        wanted.extend(needed(&file)?);
        found.push((path, file));
    }
    Ok(found)
}

/// The file, if it is none or a link beside itself.
fn resolved(file: &Path) -> Option<PathBuf> {
    match fs::read_link(file) {
        Ok(target) => Some(file.with_file_name(target.file_name()?)).filter(|beside| beside.is_file()),
        Err(_) => Some(file.to_owned()),
    }
}

/// The names of libraries in a program or library, and that of the dynamic linker.
fn needed(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("readelf").args(["--dynamic", "--program-headers", "--wide"]).arg(file).output();
    let output = output.context("start readelf")?;
    ensure!(output.status.success(), "readelf failed for {}", file.display());
    Ok(needed_names(&String::from_utf8_lossy(&output.stdout)))
}

/// Parses readelf(1).
fn needed_names(listing: &str) -> Vec<String> {
    let name = |line: &str| {
        let interpreter = line.split_once("program interpreter: ").map(|(_, rest)| rest);
        let library = line.split_once("(NEEDED)").and_then(|(_, rest)| rest.split_once('[')).map(|(_, rest)| rest);
        let path = interpreter.or(library)?.trim_end().trim_end_matches(']');
        Some(path.rsplit('/').next()?.to_owned())
    };
    listing.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x0007)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x0007)\n\t/lib64/ld.so.2 (0x7)\n";
        assert_eq!(library_paths(listing), ["/lib/x/libc.so.6", "/lib64/ld.so.2"]);
        assert!(library_paths("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn libraries_are_read_from_readelf() {
        let listing = "      [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]\n\
                        0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
                        0x000000000000001d (RUNPATH)            Library runpath: [/x]\n";
        assert_eq!(needed_names(listing), ["ld-linux-aarch64.so.1", "libc.so.6"]);
    }
}
