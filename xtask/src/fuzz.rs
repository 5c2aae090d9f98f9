//! `cargo xtask fuzz`: builds the fuzz targets with libFuzzer's instrumentation on the stable toolchain, and runs each for a
//! time, from the seeds in `tests/fuzz/seeds`.
//!
//! **Invariant**: inputs that a run finds are kept below `target`; it never changes the seeds.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, portable, setup::Setup, toolchain, vm};

/// libFuzzer is C++: the compiler, and its Debian package.
pub(crate) const NEEDS: [(&str, &str); 1] = [("c++", "g++")];
/// All targets.
const TARGETS: [&str; 6] = ["configuration", "glob", "oci_state", "nri_frames", "api_policy", "records"];
/// Run the fuzz targets.
#[derive(clap::Args)]
pub(crate) struct Fuzz {
    /// How long to run each, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
    /// Run only this target
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    target: Option<String>,
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        Setup::default().run()?;
        vm::install(&NEEDS)?;
        let place = cargo::target_directory()?.join("fuzz");
        build(&place)?;
        for target in TARGETS.iter().filter(|target| self.target.as_ref().is_none_or(|only| only == *target)) {
            let corpus = place.join("corpus").join(target);
            fs::create_dir_all(&corpus)?;
            let program = place.join("release").join(target);
            let mut run = Command::new(&program);
            run.arg(format!("-max_total_time={}", self.seconds))
                .args(["-print_final_stats=0", "-verbosity=0", "-timeout=10", "-rss_limit_mb=2048"])
                .arg(format!("-artifact_prefix={}/", corpus.display()))
                .arg(&corpus)
                .arg(cargo::root().join("tests/fuzz/seeds").join(target));
            let ended = run.output().with_context(|| format!("start {}", program.display()))?;
            if !ended.status.success() {
                eprint!("{}", String::from_utf8_lossy(&ended.stderr));
                bail!(
                    "{target} failed; the input is in {}; `{} FILE` reproduces the failure",
                    corpus.display(),
                    program.display()
                );
            }
            let found = fs::read_dir(&corpus)?.count();
            println!("fuzz {target}: no failure in {} s, {found} inputs kept", self.seconds);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn build(place: &Path) -> Result<()> {
    let mut build = cargo::cargo(["build", "--release"]);
    build.env(toolchain::BUILT, portable::no_kernel_side()?);
    build.env("RUSTC_WRAPPER", cargo::root().join("tests/fuzz/instrument.sh"));
    build.arg("--manifest-path").arg(cargo::root().join("tests/fuzz/Cargo.toml")).arg("--target-dir").arg(place);
    cargo::check(&mut build)
}
