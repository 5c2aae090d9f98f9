//! Builds the kernel side from source and leaves its object in `OUT_DIR/steer`, for the agent to embed.
//!
//! **Invariant**: it installs nothing. An error names what is missing and the command that installs it, `cargo xtask setup`.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, iter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};
use toolchain::Core;

fn main() {
    println!("cargo::rerun-if-changed=../xtask/src/toolchain.rs");
    if let Err(error) = build() {
        // Cargo fails the build for such a line. A failing exit status would hide it below the other output.
        for line in format!("{error:#}").lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<()> {
    println!("cargo::rerun-if-env-changed={}", toolchain::BUILT);
    if let Some(built) = env::var_os(toolchain::BUILT).map(PathBuf::from) {
        return copy(&built);
    }
    let Some(compiler) = toolchain::compiler() else {
        bail!("no Rust compiler that can build the kernel side was found; run `cargo xtask setup`");
    };
    let Some(linker) = toolchain::linker() else {
        bail!("bpf-linker was not found; run `cargo xtask setup`");
    };
    // Cargo shows the output of the inner cargo as warnings of this package, so suppress its progress output.
    set("CARGO_TERM_QUIET", "true");
    if compiler.core == Core::Compiled {
        set("RUSTC_BOOTSTRAP", toolchain::BOOTSTRAP);
    }
    if toolchain::program("bpf-linker").is_none() {
        set("PATH", path_with(linker.parent().context("bpf-linker has no directory")?)?);
    }

    let agent = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let root_dir = agent.parent().context("the agent is not in a workspace")?.join("agent-ebpf");
    let root_dir = root_dir.to_str().context("the path of agent-ebpf is not UTF-8")?;
    let package = Package { name: "steer-ebpf", root_dir, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(&compiler.name)).context("the kernel side did not build")
}

fn copy(built: &Path) -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    for object in toolchain::OBJECTS {
        let from = built.join(object);
        println!("cargo::rerun-if-changed={}", from.display());
        let copied = fs::read(&from).and_then(|bytes| fs::write(out.join(object), bytes));
        copied.with_context(|| format!("{}: copy {} to {}", toolchain::BUILT, from.display(), out.display()))?;
    }
    Ok(())
}

/// Sets a variable for the compiler started below.
fn set(name: &str, value: impl AsRef<OsStr>) {
    // SAFETY: a build script is a process of its own, and this one has only its main thread until `build_ebpf`.
    unsafe { env::set_var(name, value) };
}

fn path_with(directory: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(iter::once(directory.to_owned()).chain(env::split_paths(&path)))?)
}
