//! The compiler and the linker that build the kernel side. The agent's build script includes this file too, so that
//! `cargo xtask setup` and `cargo build` agree on what is missing.
//!
//! **Invariant**: it only reads. It installs nothing, changes no environment, and needs only the standard library.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The rustup name under which Debian's compiler is linked for the kernel side.
pub(crate) const LINKED: &str = "steer-ebpf";

/// The value of `RUSTC_BOOTSTRAP` with which a stable compiler builds the kernel side: aya-ebpf uses an unstable feature
/// (`asm_experimental_arch`). Only with the value 1 would aya-build have `core` built, too.
pub(crate) const BOOTSTRAP: &str = "aya_ebpf";

/// The target of the kernel side.
pub(crate) const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Names a directory with objects to embed instead of building them. They are the same for every target, so `cargo xtask dist` builds them
/// once, and `cargo xtask lint` and `fuzz` have empty ones.
pub(crate) const BUILT: &str = "STEER_KERNEL_OBJECTS";

/// The objects of the kernel side, in the output of the agent's build script.
pub(crate) const OBJECTS: [&str; 3] = ["steer", "meter", "netns-cookie"];

/// A rustup toolchain that can build the kernel side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// Its name for `rustup run`.
    pub(crate) name: String,
    /// The form of its `core` for the kernel side.
    pub(crate) core: Core,
}

/// `core` for the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// Compiled, with a stable compiler, which needs [`BOOTSTRAP`].
    Compiled,
    /// As sources, with a nightly compiler: `-Z build-std=core` compiles it.
    Sources,
}

/// The compiler for the kernel side: Debian's if it is linked, else a nightly with `rust-src`.
pub(crate) fn compiler() -> Option<Compiler> {
    let output = Command::new("rustup").args(["toolchain", "list", "--verbose"]).output().ok()?;
    choose(&String::from_utf8_lossy(&output.stdout), has_core)
}

/// `bpf-linker`, from `PATH` or from the directory of `cargo install`.
pub(crate) fn linker() -> Option<PathBuf> {
    program("bpf-linker").or_else(|| {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
        Some(cargo_home.join("bin/bpf-linker")).filter(|path| path.is_file())
    })
}

/// The path of the program called `name` in `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn has_core(toolchain: &Path, core: Core) -> bool {
    let rustlib = toolchain.join("lib/rustlib");
    match core {
        Core::Compiled => rustlib.join(TARGET).is_dir(),
        Core::Sources => rustlib.join("src/rust/library").is_dir(),
    }
}

/// Parses the lines of `rustup toolchain list --verbose`, each `NAME [(active, default)] PATH`.
fn choose(listing: &str, has_core: impl Fn(&Path, Core) -> bool) -> Option<Compiler> {
    let find = |core, is_meant: fn(&str) -> bool| {
        listing.lines().find_map(|line| {
            let (name, _) = line.split_once(char::is_whitespace)?;
            let path = &line[line.find('/')?..];
            let is_usable = is_meant(name) && has_core(Path::new(path.trim_end()), core);
            is_usable.then(|| Compiler { name: name.to_owned(), core })
        })
    };
    find(Core::Compiled, |name| name == LINKED).or_else(|| find(Core::Sources, |name| name.starts_with("nightly")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "stable-x86_64 (active, default) /r/stable-x86_64\n\
                           nightly-2025-01-01-x86_64\t/r/nightly-2025-01-01-x86_64\n\
                           nightly-x86_64 /r/nightly-x86_64\n\
                           steer-ebpf /usr\n";

    fn chosen(compiled: &[&str], sources: &[&str]) -> Option<(String, Core)> {
        let found = choose(LISTING, |path, core| {
            let paths = if core == Core::Compiled { compiled } else { sources };
            paths.iter().any(|with_core| Path::new(with_core) == path)
        });
        found.map(|Compiler { name, core }| (name, core))
    }

    #[test]
    fn the_linked_compiler_comes_before_a_nightly() {
        let nightly = |name: &str| Some((name.to_owned(), Core::Sources));
        assert_eq!(chosen(&["/usr"], &["/r/nightly-x86_64"]), Some(("steer-ebpf".to_owned(), Core::Compiled)));
        assert_eq!(chosen(&[], &["/usr", "/r/nightly-x86_64"]), nightly("nightly-x86_64"));
        assert_eq!(chosen(&[], &["/r/nightly-2025-01-01-x86_64"]), nightly("nightly-2025-01-01-x86_64"));
    }

    #[test]
    fn a_toolchain_without_core_does_not_count() {
        assert_eq!(chosen(&[], &[]), None);
        let stable = ["/r/stable-x86_64"];
        assert_eq!(
            chosen(&stable, &stable),
            None,
            "only Debian's compiler is supported, and a stable one may not use -Z build-std"
        );
    }
}
