//! Each fault that `steer doctor` knows is created in a bed. The doctor finds only that fault, and the printed command
//! repairs it.

pub(crate) mod cgroups;
pub(crate) mod namespaces;
pub(crate) mod pins;
pub(crate) mod routes;
pub(crate) mod sockets;
pub(crate) mod uplinks;

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use steer_tests::{Bed, Cgroup, Outcome, User, output};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_healthy_host", a_healthy_host),
    ("resolvers_on_this_host", resolvers_on_this_host),
    ("a_wrong_configuration", a_wrong_configuration),
    ("without_privilege", without_privilege),
];

const CONFIG: &str = "[[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@\"]\n";

fn attached_bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    bed.is_healthy()?;
    Ok(bed)
}

fn a_healthy_host() -> Outcome {
    let bed = Bed::new("doctor-well")?;
    // Nothing is steered.
    bed.is_healthy()?;
    let inner = bed.cgroup.child("inner")?;
    bed.succeed(&["attach", inner.path(), "-i", "a0", "--dns", "203.0.113.53"])?;
    bed.is_healthy()?;
    let _daemon = bed.daemon(CONFIG)?;
    bed.is_healthy()?;
    let _client = idle(&bed, &bed.cgroup, Stdio::null())?;
    let said = bed.doctor(&[])?;
    let checks = said.json["checks"].as_array().context("no checks")?;
    let status =
        |id: &str| checks.iter().filter(|check| check["id"] == id).map(|check| &check["status"]).collect::<Vec<_>>();
    for id in
        ["capabilities", "kernel", "cgroup2", "pins", "daemon", "attachment", "ipv4-route", "older-sockets", "nscd"]
    {
        ensure!(!status(id).is_empty() && status(id).iter().all(|status| *status == "ok"), "{id}: {:#?}", said.json);
    }
    let text = bed.doctor_text(&[])?;
    // What the strict policy does not cover on this kernel is a warning.
    let uncovered = bed.not_covered()?.is_some();
    ensure!(text.code == i32::from(uncovered) && text.stdout.contains(" checks, "), "{text:?}");
    ensure!(text.stdout.contains("warning: lsm-bpf: ") == uncovered, "{text:?}");
    let others = text.stdout.replace("warning: lsm-bpf: ", "");
    ensure!(!others.contains("error: ") && !others.contains("warning: "), "{text:?}");
    ensure!(bed.doctor_text(&["--nonsense"])?.code == 2);
    Ok(())
}

fn resolvers_on_this_host() -> Outcome {
    let bed = attached_bed("doctor-names")?;
    fs::write(bed.machine_file("resolv.conf"), "nameserver 127.0.0.53\n")?;
    let finding = bed.only_finding("local-resolver")?;
    ensure!(finding.text("what").contains("127.0.0.53") && finding.advice()?.contains("--dns RESOLVER"), "{finding:?}");
    // A resolver of the other family does not help.
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--dns", "2001:db8::53"])?;
    bed.only_finding("local-resolver")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--dns", "203.0.113.53"])?;
    bed.is_healthy()?;

    let nsswitch = bed.machine_file("nsswitch.conf");
    for (before, after) in [
        ("hosts: mymachines resolve [!UNAVAIL=return] files dns\n", "hosts: mymachines files dns\n"),
        ("passwd: files\nhosts: files resolve dns\n", "passwd: files\nhosts: files dns\n"),
    ] {
        fs::write(&nsswitch, before)?;
        let finding = bed.only_finding("nss-resolve")?;
        // The file is a mount point here, which sed cannot replace.
        let file = nsswitch.display().to_string();
        ensure!(bed.run_in_a_shell(&finding.command()?.replace("/etc/nsswitch.conf", &file))?);
        ensure!(fs::read_to_string(&nsswitch)? == after, "{:?}", fs::read_to_string(&nsswitch)?);
        bed.is_healthy()?;
    }

    let nscd = bed.machine_file("run").join("nscd");
    fs::create_dir_all(&nscd)?;
    fs::write(nscd.join("socket"), "")?;
    let finding = bed.only_finding("nscd")?;
    ensure!(finding.command()?.ends_with("/etc/nscd.conf && systemctl restart nscd"), "{finding:?}");
    let config = bed.directory.join("nscd.conf");
    fs::write(&config, "\tenable-cache\t\thosts\t\tyes\n\tenable-cache passwd yes\n")?;
    let command = finding.command()?.replace("/etc/nscd.conf", &config.display().to_string());
    bed.run_in_a_shell(command.trim_end_matches(" && systemctl restart nscd"))?;
    let written = fs::read_to_string(&config)?;
    ensure!(written == "\tenable-cache\t\thosts\t\tno\n\tenable-cache passwd yes\n", "{written}");
    fs::remove_dir_all(&nscd)?;
    bed.is_healthy()
}

/// A process of a test. On drop, it is ended.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An idle process in a cgroup, with this standard input.
fn idle(bed: &Bed, cgroup: &Cgroup, stdin: Stdio) -> anyhow::Result<Process> {
    let mut command = Command::new("sleep");
    bed.place(&mut command, Some(cgroup), User::Root);
    Ok(Process(command.arg("1000").stdin(stdin).spawn()?))
}

fn a_wrong_configuration() -> Outcome {
    let bed = Bed::new("doctor-config")?;
    bed.write_config("[[policy]]\nname = 1\n")?;
    let finding = bed.only_finding("configuration")?;
    let file = bed.config_file().display().to_string();
    ensure!(
        finding.json["subject"]["file"] == file && finding.text("what").contains(&format!("{file}:2:8")),
        "{finding:?}"
    );
    ensure!(finding.advice()?.contains(&format!("{} check --config {file}", bed.steer_words())), "{finding:?}");
    bed.write_config("")?;
    bed.is_healthy()?;
    // A file that was named explicitly must exist.
    let missing = bed.run(&["doctor", "--config", "/nonexistent.toml"])?;
    ensure!(missing.code == 1 && missing.stdout.contains("error: configuration: /nonexistent.toml"), "{missing:?}");
    Ok(())
}

fn without_privilege() -> Outcome {
    let bed = Bed::new("doctor-nobody")?;
    let steer = bed.directory.join("steer");
    steer_tests::copy_program(&steer_tests::binary("STEER_BIN", "steer"), &steer)?;
    bed.write_config(CONFIG)?;
    bed.net.client.write_sysctl("net/ipv4/conf/a1/rp_filter", "1")?;
    let mut command = Command::new(steer);
    bed.place(&mut command, None, User::Nobody);
    let said = output(command.args(["doctor", "--fix", "--config"]).arg(bed.config_file()))?;
    ensure!(said.code == 1 && said.stdout.contains("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{said:?}");
    ensure!(said.stdout.contains("sudo steer doctor"), "{said:?}");
    // What needs none is looked at.
    ensure!(said.stdout.contains("could not repair reverse-path-filter: uplink a1: "), "{said:?}");
    Ok(())
}
