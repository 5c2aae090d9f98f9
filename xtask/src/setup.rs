//! `cargo xtask setup`: installs missing build dependencies.
//!
//! **Invariant**: it can be repeated at any time; if nothing is missing, it changes nothing and prints nothing. If it cannot
//! install, one message lists everything that is missing.

use std::{fmt::Write as _, process::Command, thread};

use anyhow::{Result, anyhow, bail};

use crate::{
    apt, bench, cargo, containerd, fuzz, portable, test,
    toolchain::{self, Compiler, LINKED},
    vm,
};

/// Install missing build dependencies; prints nothing if none is missing.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct Setup {
    /// Also install the dependencies of the other commands that CI runs, such as clippy for the kernel side, cargo-deb and qemu.
    #[arg(long)]
    ci: bool,
    #[arg(skip)]
    package: bool,
    #[arg(skip)]
    dist: bool,
}

impl Setup {
    /// The dependencies of making a Debian package for this machine, in addition to those of building.
    pub(crate) fn for_package() -> Self {
        Self { package: true, ..Self::default() }
    }

    /// The dependencies of packing for all systems.
    pub(crate) fn for_dist() -> Self {
        Self { dist: true, ..Self::default() }
    }

    /// Whether nothing is missing.
    pub(crate) fn is_done(self) -> bool {
        self.needs().iter().all(|need| need.is_met())
    }

    fn needs(self) -> Vec<Need> {
        let more: &[Need] = match self {
            Self { ci: true, .. } => &[Need::KernelClippy, Need::Deb, Need::DebTools],
            Self { dist: true, .. } => &[Need::Deb, Need::DebTools, Need::OtherC, Need::Targets, Need::Rpm],
            Self { package: true, .. } => &[Need::Deb, Need::DebTools],
            Self { .. } => &[],
        };
        [&Need::BUILD, more].concat()
    }

    pub(crate) fn run(self) -> Result<()> {
        let needs = self.needs();
        let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_met()).collect();
        if missing.contains(&Need::Rustup) {
            return Err(manual(&missing, &anyhow!("the rest depends on rustup")));
        }

        let mut packages: Vec<_> = missing.iter().flat_map(|need| need.packages()).copied().collect();
        packages.retain(|package| !apt::is_installed(package));
        // It is compiled while apt, which uses one processor, installs the rest.
        let is_independent = |need: &Need| *need == Need::Deb && !missing.contains(&Need::HostLinker);
        let (beside, rest): (Vec<_>, Vec<_>) = missing.iter().copied().partition(is_independent);
        thread::scope(|scope| {
            let beside = scope.spawn(|| beside.into_iter().try_for_each(Need::install));
            if !packages.is_empty() {
                apt::install(&packages).map_err(|reason| manual(&missing, &reason))?;
            }
            if self.ci {
                scope.spawn(bring_others);
            }
            rest.into_iter().try_for_each(Need::install)?;
            beside.join().expect("it does not panic")
        })
    }
}

/// A dependency of building or linting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Rustup,
    HostLinker,
    Compiler,
    BpfLinker,
    KernelClippy,
    Deb,
    DebTools,
    OtherC,
    Targets,
    Rpm,
}

impl Need {
    const BUILD: [Self; 4] = [Self::Rustup, Self::HostLinker, Self::Compiler, Self::BpfLinker];

    fn is_met(self) -> bool {
        match self {
            Self::Rustup => toolchain::program("rustup").is_some(),
            Self::HostLinker => toolchain::program("cc").is_some(),
            Self::Compiler => toolchain::compiler().is_some(),
            Self::BpfLinker => has_bpf_linker(),
            // Debian packages clippy for its own compiler only; rustup may provide it for a nightly.
            Self::KernelClippy => toolchain::compiler().is_some_and(|found| found.name != LINKED || has_clippy(&found)),
            Self::Deb => toolchain::program("cargo-deb").is_some(),
            Self::DebTools => ["dpkg-shlibdeps", "strip"].iter().all(|name| toolchain::program(name).is_some()),
            Self::OtherC => toolchain::program(portable::arch().c_compiler()).is_some(),
            Self::Targets => portable::has_targets(),
            Self::Rpm => toolchain::program("rpmbuild").is_some(),
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::HostLinker => "a C linker, `cc`",
            Self::Compiler => "a Rust compiler with the library `core` for BPF",
            Self::BpfLinker => "bpf-linker 0.13 or later",
            Self::KernelClippy => "clippy for the kernel side",
            Self::Deb => "cargo-deb",
            Self::DebTools => "dpkg-shlibdeps and strip",
            Self::OtherC => "a C compiler for the other processor",
            Self::Targets => "Rust's targets for static programs",
            Self::Rpm => "rpmbuild",
        }
    }

    /// How to install it manually.
    fn remedy(self) -> &'static str {
        match self {
            Self::Rustup => "install rustup with a stable toolchain",
            Self::HostLinker => "install gcc",
            Self::Compiler => {
                "rustup toolchain install nightly --component rust-src; or, with Debian's rustc-web, cargo-web and \
                 libstd-rust-web-dev-bpf: rustup toolchain link steer-ebpf /usr"
            }
            Self::BpfLinker => {
                "with LLVM 22 and its headers (Debian: llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev): \
                 LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version ^0.13 --locked --no-default-features \
                 --features llvm-22"
            }
            Self::KernelClippy => "install Debian's rust-web-clippy",
            Self::Deb => "cargo install cargo-deb --version ^3.8 --locked",
            Self::DebTools => "install Debian's dpkg-dev and binutils",
            Self::OtherC => "install Debian's gcc-aarch64-linux-gnu; on arm64, gcc-x86-64-linux-gnu",
            Self::Targets => "rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl",
            Self::Rpm => "install Debian's rpm",
        }
    }

    /// Its Debian packages.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Rustup | Self::Deb | Self::Targets => &[],
            Self::HostLinker => &["gcc", "libc6-dev"],
            Self::Compiler => &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
            Self::BpfLinker => &["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"],
            Self::KernelClippy => &["rust-web-clippy"],
            Self::DebTools => &["dpkg-dev", "binutils"],
            Self::OtherC => portable::C_COMPILER,
            Self::Rpm => &["rpm"],
        }
    }

    /// Installs it after its packages.
    fn install(self) -> Result<()> {
        self.finish()?;
        if !self.is_met() {
            bail!("{} was installed, but is not usable; install it manually: {}", self.what(), self.remedy());
        }
        Ok(())
    }

    /// The steps that remain after the packages are installed.
    fn finish(self) -> Result<()> {
        match self {
            Self::Rustup | Self::HostLinker | Self::KernelClippy | Self::DebTools | Self::OtherC | Self::Rpm => Ok(()),
            Self::Targets => portable::install_targets(),
            Self::Compiler => cargo::check(Command::new("rustup").args(["toolchain", "link", LINKED, "/usr"])),
            Self::BpfLinker => {
                eprintln!("setup: building bpf-linker, which takes about a minute");
                // `--force`, because an installed bpf-linker that does not start must be built again.
                let mut install = install("bpf-linker", "^0.13");
                install.args(["--force", "--no-default-features", "--features", "llvm-22"]);
                cargo::check(install.env("LLVM_PREFIX", "/usr/lib/llvm-22"))
            }
            Self::Deb => {
                eprintln!("setup: building cargo-deb, which takes about a minute");
                cargo::check(&mut install("cargo-deb", "^3.8"))
            }
        }
    }
}

/// Builds a tool. A debug build takes half the time. The tools are as fast: LLVM does the work of bpf-linker, and the profile of
/// cargo-deb optimises what compresses.
fn install(tool: &str, version: &str) -> Command {
    let mut install = cargo::cargo(["install", tool, "--version", version, "--locked", "--quiet", "--debug"]);
    install.env("CARGO_PROFILE_DEV_DEBUG", "false");
    install
}

/// Debian's packages of the container runtimes that the tests start, each with its dependencies.
pub(crate) const RUNTIMES: [&str; 9] = [
    "runc",
    "crun",
    "podman",
    "conmon",
    "netavark",
    "golang-github-containers-common",
    "containerd",
    "docker.io",
    "iptables",
];

/// Installs and downloads at once what the commands of `.ci/run` would install one after another. What cannot be installed is
/// reported, and again by the command that needs it.
fn bring_others() {
    let programs = [&bench::NEEDS[..], &vm::NEEDS, &vm::ROOT_NEEDS, &fuzz::NEEDS].concat();
    let missing = programs.into_iter().filter(|(program, _)| toolchain::program(program).is_none());
    let packages: Vec<_> = missing.map(|(_, package)| package).collect();
    bring(&[&packages, &RUNTIMES[..], &containerd::PACKAGES, &[TRACER], portable::C_COMPILER].concat());
    if !portable::has_targets()
        && let Err(error) = portable::install_targets()
    {
        eprintln!("setup: Rust's targets for static programs: {error:#}");
    }
    for (what, outcome) in
        [("promtool", test::promtool()), ("containerd", containerd::programs()), ("systemd-resolved", test::resolved())]
    {
        if let Err(error) = outcome {
            eprintln!("setup: {what}: {error:#}");
        }
    }
}

/// The program that injects faults, and its package.
pub(crate) const TRACER: &str = "strace";

/// Installs the missing packages without starting their services. If that fails, it prints the reason, and the tests that need a
/// package are skipped.
pub(crate) fn bring(packages: &[&str]) {
    let missing = packages.iter().copied().filter(|package| !apt::is_installed(package)).collect::<Vec<_>>();
    if !missing.is_empty()
        && let Err(error) = apt::install_without_services(&missing)
    {
        eprintln!("setup: {} cannot be installed: {error:#}", missing.join(" "));
    }
}

/// Whether the kernel side's compiler has clippy.
pub(crate) fn has_clippy(compiler: &Compiler) -> bool {
    let output = Command::new("rustup").args(["run", &compiler.name, "cargo", "clippy", "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Starts bpf-linker, because the file may exist although its LLVM was removed.
fn has_bpf_linker() -> bool {
    toolchain::linker()
        .and_then(|linker| Command::new(linker).arg("--version").output().ok())
        .is_some_and(|output| is_recent_linker(&String::from_utf8_lossy(&output.stdout)))
}

/// Parses the output of `bpf-linker --version`, such as `bpf-linker 0.13.0`.
fn is_recent_linker(answer: &str) -> bool {
    let mut numbers = answer.trim().trim_start_matches("bpf-linker ").split('.').map_while(|part| part.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(0), Some(13))
}

fn manual(missing: &[Need], reason: &anyhow::Error) -> anyhow::Error {
    let mut text =
        format!("dependencies are missing and cannot be installed automatically ({reason:#}); install them manually:");
    for need in missing {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {}:\n    {}", need.what(), need.remedy());
    }
    anyhow!(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_silent_bpf_linker_does_not_count() {
        for (answer, expected) in [
            ("bpf-linker 0.13.0\n", true),
            ("bpf-linker 0.14.2", true),
            ("bpf-linker 1.0.0", true),
            ("bpf-linker 0.9.15", false),
            ("", false),
        ] {
            assert_eq!(is_recent_linker(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_message_names_each_missing_thing() {
        let all = [Setup { ci: true, ..Setup::default() }.needs(), Setup::for_dist().needs()].concat();
        let text = manual(&all, &anyhow!("apt-get needs root")).to_string();
        assert!(text.contains("(apt-get needs root)"), "{text}");
        for need in all {
            assert!(text.contains(need.what()) && text.contains(need.remedy()), "{text}");
        }
    }
}
