//! `cargo xtask dist`: packages for all systems and both processors, in target/dist. This file says what is made from what.
//!
//! **Invariant**: the packed files are built in the same run. What is made twice from the same programs is the same to the byte: its
//! times are that of the commit.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, setup::Setup};

pub(crate) mod arch;
mod archive;
mod chart;
mod check;
mod deb;
mod oci;
mod pkgbuild;
mod program;
mod rpm;
mod sbom;
mod sums;
mod tarball;

/// The version of everything.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Make packages for Debian, Fedora, Arch and other systems, an image and a chart for Kubernetes, in target/dist.
#[derive(clap::Args)]
pub(crate) struct Dist {
    /// The processor to pack for.
    #[arg(long, default_value = "all")]
    arch: arch::Chosen,
    /// Pack programs that are not optimised, which are built sooner, to try the packages.
    #[arg(long)]
    dev: bool,
    /// Then build this machine's programs again, from nothing, at the same path, and compare them. Needs root.
    #[arg(long)]
    twice: bool,
    /// Then install and remove each as its users do, in roots of their own. Needs root.
    #[arg(long)]
    check: bool,
}

/// How the packed programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests: nothing is compiled twice.
    Dev,
    /// For users.
    Release,
}

impl Profile {
    /// The arguments of a build.
    fn cargo(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }

    /// As cargo calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

impl Dist {
    pub(crate) fn run(self) -> Result<ExitCode> {
        Setup::for_dist().run()?;
        let directory = cargo::target_directory()?.join("dist");
        let profile = if self.dev { Profile::Dev } else { Profile::Release };
        let all = program::build(&self.arch.archs(), profile)?;
        let artefacts = make(&all, profile, &directory)?;
        for artefact in &artefacts {
            println!("{}", artefact.display());
        }
        let checked = if self.check { check::all(&directory)? } else { ExitCode::SUCCESS };
        if self.twice {
            let own = all.iter().find(|programs| programs.arch.is_host());
            program::again(own.context("--twice needs --arch of this machine, or all")?, profile)?;
        }
        Ok(checked)
    }
}

/// Makes everything from these programs.
fn make(all: &[program::Programs], profile: Profile, directory: &Path) -> Result<Vec<PathBuf>> {
    recreate(directory)?;
    let mut artefacts = Vec::new();
    for programs in all {
        let package = deb::of(programs, profile, directory)?;
        let tree = directory.join(".tree");
        deb::unpack(&package, &tree)?;
        generalize(&tree)?;
        artefacts.extend([
            package,
            tarball::of(programs.arch, &tree, directory)?,
            rpm::of(programs.arch, &tree, directory)?,
        ]);
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    artefacts.extend(pkgbuild::write(directory)?);
    artefacts.push(oci::of(all, directory)?);
    artefacts.extend(chart::pack(directory)?);
    artefacts.push(sbom::write(all, directory)?);
    artefacts.push(sums::write(&artefacts, directory)?);
    Ok(artefacts)
}

/// The Debian package under test, in an empty directory, with programs that are linked with this machine's libraries.
pub(crate) fn package(directory: &Path, profile: Profile, options: &[&str]) -> Result<PathBuf> {
    program::built_here(profile)?;
    deb::cargo_deb(directory, profile, options)
}

/// Moves what only Debian has in another place, or by another name.
fn generalize(tree: &Path) -> Result<()> {
    for (from, to) in [
        ("usr/share/zsh/vendor-completions", "usr/share/zsh/site-functions"),
        ("usr/share/doc/steer/changelog.Debian.gz", "usr/share/doc/steer/changelog.gz"),
    ] {
        fs::rename(tree.join(from), tree.join(to)).with_context(|| format!("move {from} to {to}"))?;
    }
    Ok(())
}

/// The time of the commit, in seconds since 1970; or `SOURCE_DATE_EPOCH`.
fn epoch() -> Result<u64> {
    if let Some(given) = env::var_os("SOURCE_DATE_EPOCH") {
        return given.to_string_lossy().parse().context("SOURCE_DATE_EPOCH is not a number");
    }
    let text = printed(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(cargo::root()))?;
    text.trim().parse().context("git printed no time of the commit")
}

/// The same as RFC 3339 has it.
fn timestamp() -> Result<String> {
    let text = printed(Command::new("date").args(["--utc", &format!("--date=@{}", epoch()?), "+%Y-%m-%dT%H:%M:%SZ"]))?;
    Ok(text.trim().to_owned())
}

/// Runs a command and returns what it prints.
fn printed(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("start {}", cargo::display(command)))?;
    ensure!(output.status.success(), "`{}` failed: {}", cargo::display(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files below a directory, with paths from there, sorted.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let text = printed(Command::new("find").args([".", "-type", "f", "-printf", "%P\\n"]).current_dir(directory))?;
    let mut files: Vec<_> = text.lines().map(PathBuf::from).collect();
    files.sort();
    Ok(files)
}

/// Copies a directory with its modes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    cargo::check(Command::new("cp").args(["--archive", "--no-target-directory"]).args([from, to]))
}

/// Creates an empty directory. Removes an existing one.
pub(crate) fn recreate(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", directory.display()));
        }
        _ => {}
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
