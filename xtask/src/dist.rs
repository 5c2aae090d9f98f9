//! `cargo xtask dist`: a Debian package, and a tarball of the same files: the binary, its unit, generated manual pages and
//! completions, a configuration that steers nothing, and the demonstration.
//!
//! **Invariant**: the packed files are built in the same run. Only `package.metadata.deb` of the agent says where files are installed.
//! No package replaces a file of the administrator: dpkg asks before it changes a file below `/etc`, and the tarball has none there.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{cargo, setup::Setup};

/// The shells, and the files that the package's metadata name.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "steer.bash"), ("zsh", "steer.zsh"), ("fish", "steer.fish")];

/// Makes the package and the tarball.
pub(crate) fn run() -> Result<()> {
    Setup::for_dist().run()?;
    let directory = cargo::target_directory()?.join("dist");
    recreate(&directory)?;
    let package = package(&directory, Profile::Release, &["--dbgsym"])?;
    let tarball = tarball(&package, &directory)?;
    println!("{}\n{}", package.display(), tarball.display());
    Ok(())
}

/// How the packed programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests: nothing is compiled twice.
    Dev,
    /// For users.
    Release,
}

/// Builds the agent and packs it, into an empty directory.
pub(crate) fn package(directory: &Path, profile: Profile, options: &[&str]) -> Result<PathBuf> {
    generate(profile)?;
    let mut deb = cargo::cargo(["deb", "--quiet", "--no-build", "--package", "steer", "--profile"]);
    deb.arg(if profile == Profile::Dev { "dev" } else { "release" }).arg("--output").arg(directory);
    cargo::check(deb.args(options).stdout(Stdio::null()))?;
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut packages = entries.flatten().map(|entry| entry.path());
    packages
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("cargo deb left no package in {}", directory.display()))
}

/// Builds the agent and the demonstration, and writes manual pages and completions to the paths that the package's metadata
/// name.
fn generate(profile: Profile) -> Result<()> {
    let targets = ["--bin", "steer", "--bin", "steer-demo", "--example", "man"];
    let built = if profile == Profile::Dev { cargo::programs(&targets) } else { cargo::release(&targets) }?;
    let (steer, man) = (cargo::binary(&built, "steer")?, cargo::binary(&built, "man")?);
    let generated = steer.parent().context("the binary is in no directory")?.join("dist");
    let pages = generated.join("man");
    recreate(&pages)?;
    cargo::check(Command::new(&man).arg(&pages))?;
    for page in fs::read_dir(&pages).with_context(|| format!("list {}", pages.display()))?.flatten() {
        cargo::check(Command::new("gzip").args(["-9", "--no-name"]).arg(page.path()))?;
    }
    for (shell, file) in COMPLETIONS {
        let file = generated.join(file);
        let output = File::create(&file).with_context(|| format!("create {}", file.display()))?;
        cargo::check(Command::new(&steer).args(["completions", shell]).stdout(output))?;
    }
    Ok(())
}

/// Packs the files of a package in a tarball, for other systems than Debian, below a top directory.
fn tarball(package: &Path, directory: &Path) -> Result<PathBuf> {
    let name = format!("steer-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let tree = directory.join(&name);
    cargo::check(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree))?;
    // tar(1) would replace a changed configuration.
    let (etc, share) = (tree.join("etc"), tree.join("usr/share/steer"));
    fs::rename(etc.join("steer"), &share).with_context(|| format!("move {} to {}", etc.display(), share.display()))?;
    fs::remove_dir(&etc).with_context(|| format!("{} has files that the tarball would replace", etc.display()))?;
    let tarball = directory.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--sort=name", "--owner=root:0", "--group=root:0"]);
    cargo::check(tar.arg("--file").arg(&tarball).arg("--directory").arg(directory).arg(&name))?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    Ok(tarball)
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

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::{recreate, tarball};

    #[test]
    fn the_tarball_replaces_no_configuration() {
        let directory = std::env::temp_dir().join(format!("steer-test-{}-dist", std::process::id()));
        let tree = directory.join("tree");
        recreate(&tree).expect("a directory");
        for (file, text) in [
            ("DEBIAN/control", "Package: steer\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"),
            ("etc/steer/steer.toml", "# nothing\n"),
            ("usr/share/doc/steer/README.md", ""),
        ] {
            let file = tree.join(file);
            fs::create_dir_all(file.parent().expect("its directory")).expect("a directory");
            fs::write(file, text).expect("a file");
        }
        let package = directory.join("steer.deb");
        let packed =
            Command::new("dpkg-deb").args(["-Znone", "--root-owner-group", "--build"]).args([&tree, &package]).output();
        if packed.is_err() {
            eprintln!("skipped: dpkg-deb is not installed");
        } else {
            let tarball = tarball(&package, &directory).expect("a tarball");
            let listed = Command::new("tar").arg("--list").arg("--file").arg(tarball).output().expect("a list");
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(listed.contains("/usr/share/steer/steer.toml\n") && !listed.contains("/etc/"), "{listed}");
        }
        fs::remove_dir_all(directory).expect("removed");
    }
}
