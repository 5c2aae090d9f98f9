//! `cargo xtask test`: unit tests as the calling user, then integration tests as root, then one line with the sum.
//!
//! **Invariant**: it succeeds only if some test ran, every executable reported, and no test failed. Tests that are skipped for
//! lack of root make it fail, unless they were not requested.

use std::{
    ffi::OsString,
    io::stdout,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    apt,
    cargo::{self, Executable},
    containerd,
    dist::{self, Profile},
    root::Root,
    setup::{self, Setup},
    tally::Tally,
    toolchain,
};

/// Run the unit tests, and as root the integration tests.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Run only the unit tests, which need no root.
    #[arg(long)]
    unit: bool,
    /// Inject a fault at every system call, and run storms and random changes for longer.
    #[arg(long)]
    thorough: bool,
    /// Run only tests whose name contains this; `escape` also prints a table of what left by which link.
    filter: Option<String>,
    /// Arguments for the test executables.
    #[arg(last = true)]
    args: Vec<OsString>,
}

impl Test {
    pub(crate) fn run(self) -> Result<ExitCode> {
        Setup::default().run()?;
        let (integration, unit): (Vec<_>, Vec<_>) =
            cargo::tests()?.into_iter().partition(|test| test.package_dir == cargo::root().join("tests"));
        let mut tally = self.observe(unit, |test| Command::new(&test.path))?;
        tally += self.doc_tests()?;
        let mut complete = true;
        if !self.unit {
            match Root::find().and_then(Root::prove) {
                Ok(root) => tally += self.integration_tests(integration, root)?,
                Err(reason) => {
                    eprintln!("error: the integration tests were skipped: {reason:#}");
                    complete = false;
                }
            }
        }
        if tally == Tally::default() {
            eprintln!("error: no test was run: the filter matches no test");
            complete = false;
        }
        println!("{tally}");
        Ok(if complete && tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn doc_tests(&self) -> Result<Tally> {
        let mut doc = cargo::cargo(["test", "--doc"]);
        Tally::observe(doc.args(cargo::HOST).args(&self.filter).arg("--").args(&self.args), &mut stdout())
    }

    fn integration_tests(&self, tests: Vec<Executable>, root: Root) -> Result<Tally> {
        let built = cargo::programs(&cargo::TESTED)?;
        let program = |name| cargo::binary(&built, name);
        let (steer, probe) = (program("steer")?, program("steer-probe")?);
        let (escape, demo) = (program("steer-escape")?, program("steer-demo")?);
        let (promtool, package, containerd, resolved) = (promtool()?, package()?, containerd::programs()?, resolved()?);
        let is_asked = |module: &str| self.filter.as_deref().is_none_or(|filter| filter.starts_with(module));
        if is_asked("containers") {
            setup::bring(&setup::RUNTIMES);
        }
        if is_asked("faults") {
            setup::bring(&[setup::TRACER]);
        }
        let mut variables = vec![
            ("STEER_BIN", steer.as_path()),
            ("STEER_PROBE", probe.as_path()),
            ("STEER_ESCAPE", escape.as_path()),
            ("STEER_DEMO", demo.as_path()),
            ("STEER_PROMTOOL", promtool.as_path()),
            ("STEER_CONTAINERD", containerd.as_path()),
            ("STEER_RESOLVED", resolved.as_path()),
        ];
        if self.thorough {
            variables.push(("STEER_THOROUGH", Path::new("1")));
        }
        variables.extend(package.as_deref().map(|package| ("STEER_DEB", package)));
        self.observe(tests, |test| root.command(&test.path, &variables))
    }

    /// Runs each test executable to its end, whatever the results of the others.
    fn observe(&self, built: Vec<Executable>, start: impl Fn(&Executable) -> Command) -> Result<Tally> {
        let mut tally = Tally::default();
        for executable in built.into_iter().filter(|executable| executable.is_test) {
            eprintln!("     Running {} ({})", executable.name, executable.path.display());
            let mut command = start(&executable);
            command.args(&self.filter).args(&self.args).current_dir(&executable.package_dir);
            tally += Tally::observe(&mut command, &mut stdout())?;
        }
        Ok(tally)
    }
}

/// The checker of metrics, from Debian's package if it is not installed. If neither is available, the test reports that.
pub(crate) fn promtool() -> Result<PathBuf> {
    if let Some(installed) = toolchain::program("promtool") {
        return Ok(installed);
    }
    let place = cargo::target_directory()?.join("prometheus");
    let unpacked = place.join("usr/bin/promtool");
    if !unpacked.exists()
        && let Err(error) = apt::unpack("prometheus", &place)
    {
        eprintln!("setup: cannot unpack promtool: {error:#}");
    }
    Ok(unpacked)
}

/// Where systemd-resolved is, with its library: unpacked, because the package would replace this host's resolver. If it is not available, the
/// test reports that.
pub(crate) fn resolved() -> Result<PathBuf> {
    let place = cargo::target_directory()?.join("systemd-resolved");
    if !["lib", "usr/lib"].iter().any(|lib| place.join(lib).join("systemd/systemd-resolved").exists()) {
        for package in ["libsystemd-shared", "systemd-resolved"] {
            if let Err(error) = apt::unpack(package, &place) {
                eprintln!("setup: cannot unpack {package}: {error:#}");
            }
        }
    }
    Ok(place)
}

/// The Debian package under test, if it can be built.
fn package() -> Result<Option<PathBuf>> {
    if !Setup::for_package().is_done() {
        eprintln!(
            "test: the tools that build the Debian package are not installed; `cargo xtask setup --ci` installs them"
        );
        return Ok(None);
    }
    let directory = cargo::target_directory()?.join("dist/test");
    dist::recreate(&directory)?;
    dist::package(&directory, Profile::Dev, &["--fast", "--strip"]).map(Some)
}
