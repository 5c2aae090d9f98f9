//! Packages of Debian's suites, mainly kernels: apt downloads them from this machine's mirror, and they are unpacked.
//!
//! **Invariant**: nothing is installed, and apt's own state is not changed: sources, lists and cache are in a separate directory.
//! This file names no mirror.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cargo,
    dist::{arch::Arch, recreate},
};

/// Unpacks the newest kernel of a suite, with its modules, into `unpacked`.
pub(super) fn unpack_kernel(suite: &str, arch: Arch, flavour: &str, state: &Path, unpacked: &Path) -> Result<()> {
    let apt = Apt::new(suite, Some(arch), state)?;
    eprintln!("vm: downloading the newest {flavour} kernel of {suite}");
    cargo::check(apt.command("apt-get").arg("update"))?;
    let image = apt.dependencies(&format!("linux-image-{flavour}"))?;
    let image = image.into_iter().find(|name| is_versioned(name, &["linux-image-"]));
    let image =
        image.with_context(|| format!("{suite} has no package linux-image-{flavour} that depends on a kernel"))?;
    // Since 7.x, the image package is empty and depends on the packages with the files.
    let mut packages = apt.dependencies(&image)?;
    packages.retain(|name| is_versioned(name, &["linux-binary-", "linux-modules-", "linux-base-"]));
    if packages.is_empty() {
        packages.push(image);
    }

    recreate(unpacked)?;
    apt.unpack(&packages, &state.join("download").join(flavour), unpacked)
}

/// Unpacks a package of a suite into `unpacked`, and keeps the files there.
pub(crate) fn unpack_package(suite: &str, package: &str, state: &Path, unpacked: &Path) -> Result<()> {
    let apt = Apt::new(suite, None, state)?;
    eprintln!("setup: downloading {package} of {suite}");
    cargo::check(apt.command("apt-get").arg("update"))?;
    fs::create_dir_all(unpacked).with_context(|| format!("create {}", unpacked.display()))?;
    apt.unpack(&[package.to_owned()], &state.join("download").join(package), unpacked)
}

/// Unpacks packages of this machine's own suite for a processor, with all that they depend on, into an empty directory.
pub(super) fn unpack_programs(packages: &[&str], arch: Arch, state: &Path, unpacked: &Path) -> Result<()> {
    let apt = Apt::new(&own_suite()?, Some(arch), state)?;
    eprintln!("vm: downloading {} for {}", packages.join(", "), arch.name());
    cargo::check(apt.command("apt-get").arg("update"))?;
    recreate(&state.join("cache/archives/partial"))?;
    let mut download = apt.command("apt-get");
    download.args(["install", "--download-only", "--no-install-recommends", "--yes"]).args(packages);
    cargo::check(download.stdout(Stdio::null()))?;
    recreate(unpacked)?;
    unpack_all(&state.join("cache/archives"), unpacked)
}

/// Makes a minimal root file system of a suite with these packages, in an empty directory. Needs root, and debootstrap.
pub(crate) fn debootstrap(suite: &str, packages: &[&str], root: &Path) -> Result<()> {
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.arg("--variant=minbase");
    if !packages.is_empty() {
        debootstrap.arg(format!("--include={}", packages.join(",")));
    }
    cargo::check(debootstrap.arg(suite).arg(root).arg(mirror()?).stdout(Stdio::null()))
}

/// The mirror of this machine's own Debian release, for other ways of downloading.
fn mirror() -> Result<String> {
    let uris = own_source()?.uris;
    Ok(uris.split_whitespace().next().unwrap_or_default().to_owned())
}

/// An apt with one suite and its own state.
struct Apt {
    state: PathBuf,
    sources: PathBuf,
    /// The processor; none: this machine's.
    arch: Option<Arch>,
}

impl Apt {
    fn new(suite: &str, arch: Option<Arch>, state: &Path) -> Result<Self> {
        let source = own_source()?;
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = state.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let apt = Self { state: state.to_owned(), sources: state.join("debian.sources"), arch };
        let Source { uris, signed_by, .. } = source;
        let signed_by = signed_by.map_or_else(String::new, |key| format!("Signed-By: {key}\n"));
        let text = format!("Types: deb\nURIs: {uris}\nSuites: {suite}\nComponents: main\n{signed_by}");
        for (path, text) in [(apt.sources.clone(), text.as_str()), (state.join("status"), "")] {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(apt)
    }

    /// A program of apt with this state, quiet, and with the machine's other settings, such as proxies.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq");
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.sources.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::Etc::preferences", Path::new("/dev/null")),
            ("Dir::Etc::preferencesparts", Path::new("/dev/null")),
            ("Dir::State::Lists", &self.state.join("lists")),
            ("Dir::State::status", &self.state.join("status")),
            ("Dir::Cache", &self.state.join("cache")),
            ("Acquire::Languages", Path::new("none")),
            // Other indexes, which the machine fetches for other front ends.
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false")),
            ("Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled", Path::new("false")),
            // apt's unprivileged user may not write here.
            ("APT::Sandbox::User", Path::new("root")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        if let Some(arch) = self.arch.filter(|arch| !arch.is_host()) {
            for option in ["APT::Architecture", "APT::Architectures"] {
                command.arg("-o").arg(format!("{option}={}", arch.name()));
            }
        }
        command
    }

    /// Downloads packages to a directory that is emptied before and after, and unpacks them.
    fn unpack(&self, packages: &[String], downloads: &Path, unpacked: &Path) -> Result<()> {
        recreate(downloads)?;
        cargo::check(self.command("apt-get").arg("download").args(packages).current_dir(downloads))?;
        unpack_all(downloads, unpacked)?;
        recreate(downloads)
    }

    /// The names a package depends on.
    fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let output = command.args(["show", "--no-all-versions", package]).output().context("start apt-cache")?;
        let record = String::from_utf8_lossy(&output.stdout);
        Ok(record.lines().filter_map(|line| line.strip_prefix("Depends: ")).flat_map(names).collect())
    }
}

/// Unpacks all packages in a directory.
fn unpack_all(packages: &Path, unpacked: &Path) -> Result<()> {
    let list = || format!("list {}", packages.display());
    for entry in fs::read_dir(packages).with_context(list)? {
        let package = entry.with_context(list)?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            cargo::check(Command::new("dpkg-deb").arg("--extract").arg(package).arg(unpacked))?;
        }
    }
    Ok(())
}

/// Parses `a (>= 1), b | c`.
fn names(depends: &str) -> Vec<String> {
    let name = |item: &str| item.split_whitespace().next().map(str::to_owned);
    depends.split([',', '|']).filter_map(name).collect()
}

/// Whether a name is one of these prefixes followed by a version.
fn is_versioned(name: &str, prefixes: &[&str]) -> bool {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// A source of packages.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uris: String,
    suites: Vec<String>,
    components: Vec<String>,
    /// A file, or a key with its continuation lines.
    signed_by: Option<String>,
}

/// The suite of this machine.
fn own_suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let field = |name: &str| release.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"')));
    ensure!(
        field("ID=") == Some("debian"),
        "this machine does not run Debian, so it has no source of Debian's packages; for a kernel, give the file \
         of its image, `--kernel FILE`"
    );
    Ok(field("VERSION_CODENAME=").context("/etc/os-release has no VERSION_CODENAME")?.to_owned())
}

/// The source of this machine's own Debian release.
fn own_source() -> Result<Source> {
    let codename = own_suite()?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list"), "/etc/apt/sources.list.d/debian.sources".into()];
    let mut others: Vec<_> =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    others.sort();
    files.extend(others);
    files
        .iter()
        .filter_map(|file| Some((file, fs::read_to_string(file).ok()?)))
        .flat_map(|(file, text)| match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => stanzas(&text),
            Some("list") => one_liners(&text),
            _ => Vec::new(),
        })
        .find(|source| source.suites.contains(&codename) && source.components.contains(&"main".to_owned()))
        .with_context(|| format!("apt has no source of the suite {codename}"))
}

/// Parses a file in the format of deb822(5).
fn stanzas(text: &str) -> Vec<Source> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Option<Source> {
    let field = |name: &str| {
        let (at, value) = lines.iter().enumerate().find_map(|(at, line)| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| (at, value.trim().to_owned()))
        })?;
        let further = lines[at + 1..].iter().take_while(|line| line.starts_with([' ', '\t']));
        Some(further.fold(value, |value, line| format!("{value}\n{line}")))
    };
    let words =
        |name: &str| -> Option<Vec<String>> { Some(field(name)?.split_whitespace().map(str::to_owned).collect()) };
    let serves = words("Types")?.contains(&"deb".to_owned()) && field("Enabled").as_deref() != Some("no");
    serves.then_some(())?;
    Some(Source {
        uris: words("URIs")?.join(" "),
        suites: words("Suites")?,
        components: words("Components")?,
        signed_by: field("Signed-By"),
    })
}

/// Parses a file of lines `deb [signed-by=FILE] URI SUITE COMPONENT...`.
fn one_liners(text: &str) -> Vec<Source> {
    let source = |line: &str| {
        let line = line.trim().strip_prefix("deb")?;
        let (options, rest) = match line.trim_start().strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", line.strip_prefix(char::is_whitespace)?),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Source {
            uris: words.next()?,
            suites: vec![words.next()?],
            components: words.collect(),
            signed_by: options
                .split_whitespace()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(str::to_owned),
        })
    };
    text.lines().filter_map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_are_read() {
        let stanza = "# of the installer\nTypes: deb\n# elsewhere: x\nURIs: http://mirror.test/debian\n\
                      Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /k.gpg\n\n\
                      Types: deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm\nComponents: main\n\n\
                      Enabled: no\nTypes: deb\nURIs: u\nSuites: s\nComponents: c\n";
        let line = "# deb http://old.test x main\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib\n\
                    deb-src http://mirror.test/debian bookworm main\n";
        let source = |suites: &[&str]| Source {
            uris: "http://mirror.test/debian".to_owned(),
            suites: suites.iter().map(ToString::to_string).collect(),
            components: vec!["main".to_owned(), "contrib".to_owned()],
            signed_by: Some("/k.gpg".to_owned()),
        };
        assert_eq!(stanzas(stanza), [source(&["bookworm", "bookworm-updates"])]);
        assert_eq!(one_liners(line), [source(&["bookworm"])]);
    }

    #[test]
    fn a_key_in_the_source_is_kept_completely() {
        let text = "Types: deb\nURIs: u\nSuites: s\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc=\n";
        assert_eq!(stanzas(text)[0].signed_by.as_deref(), Some("\n -----BEGIN\n .\n abc="));
    }

    #[test]
    fn the_packages_of_a_kernel_are_recognized() {
        let depends = "kmod, linux-base (>= 4.3~), linux-binary-7.3.4-amd64 (= 1) | x";
        assert_eq!(names(depends), ["kmod", "linux-base", "linux-binary-7.3.4-amd64", "x"]);
        assert!(is_versioned("linux-binary-7.3.4-amd64", &["linux-binary-", "linux-base-"]));
        assert!(!is_versioned("linux-base", &["linux-base-"]));
        assert!(!is_versioned("linux-image-amd64", &["linux-image-"]));
    }
}
