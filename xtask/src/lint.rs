//! `cargo xtask lint`: formatting, clippy on both sides, a check for the other processor, licences and sources of dependencies, documentation.
//!
//! **Invariant**: it changes no file of the project, and reports each skipped check with the reason.

use std::process::Command;

use anyhow::Result;

use crate::{
    cargo, dependencies, portable,
    setup::{self, Setup},
    toolchain::{self, BOOTSTRAP, Core, TARGET},
};

pub(crate) fn run() -> Result<()> {
    Setup::default().run()?;
    step(&mut cargo::cargo(["fmt", "--all", "--check"]))?;
    step(cargo::cargo(["clippy"]).args(cargo::HOST).args(["--all-targets", "--", "-D", "warnings"]))?;
    kernel_clippy()?;
    other_processor()?;
    dependencies::check()?;
    step(cargo::cargo(["doc", "--no-deps"]).args(cargo::HOST).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Lints the kernel side for its real target, as `agent/build.rs` builds it.
fn kernel_clippy() -> Result<()> {
    let Some(compiler) = toolchain::compiler().filter(setup::has_clippy) else {
        skip("clippy for the kernel side", "its compiler has no clippy");
        return Ok(());
    };
    let mut command = Command::new("rustup");
    command
        .args(["run", &compiler.name, "cargo", "clippy", "--package", "steer-ebpf", "--bins", "--release"])
        .args(["--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH))
        .current_dir(cargo::root());
    match compiler.core {
        Core::Compiled => command.env("RUSTC_BOOTSTRAP", BOOTSTRAP),
        Core::Sources => command.args(["-Z", "build-std=core"]),
    };
    step(command.args(["--", "-D", "warnings"]))
}

fn other_processor() -> Result<()> {
    match portable::check()? {
        Ok(mut check) => step(&mut check),
        Err(why) => {
            skip(&format!("the check for {}", portable::arch().target()), why);
            Ok(())
        }
    }
}

fn step(command: &mut Command) -> Result<()> {
    eprintln!("lint: {}", cargo::display(command));
    cargo::check(command)
}

fn skip(what: &str, why: &str) {
    eprintln!("lint: skipped {what}: {why}; `cargo xtask setup --ci` may install it");
}
