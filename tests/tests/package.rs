//! The Debian package: dpkg installs, upgrades (under load), removes and purges it on a machine with systemd.

use std::{fs, path::PathBuf, process::Command};

use anyhow::ensure;
use steer_tests::{Bed, Machine, NotHere, Outcome, Spy, check_uninterrupted, output};

use crate::{Test, systemd::Client};

pub(crate) const TESTS: &[Test] = &[
    ("installs_and_starts", installs_and_starts),
    ("steers_on_while_it_is_upgraded", steers_on_while_it_is_upgraded),
    ("leaves_nothing_behind", leaves_nothing_behind),
    ("an_operator_session", an_operator_session),
];

const CONFIG: &str = "[[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = [\"/guest\"]\n";

/// A machine with a copy of the package in the directory that it shares with the test.
fn machine(bed: &Bed) -> anyhow::Result<(Machine, PathBuf)> {
    let Some(package) = std::env::var_os("STEER_DEB") else {
        return Err(
            NotHere("STEER_DEB names no package; `cargo xtask setup --ci` installs what makes one".into()).into()
        );
    };
    if fs::exists("/usr/bin/steer")? {
        return Err(NotHere("steer is installed on this machine already".into()).into());
    }
    let copy = bed.directory.join("steer.deb");
    fs::copy(package, &copy)?;
    Ok((Machine::boot(bed)?, copy))
}

fn dpkg(machine: &Machine, arguments: &[&str]) -> anyhow::Result<String> {
    machine.succeed(&[&["dpkg", "--no-triggers"], arguments].concat())
}

fn install(machine: &Machine, package: &std::path::Path) -> Outcome {
    dpkg(machine, &["--install", &package.to_string_lossy()])?;
    Ok(())
}

fn installs_and_starts() -> Outcome {
    let bed = Bed::new("package-install")?;
    let (machine, package) = machine(&bed)?;
    install(&machine, &package)?;
    ensure!(machine.succeed(&["systemctl", "is-active", "steer"])? == "active\n");
    ensure!(machine.succeed(&["systemctl", "is-enabled", "steer"])? == "enabled\n");
    machine.succeed(&["systemd-analyze", "verify", "steer.service"])?;
    // Only hosts with containers start the plugin for containers.
    ensure!(machine.run(&["systemctl", "is-enabled", "steer-nri"])?.stdout == "disabled\n");
    // It steers nothing until it is configured, and then at once.
    let guest = machine.cgroup("guest")?;
    ensure!(machine.status()?["policies"].as_array().is_some_and(Vec::is_empty));
    bed.check_unsteered(Some(&guest))?;
    machine.write("/etc/steer/steer.toml", CONFIG)?;
    machine.succeed(&["systemctl", "reload", "steer"])?;
    bed.check_steered(&guest, 1)?;
    let package_files = machine.succeed(&["dpkg", "--listfiles", "steer"])?;
    for file in [
        "man8/steer.8.gz",
        "man8/steer-unit.8.gz",
        "man5/steer.toml.5.gz",
        "completions/steer",
        "_steer",
        "steer.fish",
        "/usr/share/containers/oci/hooks.d/steer.json",
    ] {
        ensure!(package_files.contains(file), "no {file} in {package_files}");
    }
    // In a cgroup of the machine: the processes that the test starts in it are outside of its cgroup namespace.
    let unit = "[Service]\nType=oneshot\nExecStart=/usr/libexec/steer/steer-demo\n";
    fs::write(machine.path("/etc/systemd/system/demo.service"), unit)?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemctl", "start", "demo.service"])?;
    Ok(())
}

fn steers_on_while_it_is_upgraded() -> Outcome {
    let bed = Bed::new("package-upgrade")?;
    let (machine, package) = machine(&bed)?;
    install(&machine, &package)?;
    let guest = machine.cgroup("guest")?;
    machine.write("/etc/steer/steer.toml", CONFIG)?;
    machine.succeed(&["systemctl", "reload", "steer"])?;
    bed.check_steered(&guest, 1)?;
    let next = next_version(&bed, &package)?;
    let daemon = machine.property("steer", "MainPID")?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    let load = bed.load(&guest)?;
    install(&machine, &next)?;
    // The same once more, and then a downgrade.
    install(&machine, &next)?;
    install(&machine, &package)?;
    let report = load.stop()?;
    spy.saw_nothing()?;
    check_uninterrupted(&report)?;
    ensure!(machine.property("steer", "MainPID")? != daemon, "the new version was not started");
    ensure!(fs::read_to_string(machine.path("/etc/steer/steer.toml"))? == CONFIG);
    bed.check_steered(&guest, 1)
}

/// The same package with a higher version.
fn next_version(bed: &Bed, package: &std::path::Path) -> anyhow::Result<PathBuf> {
    let (tree, next) = (bed.directory.join("tree"), bed.directory.join("next.deb"));
    let unpacked = output(Command::new("dpkg-deb").arg("--raw-extract").args([package, &tree]))?;
    ensure!(unpacked.code == 0, "{unpacked:?}");
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text.lines().find(|line| line.starts_with("Version: ")).unwrap_or_default();
    fs::write(&control, text.replace(version, &format!("{version}+next")))?;
    let packed =
        output(Command::new("dpkg-deb").args(["-Znone", "--root-owner-group", "--build"]).args([&tree, &next]))?;
    ensure!(packed.code == 0, "{packed:?}");
    Ok(next)
}

fn leaves_nothing_behind() -> Outcome {
    let bed = Bed::new("package-remove")?;
    let (machine, package) = machine(&bed)?;
    install(&machine, &package)?;
    let guest = machine.cgroup("guest")?;
    machine.write("/etc/steer/steer.toml", CONFIG)?;
    machine.succeed(&["systemctl", "reload", "steer"])?;
    machine.succeed(&["steer", "unit", "other", "--policy", "second", "--force"])?;
    bed.check_steered(&guest, 1)?;

    let said = dpkg(&machine, &["--remove", "steer"])?;
    ensure!(said.contains("no longer steered:") && said.contains("/guest (second)"), "{said}");
    ensure!(!said.contains("steers again at the next boot"), "{said}");
    bed.check_unsteered(Some(&guest))?;
    ensure!(!machine.path("/sys/fs/bpf/steer").exists() && !machine.path("/run/steer").exists());
    // The configuration survives a removal.
    install(&machine, &package)?;
    bed.check_steered(&guest, 1)?;

    dpkg(&machine, &["--purge", "steer"])?;
    bed.check_unsteered(Some(&guest))?;
    nothing_left(&bed, &machine)
}

/// Nothing of steer is left in the machine's state directories.
fn nothing_left(bed: &Bed, machine: &Machine) -> Outcome {
    let places = ["/run", "/sys/fs/bpf", "/sys/fs/cgroup", "/dev/shm"];
    let shared = bed.directory.to_string_lossy().into_owned();
    let left = machine.succeed(
        &[
            &["find"],
            &places[..],
            &["-path", &format!("/run/changed{shared}"), "-prune", "-o", "-iname", "*steer*", "-print"],
        ]
        .concat(),
    )?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// From a new machine to a steered and monitored one, and back. Every step uses what the package has installed.
fn an_operator_session() -> Outcome {
    let bed = Bed::new("package-operator")?;
    let (machine, package) = machine(&bed)?;
    install(&machine, &package)?;
    let (guest, other) = (machine.cgroup("guest")?, machine.cgroup("other")?);
    let curl = |arguments: &[&str]| {
        machine
            .succeed(&[&["curl", "--silent", "--fail", "--unix-socket", "/run/steer/steer.sock"], arguments].concat())
    };
    machine.succeed(&["steer", "policy", "set", "second", "--interface", "a1", "--cgroup", "/guest"])?;
    bed.check_steered(&guest, 1)?;
    let first = r#"{"interface": "a0", "cgroups": ["/other"]}"#;
    curl(&["-X", "PUT", "http://steer/v1/policies/first", "-d", first])?;
    bed.check_steered(&other, 0)?;

    let client = Client::install(&bed, &machine, "")?;
    machine.succeed(&["steer", "unit", "client", "--policy", "second"])?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    client.check_steered(&bed, &machine, 1)?;

    let top = machine.succeed(&["steer", "top", "--count", "1", "--interval", "0.1"])?;
    ensure!(top.contains("second") && top.contains("/guest") && top.contains("a1 ("), "{top}");
    let explained = machine.succeed(&["steer", "explain", "/guest"])?;
    ensure!(explained.contains("second") && explained.contains("a1"), "{explained}");
    let metrics = curl(&["http://steer/metrics"])?;
    let present = "steer_uplink_present{interface=\"a1\",origin=\"config\",policy=\"second\"} 1";
    ensure!(metrics.lines().any(|line| line == present), "{metrics}");

    bed.net.remove_uplink(1)?;
    bed.check_closed(&guest)?;
    let examined = machine.run(&["steer", "doctor"])?;
    ensure!(examined.code == 1 && examined.stdout.contains("a1"), "{examined:?}");

    dpkg(&machine, &["--purge", "steer"])?;
    bed.check_unsteered(Some(&guest))?;
    bed.check_unsteered(Some(&other))?;
    ensure!(!machine.path("/etc/steer").exists() && !machine.path("/etc/systemd/system/client.service.d").exists());
    nothing_left(&bed, &machine)
}
