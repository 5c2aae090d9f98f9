//! Processes of steered cgroups in other network namespaces: how many are not steered, and the way of their traffic.

use std::{
    os::fd::AsFd as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use steer_lab::Netns;
use steer_tests::{Bed, Cgroup, Outcome, User};

use super::Process;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_namespace_with_links", a_namespace_with_links),
    ("a_namespace_behind_a_process", a_namespace_behind_a_process),
];

fn asleep(netns: &Netns, cgroup: &Cgroup) -> anyhow::Result<Process> {
    let mut command = Command::new("sleep");
    netns.enter(cgroup.enter(&mut command));
    Ok(Process(command.arg("1000").stdin(Stdio::null()).spawn()?))
}

/// The processes elsewhere, as `status` and `explain` report them.
fn elsewhere(bed: &Bed, policy: &str, cgroup: &Cgroup) -> anyhow::Result<Value> {
    let status = bed.policy(policy)?;
    let cgroups = status["cgroups"].as_array().context("no cgroups")?;
    let found = cgroups.iter().find(|found| found["path"] == cgroup.path()).context("not attached")?;
    let said: Value = serde_json::from_str(&bed.succeed(&["explain", cgroup.path(), "--json"])?)?;
    ensure!(said["elsewhere"] == found["elsewhere"], "{said:#} {found:#}");
    Ok(found["elsewhere"].clone())
}

fn a_namespace_with_links() -> Outcome {
    let bed = Bed::new("doctor-elsewhere")?;
    let (below, inner) = (bed.cgroup.child("below")?, bed.cgroup.child("inner")?);
    for (enforce, severity) in [("strict", "error"), ("steer", "warning")] {
        bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--enforce", enforce])?;
        bed.succeed(&["attach", inner.path(), "-i", "none"])?;
        let _held = super::idle(&bed, &below, Stdio::null())?;
        let _exempt = asleep(&bed.net.server, &inner)?;
        bed.is_healthy()?;
        let (first, _second) = (asleep(&bed.net.server, &bed.cgroup)?, asleep(&bed.net.server, &below)?);
        let found = elsewhere(&bed, "a1", &bed.cgroup)?;
        let [found] = found.as_array().map(Vec::as_slice).context("no list")? else { anyhow::bail!("{found:#}") };
        let links = json!([bed.net.server_link(0), bed.net.server_link(1)]);
        ensure!(found["processes"] == 2 && found["pid"] == first.0.id() && found["leaves"] == true, "{found:#}");
        ensure!(found["way"] == json!({"kind": "links", "interfaces": links, "pairs": true}), "{found:#}");
        let finding = bed.only_finding("other-netns")?;
        ensure!(finding.text("severity") == severity, "{finding:?}");
        ensure!(finding.json["subject"]["cgroup"] == bed.cgroup.path(), "{finding:?}");
        ensure!(finding.text("what").starts_with("2 processes ("), "{finding:?}");
        let text = bed.succeed(&["explain", bed.cgroup.path()])?;
        ensure!(text.contains("; but 2 processes (") && text.contains("routes at the other end"), "{text}");
        let text = bed.succeed(&["explain", &first.0.id().to_string()])?;
        ensure!(text.contains("their traffic leaves by") && text.contains("routes at the other end"), "{text}");
        let text = bed.succeed(&["status"])?;
        ensure!(text.contains(&format!("error: {}, policy a1: 2 processes", bed.cgroup.path())), "{text}");
    }
    let _refused = asleep(&bed.net.server, &bed.cgroup)?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1", "--other-netns", "refuse"])?;
    bed.is_healthy()
}

/// As with slirp4netns and pasta: the other end of the namespace's only device is a process on the host.
fn a_namespace_behind_a_process() -> Outcome {
    let bed = Bed::new("doctor-relay")?;
    let (steered, other) = (bed.cgroup.child("steered")?, bed.cgroup.child("other")?);
    bed.succeed(&["attach", steered.path(), "-i", "a1"])?;
    let netns = Netns::new("relayed")?;
    let _rootless = asleep(&netns, &steered)?;
    // Only loopback.
    ensure!(elsewhere(&bed, "a1", &steered)?[0]["way"] == json!({"kind": "none"}));
    bed.is_healthy()?;
    for (relay_in, is_steered) in [(&steered, true), (&other, false)] {
        let tun = netns.add_tun("tap0")?;
        netns.set_up("tap0")?;
        let mut command = Command::new("sleep");
        bed.place(&mut command, Some(relay_in), User::Root);
        let relay = Process(command.arg("1000").stdin(Stdio::from(tun.as_fd().try_clone_to_owned()?)).spawn()?);
        drop((tun, command));
        let found = elsewhere(&bed, "a1", &steered)?[0].clone();
        let way = json!({"kind": "relay", "interfaces": ["tap0"], "pids": [relay.0.id()], "steered": is_steered});
        ensure!(found["way"] == way && found["leaves"] == !is_steered, "{found:#}");
        if is_steered {
            bed.is_healthy()?;
        } else {
            let finding = bed.only_finding("other-netns")?;
            ensure!(finding.text("what").contains("which is NOT steered"), "{finding:?}");
        }
    }
    Ok(())
}
