//! Which compiler and which linker build the kernel side. The agent's build script includes this file too, so that
//! `cargo xtask setup` and `cargo build` always agree on what is missing.
//!
//! **Invariant**: it only looks. It installs nothing, changes no environment, and needs the standard library alone.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The rustup name under which a distribution's compiler is linked for the kernel side.
pub(crate) const LINKED: &str = "steer-ebpf";

/// A rustup toolchain that can build `core` for a BPF target, because it has the sources of its own standard library.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// The name `rustup run` knows it by.
    pub(crate) name: String,
    /// Whether it is a stable compiler, which takes `-Z build-std` only with `RUSTC_BOOTSTRAP=1`.
    pub(crate) needs_bootstrap: bool,
}

/// The compiler for the kernel side: the linked one if there is one, else a nightly with `rust-src`.
pub(crate) fn compiler() -> Option<Compiler> {
    let output = Command::new("rustup").args(["toolchain", "list", "--verbose"]).output().ok()?;
    choose(&String::from_utf8_lossy(&output.stdout), has_library_sources)
}

/// `bpf-linker`, from `PATH` or from where `cargo install` puts it.
pub(crate) fn linker() -> Option<PathBuf> {
    program("bpf-linker").or_else(|| {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
        Some(cargo_home.join("bin/bpf-linker")).filter(|path| path.is_file())
    })
}

/// Where `PATH` finds the program called `name`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}

fn has_library_sources(toolchain: &Path) -> bool {
    toolchain.join("lib/rustlib/src/rust/library").is_dir()
}

/// Reads the lines of `rustup toolchain list --verbose`, each `NAME [(active, default)] PATH`.
fn choose(listing: &str, has_sources: impl Fn(&Path) -> bool) -> Option<Compiler> {
    let usable = || {
        listing.lines().filter_map(|line| {
            let (name, _) = line.split_once(char::is_whitespace)?;
            let path = &line[line.find('/')?..];
            has_sources(Path::new(path.trim_end())).then_some(name)
        })
    };
    let linked = usable().find(|name| *name == LINKED);
    let nightly = || usable().find(|name| name.starts_with("nightly"));
    linked
        .map(|name| Compiler { name: name.to_owned(), needs_bootstrap: true })
        .or_else(|| nightly().map(|name| Compiler { name: name.to_owned(), needs_bootstrap: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "stable-x86_64 (active, default) /r/stable-x86_64\n\
                           nightly-2025-01-01-x86_64\t/r/nightly-2025-01-01-x86_64\n\
                           nightly-x86_64 /r/nightly-x86_64\n\
                           steer-ebpf /usr\n";

    fn name(sources: &[&str]) -> Option<String> {
        let found = choose(LISTING, |path| sources.iter().any(|source| Path::new(source) == path))?;
        assert_eq!(found.needs_bootstrap, found.name == LINKED);
        Some(found.name)
    }

    #[test]
    fn the_linked_compiler_comes_before_a_nightly() {
        assert_eq!(name(&["/usr", "/r/nightly-x86_64"]).as_deref(), Some("steer-ebpf"));
        assert_eq!(name(&["/r/nightly-x86_64"]).as_deref(), Some("nightly-x86_64"));
        assert_eq!(name(&["/r/nightly-2025-01-01-x86_64"]).as_deref(), Some("nightly-2025-01-01-x86_64"));
    }

    #[test]
    fn a_toolchain_without_sources_does_not_count() {
        assert_eq!(name(&[]), None);
        assert_eq!(name(&["/r/stable-x86_64"]), None, "stable may not use -Z build-std");
    }
}
