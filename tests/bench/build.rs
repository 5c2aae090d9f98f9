//! Builds the library that is preloaded into a worker of the benchmark, with the compiler that also links this package.
//!
//! **Invariant**: nothing is written outside the build's own directory.

use std::{env, path::Path, process::Command};

const SOURCE: &str = "src/sockets/preload.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CC");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let directory = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let mut command = Command::new(&compiler);
    command.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", SOURCE, "-o"]);
    let status = command.arg(Path::new(&directory).join("preload.so")).arg("-ldl").status();
    let built = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(built, "build {SOURCE} by {}: {status:?}", compiler.display());
}
