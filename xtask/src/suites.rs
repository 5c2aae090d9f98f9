//! `cargo xtask suites`: runs network test suites of Debian inside and outside a policy, and real programs inside one, as
//! root, in a root file system below `target`.
//!
//! **Invariant**: no package is installed on this machine. A root is used only when it is complete, and has all packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, cargo, dist::recreate, root::Root, setup::Setup, toolchain, vm};

/// The suite whose programs are used.
const SUITE: &str = "trixie";
/// Packages of the root, in addition to the minimum: the test suites and what they run, and the real programs.
const PACKAGES: [&str; 19] = [
    "golang-1.24-go",
    "golang-1.24-src",
    "gcc",
    "libc6-dev",
    "python3",
    "libpython3.13-testsuite",
    "iproute2",
    "procps",
    "curl",
    "transmission-daemon",
    "transmission-cli",
    "postgresql-17",
    "openssh-server",
    "openssh-client",
    "chrony",
    "avahi-daemon",
    "avahi-utils",
    "dbus-daemon",
    "chromium",
];
/// The file of a complete root that names its packages.
const INSTALLED: &str = "steer/packages";
/// Builds the test executables of Go's packages.
const BUILD: &str = "mount -t proc proc /proc && cd /usr/share/go-1.24/src && export HOME=/root GOTOOLCHAIN=local GOPROXY=off && \
                     exec /usr/lib/go-1.24/bin/go test -c -o /steer/ net net/http";

/// Compare the results of network test suites inside and outside a policy, and run real programs inside one; needs root.
#[derive(clap::Args)]
pub(crate) struct Suites {
    /// Run only the tests whose name contains this, such as suites::go or suites::programs.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Make the root file system again.
    #[arg(long)]
    refresh: bool,
}

impl Suites {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let root = Root::find().and_then(Root::prove)?;
        Setup::default().run()?;
        let debian = self.debian()?;
        let built = cargo::programs(&["--bin", "steer", "--bin", "steer-probe"])?;
        let (steer, probe) = (cargo::binary(&built, "steer")?, cargo::binary(&built, "steer-probe")?);
        let variables =
            [("STEER_BIN", steer.as_path()), ("STEER_PROBE", probe.as_path()), ("STEER_DEBIAN", debian.as_path())];
        let test = cargo::integration_tests()?;
        let mut command = root.command(&test.path, &variables);
        // Two at once, because the suites have timers.
        command.args([self.filter.as_deref().unwrap_or("suites"), "--test-threads", "2"]);
        let passed = command.status().with_context(|| format!("start {}", test.path.display()))?.success();
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The root file system. Makes it if it is missing.
    fn debian(&self) -> Result<PathBuf> {
        let place = cargo::target_directory()?.join("suites");
        let root = place.join("root");
        let packages = PACKAGES.join("\n");
        if fs::read_to_string(root.join(INSTALLED)).is_ok_and(|installed| installed == packages) && !self.refresh {
            return Ok(root);
        }
        ensure!(nix::unistd::geteuid().is_root(), "debootstrap needs root");
        if toolchain::program("debootstrap").is_none() {
            apt::install(&["debootstrap"])?;
        }
        eprintln!("suites: making a root file system of {SUITE}, which takes a few minutes");
        let unfinished = place.join("unfinished");
        recreate(&unfinished)?;
        vm::debootstrap(SUITE, &[], &unfinished)?;
        install(&unfinished)?;
        fs::create_dir(unfinished.join("steer")).context("create /steer in the root file system")?;
        // The mount of /proc ends with the command.
        let mut build = Command::new("unshare");
        build.args(["--mount", "--propagation", "private", "chroot"]).arg(&unfinished).args(["sh", "-c", BUILD]);
        cargo::check(build.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
        fs::write(unfinished.join(INSTALLED), packages).context("name the packages of the root file system")?;
        if root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        }
        fs::rename(&unfinished, &root).with_context(|| format!("name {}", root.display()))?;
        Ok(root)
    }
}

/// Installs the packages into the root by this machine's apt, which knows how to reach its mirror. No service starts.
fn install(root: &Path) -> Result<()> {
    let policy = root.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {}", policy.display()))?;
    cargo::check(Command::new("chmod").arg("755").arg(&policy))?;
    for arguments in [&["update"] as &[_], &["install", "--yes", "--no-install-recommends"]] {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
        for (option, value) in [
            ("Dir", root.to_owned()),
            ("DPkg::Chroot-Directory", root.to_owned()),
            ("Dir::Etc::trustedparts", root.join("etc/apt/trusted.gpg.d")),
            ("APT::Sandbox::User", "root".into()),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt.args(arguments);
        if arguments.len() > 1 {
            apt.args(PACKAGES);
        }
        cargo::check(&mut apt)?;
    }
    Ok(())
}
