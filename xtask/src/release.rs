//! `cargo xtask release VERSION`: the version and the changelog, a commit, all checks, the packages, and a tag.
//!
//! **Invariant**: the tag comes last, and names what passed. It publishes nothing and signs nothing: the key is elsewhere.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo;

const CURRENT: &str = env!("CARGO_PKG_VERSION");
const UNRELEASED: &str = "## Unreleased\n";

/// Write the version and the changelog, commit, check, pack and tag.
#[derive(clap::Args)]
pub(crate) struct Release {
    /// The new version, such as 0.2.0.
    version: String,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl Release {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let version = &self.version;
        ensure!(
            numbers(version)? > numbers(CURRENT)?,
            "{version} is not later than {CURRENT}, the version in Cargo.toml"
        );
        let tag = format!("v{version}");
        ensure!(printed(&["tag", "--list", &tag])?.is_empty(), "the tag {tag} exists");
        let changed = printed(&["status", "--porcelain"])?;
        ensure!(self.dry_run || changed.is_empty(), "files are not committed:\n{changed}");
        let date = printed(&["log", "-1", "--format=%cs"])?;

        let edits = [
            ("Cargo.toml", bumped as fn(&str, &str, &str) -> Result<String>),
            ("CHANGELOG.md", changelog),
            ("docs/daemonset.yaml", manifest),
        ];
        let mut files = Vec::new();
        for (name, edit) in edits {
            let file = cargo::root().join(name);
            let text = fs::read_to_string(&file).with_context(|| format!("read {name}"))?;
            files.push((name, file, edit(&text, version, date.trim()).with_context(|| format!("change {name}"))?));
        }
        let steps: [&[&str]; 3] = [&["xtask", "lint"], &["xtask", "test"], &["xtask", "dist", "--check"]];
        if self.dry_run {
            for (name, _, _) in &files {
                println!("would change {name}");
            }
            println!("would commit that as \"steer {version}\"");
            for step in steps {
                println!("would run cargo {}", step.join(" "));
            }
            println!("would tag {tag}");
            return Ok(ExitCode::SUCCESS);
        }
        self.write(&files)?;
        for step in steps {
            // A new process, because the version is compiled into xtask.
            cargo::check(cargo::cargo([]).args(step)).with_context(|| {
                format!(
                    "steer {version} is committed and not tagged: repair it, or go back with `git reset --keep HEAD~`"
                )
            })?;
        }
        cargo::check(&mut git(&["tag", "--annotate", &tag, "--message", &format!("steer {version}")]))?;
        println!("tagged {tag}; to sign target/dist/SHA256SUMS and to publish, see docs/releases.md");
        Ok(ExitCode::SUCCESS)
    }

    /// Writes the files, and commits them.
    fn write(&self, files: &[(&str, PathBuf, String)]) -> Result<()> {
        for (name, file, text) in files {
            fs::write(file, text).with_context(|| format!("write {name}"))?;
        }
        cargo::check(&mut cargo::cargo(["update", "--workspace", "--offline", "--quiet"]))?;
        cargo::check(&mut git(&["commit", "--quiet", "--all", "--message", &format!("steer {}", self.version)]))
    }
}

/// A version as numbers.
fn numbers(version: &str) -> Result<[u64; 3]> {
    let parts: Vec<_> = version.split('.').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
    parts.try_into().ok().with_context(|| format!("{version:?} is not a version such as 0.2.0"))
}

/// Cargo.toml with the version of the workspace.
fn bumped(text: &str, version: &str, _: &str) -> Result<String> {
    replaced(text, &format!("\nversion = \"{CURRENT}\"\n"), &format!("\nversion = \"{version}\"\n"))
}

/// The changelog in which what was unreleased has the version and the date.
fn changelog(text: &str, version: &str, date: &str) -> Result<String> {
    let (_, rest) = text.split_once(UNRELEASED).context("there is no heading \"## Unreleased\"")?;
    let section = rest.split("\n## ").next().unwrap_or_default();
    if !section.lines().any(|line| line.starts_with("- ")) {
        bail!("nothing is unreleased: users would read an empty list");
    }
    replaced(text, UNRELEASED, &format!("{UNRELEASED}\n## {version} - {date}\n"))
}

/// The manifest with the image of the version.
fn manifest(text: &str, version: &str, _: &str) -> Result<String> {
    let (old, new) = (format!("/steer:{CURRENT}\n"), format!("/steer:{version}\n"));
    ensure!(text.contains(&old), "it names no image of {CURRENT}");
    Ok(text.replace(&old, &new))
}

/// Replaces what must be there once.
fn replaced(text: &str, old: &str, new: &str) -> Result<String> {
    ensure!(text.matches(old).count() == 1, "{:?} is not there once", old.trim());
    Ok(text.replacen(old, new, 1))
}

fn git(arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(cargo::root());
    command
}

fn printed(arguments: &[&str]) -> Result<String> {
    let mut command = git(arguments);
    let output = command.output().context("start git")?;
    ensure!(output.status.success(), "`{}` failed: {}", cargo::display(&command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unreleased_gets_a_version() {
        let text = "# Changelog\n\n## Unreleased\n\n### Added\n\n- x\n\n## 0.0.1 - 2026-01-01\n\n- y\n";
        let new = changelog(text, "9.0.0", "2026-12-01").expect("a changelog");
        assert!(new.contains("## Unreleased\n\n## 9.0.0 - 2026-12-01\n\n### Added\n\n- x\n"), "{new}");
        assert!(changelog(&new, "9.1.0", "2026-12-02").is_err(), "an empty list was released");
    }

    #[test]
    fn only_a_later_version_is_one() {
        assert!(numbers("0.10.0").expect("a version") > numbers("0.9.9").expect("a version"));
        assert!(numbers("1.0").is_err() && numbers("v1.0.0").is_err() && numbers("1.0.0-rc1").is_err());
    }

    #[test]
    fn the_project_can_be_released() {
        let edits =
            [("Cargo.toml", bumped as fn(&str, &str, &str) -> Result<String>), ("docs/daemonset.yaml", manifest)];
        for (name, edit) in edits {
            let text = fs::read_to_string(cargo::root().join(name)).expect("a file");
            assert!(edit(&text, "9.0.0", "").expect(name).contains("9.0.0"), "{name}");
        }
    }
}
