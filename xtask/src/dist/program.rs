//! The static programs of both processors, and what the agent's own programs write: manual pages and completions.
//!
//! **Invariant**: the kernel side is compiled once, and every program embeds that object. At the same path, the same commit gives the same
//! bytes.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Profile, arch::Arch, archive, recreate};
use crate::{cargo, toolchain};

/// The shells, and the files that the package's metadata name.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "steer.bash"), ("zsh", "steer.zsh"), ("fish", "steer.fish")];

/// What the packages of a processor are made from: the directory of cargo's profile, with the programs and `dist`.
pub(super) struct Programs {
    pub(super) arch: Arch,
    pub(super) directory: PathBuf,
}

/// Builds for these processors. This machine's comes first.
pub(super) fn build(archs: &[Arch], profile: Profile) -> Result<Vec<Programs>> {
    let mut objects: Option<PathBuf> = None;
    let mut all: Vec<Programs> = Vec::new();
    for &arch in archs {
        // Only this machine's programs can be asked for their manual pages.
        let man: &[&str] = if arch.is_host() { &["--example", "man"] } else { &[] };
        let targets = [profile.cargo(), &["--bin", "steer", "--bin", "steer-demo"], man].concat();
        let built = cargo::build_for(&targets, arch.target(), |command| {
            arch.prepare(command);
            arch.flags(command, flags());
            command.envs(objects.as_ref().map(|directory| (toolchain::BUILT, directory)));
        })?;
        let steer = cargo::binary(&built.executables, "steer")?;
        objects = objects.or(built.agent_out);
        let directory = steer.parent().context("the binary is in no directory")?.to_owned();
        match all.first() {
            Some(first) => copy_generated(&first.directory.join("dist"), &directory.join("dist"))?,
            None if arch.is_host() => generate(&steer, &cargo::binary(&built.executables, "man")?)?,
            None => {
                let steer = built_here(profile)?;
                copy_generated(&steer.with_file_name("dist"), &directory.join("dist"))?;
            }
        }
        all.push(Programs { arch, directory });
    }
    Ok(all)
}

/// Builds this machine's static programs again, from nothing, at the same path, and checks that they are the same. Needs root: for the
/// second build, an empty directory is mounted where cargo's target directory is.
pub(super) fn again(first: &Programs, profile: Profile) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "building at the same path again needs root");
    let target = cargo::target_directory()?;
    let second = target.join("again");
    recreate(&second)?;
    let targets = [profile.cargo(), &["--bin", "steer", "--bin", "steer-demo"]].concat();
    let build = cargo::command_for(&targets, first.arch.target(), |command| {
        first.arch.prepare(command);
        first.arch.flags(command, flags());
    });
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-euc",
        "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"",
    ]);
    command.args([&second, &target]).arg(build.get_program()).args(build.get_args()).current_dir(cargo::root());
    command.envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
    cargo::check(&mut command)?;
    let below = first.directory.strip_prefix(&target).context("the programs are not in cargo's target directory")?;
    for name in ["steer", "steer-demo"] {
        let sum = |directory: &Path| archive::sha256(&directory.join(name));
        let (one, two) = (sum(&first.directory)?, sum(&second.join(below))?);
        ensure!(
            one == two,
            "two builds of {name} differ: {} and {}",
            first.directory.display(),
            second.join(below).display()
        );
        println!("twice: {name} ... the same, {one}");
    }
    fs::remove_dir_all(&second).with_context(|| format!("remove {}", second.display()))
}

/// Builds for this machine, with its libraries, and writes manual pages and completions. Returns the agent.
pub(super) fn built_here(profile: Profile) -> Result<PathBuf> {
    let targets = ["--bin", "steer", "--bin", "steer-demo", "--example", "man"];
    let built = match profile {
        Profile::Dev => cargo::programs(&targets),
        Profile::Release => cargo::release(&targets),
    }?;
    let steer = cargo::binary(&built, "steer")?;
    generate(&steer, &cargo::binary(&built, "man")?)?;
    Ok(steer)
}

/// Flags of the compiler: nothing of this machine's paths, and no symbols. They do not reach the kernel side.
fn flags() -> String {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let strip = ["-C strip=symbols -C debuginfo=0".to_owned()];
    let remap = |from: &Path, to| format!("--remap-path-prefix={}={to}", from.display());
    let paths = [Some(remap(cargo::root(), "/steer")), cargo_home.map(|home| remap(&home, "/cargo"))];
    strip.into_iter().chain(paths.into_iter().flatten()).collect::<Vec<_>>().join(" ")
}

/// Writes manual pages and completions to `dist` beside the program, where the package's metadata expect them.
fn generate(steer: &Path, man: &Path) -> Result<()> {
    let generated = steer.parent().context("the binary is in no directory")?.join("dist");
    let pages = generated.join("man");
    recreate(&pages)?;
    cargo::check(Command::new(man).arg(&pages))?;
    for page in fs::read_dir(&pages).with_context(|| format!("list {}", pages.display()))?.flatten() {
        cargo::check(Command::new("gzip").args(["-9", "--no-name"]).arg(page.path()))?;
    }
    for (shell, file) in COMPLETIONS {
        let file = generated.join(file);
        let output = File::create(&file).with_context(|| format!("create {}", file.display()))?;
        cargo::check(Command::new(steer).args(["completions", shell]).stdout(output))?;
    }
    Ok(())
}

/// The command line is the same for all processors.
fn copy_generated(from: &Path, to: &Path) -> Result<()> {
    recreate(to)?;
    cargo::check(Command::new("cp").args(["--recursive", "--no-target-directory"]).args([from, to]))
}
