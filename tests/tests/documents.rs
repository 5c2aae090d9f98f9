//! The documents: what they name exists, their configurations are valid, and the commands of the README do what it says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use libtest_mimic::Failed;
use steer_lab::{SERVER_V4, SERVER_V6, parse_outcomes, wait_for, wait_until};
use steer_tests::{Bed, Cgroup, Machine, Outcome, PATIENCE, Spy, User, check_outcomes, output};

use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("configurations_are_valid", configurations_are_valid), ("the_readme_as_printed", the_readme_as_printed)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The README, the architecture and the files of `docs`, with their paths from the root of the repository.
fn documents() -> std::io::Result<Vec<(String, String)>> {
    let mut paths = vec!["README.md".to_owned(), "ARCHITECTURE.md".to_owned()];
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_document = Path::new(&name).extension().is_some_and(|extension| extension == "md");
        paths.extend(is_document.then(|| format!("docs/{name}")));
    }
    paths.into_iter().map(|path| Ok((path.clone(), fs::read_to_string(root().join(&path))?))).collect()
}

/// Checks that every test in backticks, as `module::name`, is that of a test or the beginning of one, and that every link leads to a file.
pub(crate) fn check(tests: &[String]) -> Result<(), Failed> {
    let mut missing = Vec::new();
    for (document, text) in documents()? {
        let quoted = text.split('`').skip(1).step_by(2);
        let is_name =
            |word: &str| word.starts_with(char::is_alphabetic) && !word.contains([' ', '*', '.', '{', '(', '/']);
        // ARCHITECTURE.md names functions.
        let named = quoted.filter(|word| document != "ARCHITECTURE.md" && word.contains("::") && is_name(word));
        let unknown = named.filter(|word| !tests.iter().any(|test| test.starts_with(word)));
        missing.extend(unknown.map(|word| format!("{document}: the test {word}")));
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let directory = root().join(&document);
        let exists = |link: &str| directory.with_file_name(link).exists();
        let dead = links.filter(|link| !link.is_empty() && !link.contains("://") && !exists(link));
        missing.extend(dead.map(|link| format!("{document}: the file {link}")));
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("there is no {}", missing.join(", ")).into()) }
}

/// The blocks of a language, each with the heading that it is under.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<(&'t str, String)> {
    let (mut blocks, mut heading, mut fence) = (Vec::new(), "", None);
    for line in text.lines() {
        match (&mut fence, line.strip_prefix("```")) {
            (None, Some(opened)) => fence = Some((opened, String::new())),
            (None, None) if line.starts_with('#') => heading = line.trim_start_matches('#').trim(),
            (None, None) => {}
            (Some((opened, block)), Some(_)) => {
                let block = std::mem::take(block);
                blocks.extend((*opened == language).then_some((heading, block)));
                fence = None;
            }
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

fn configurations_are_valid() -> Outcome {
    let bed = Bed::new("documents")?;
    let mut checked = 0;
    for (document, text) in documents()? {
        for (heading, block) in blocks(&text, "toml") {
            bed.write_config(&block)?;
            let file = bed.config_file();
            bed.succeed(&["check", "--config", &file.to_string_lossy()])
                .with_context(|| format!("{document}, {heading}: {block}"))?;
            checked += 1;
        }
    }
    ensure!(checked > 10, "only {checked} configurations");
    Ok(())
}

/// The names of links in the README, with those of the bed.
const LINKS: [(&str, &str); 4] = [("eth0", "a0"), ("eth1", "a1"), ("wg0", "a1"), ("wwan0", "a1")];

/// A machine on which the README can be followed: with its services, its links, and a `curl` that asks the server of the bed.
struct Reader<'a> {
    bed: &'a Bed,
    machine: Machine,
    /// The reader's terminal.
    terminal: Cgroup,
    readme: String,
}

impl<'a> Reader<'a> {
    fn new(bed: &'a Bed) -> anyhow::Result<Self> {
        for (name, link) in LINKS {
            bed.net.client.add_altname(link, name)?;
        }
        let machine = Machine::boot(bed)?;
        machine.install("")?;
        let program = bed.client(None, User::Root)?.get_program().to_string_lossy().into_owned();
        let ask = format!("{program} {}", bed.everything().join(" "));
        for (command, script) in [("sudo", "exec \"$@\""), ("curl", &format!("exec {ask}"))] {
            let file = format!("/usr/bin/{command}");
            machine.run(&["rm", "-f", &file])?;
            machine.write(&file, &format!("#!/bin/sh\n{script}\n"))?;
            machine.succeed(&["chmod", "755", &file])?;
        }
        for service in ["transmission-daemon", "restic"] {
            let answers = Self::answers(bed, service);
            let file = answers.display();
            machine.write(
                &format!("/etc/systemd/system/{service}.service"),
                &format!(
                    "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh -c \
                     '{ask} > {file}.new; mv {file}.new {file}; exec sleep infinity'\n"
                ),
            )?;
        }
        machine.succeed(&["systemctl", "daemon-reload"])?;
        let terminal = machine.cgroup("terminal")?;
        Ok(Self { bed, machine, terminal, readme: fs::read_to_string(root().join("README.md"))? })
    }

    /// The file of what a service got to know.
    fn answers(bed: &Bed, service: &str) -> PathBuf {
        bed.directory.join(format!("{service}.json"))
    }

    /// The only configuration under a heading.
    fn configuration(&self, heading: &str) -> anyhow::Result<String> {
        let mut found = blocks(&self.readme, "toml").into_iter().filter(|(under, _)| *under == heading);
        found.next().map(|(_, block)| block).with_context(|| format!("no configuration under {heading:?}"))
    }

    /// Runs the commands under a heading, line by line. A comment that begins with "fails:" says that the command must. Returns what they
    /// print.
    fn run(&self, heading: &str) -> anyhow::Result<String> {
        let blocks = blocks(&self.readme, "sh").into_iter().filter(|(under, _)| *under == heading);
        let lines: Vec<_> =
            blocks.flat_map(|(_, block)| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        ensure!(!lines.is_empty(), "no commands under {heading:?}");
        let mut printed = String::new();
        for line in lines {
            let output = output(self.terminal.enter(&mut self.machine.command(&["sh", "-c", &line])))?;
            let must_fail = line.contains("# fails:");
            // The bed has no resolver, for example.
            let may_fail = line.ends_with("steer doctor");
            ensure!((output.code != 0) == must_fail || may_fail, "{line}: {output:?}\n{}", self.machine.journal()?);
            printed.push_str(&output.stdout);
        }
        Ok(printed)
    }

    /// Whether new sockets of the group get this member.
    fn uses_only(&self, interface: &str) -> anyhow::Result<bool> {
        let groups: serde_json::Value = serde_json::from_str(&self.machine.succeed(&["steer", "uplinks", "--json"])?)?;
        let members = groups[0]["members"].as_array().context("no members")?;
        let member = members.iter().find(|member| member["interface"] == interface).context("no such member")?;
        Ok(["ipv4", "ipv6"].iter().all(|family| member[*family]["share"].as_f64().is_some_and(|share| share > 99.0)))
    }

    /// Checks that a service that starts meanwhile sends by this uplink and no other.
    fn service_uses(&self, service: &str, uplink: u8, start: impl FnOnce() -> anyhow::Result<String>) -> Outcome {
        let mut spy = Spy::on(self.bed, &[self.bed.net.link(uplink)])?;
        start()?;
        let file = Self::answers(self.bed, service);
        let answers = wait_for("the answers of the service", PATIENCE, || fs::read_to_string(&file).ok())?;
        nothing_elsewhere(&mut spy)?;
        check_outcomes(&parse_outcomes(&answers)?, User::Root, uplink)
    }
}

/// Checks that nothing has left for the server by other links. The daemon's probes ask gateways.
fn nothing_elsewhere(spy: &mut Spy) -> Outcome {
    let mut packets = spy.take()?;
    packets.retain(|packet| packet.dst.is_some_and(|to| to == SERVER_V4 || to == SERVER_V6));
    ensure!(packets.is_empty(), "{packets:#?}");
    Ok(())
}

/// Installing is tested by `package::`, and the demonstration by `kernel::demo`.
fn the_readme_as_printed() -> Outcome {
    let bed = Bed::new("readme")?;
    let reader = Reader::new(&bed)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    check_outcomes(&parse_outcomes(&reader.run("One command")?)?, User::Root, 1)?;
    spy.saw_nothing()?;

    let vpn = "A service by the VPN only";
    reader.machine.write("/etc/steer/steer.toml", &reader.configuration(vpn)?)?;
    reader.service_uses("transmission-daemon", 1, || reader.run(vpn))?;

    // The bed has no server of a provider.
    let lines = reader
        .configuration("Two lines with failover")?
        .replace("\"dns:9.9.9.9\", \"dns:[2620:fe::fe]\"", "\"gateway\"");
    let both = [reader.configuration(vpn)?, lines].concat();
    reader.machine.write("/etc/steer/steer.toml", &both)?;
    reader.machine.succeed(&["systemctl", "reload", "steer"])?;
    wait_until("the first line to be used", PATIENCE, || reader.uses_only("eth0").unwrap_or_default())?;
    reader.service_uses("restic", 0, || reader.machine.succeed(&["systemctl", "start", "restic"]))?;

    let mut spy = Spy::on(&bed, &["a1"])?;
    let printed = reader.run("Verify")?;
    nothing_elsewhere(&mut spy)?;
    for word in ["internet", "transmission-daemon", "198.41.0.4", "checks"] {
        ensure!(printed.contains(word), "no {word} in {printed}");
    }
    Ok(())
}
