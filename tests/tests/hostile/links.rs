//! Links with names that are not text, and links that get the index of an uplink.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, process::Command};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use steer_lab::{Netns, wait_until};
use steer_tests::{Bed, Cgroup, Outcome, PATIENCE, Spy, User, container::Host, output};

/// A name that is not UTF-8.
const BYTES: &[u8] = b"\xff\xfe";
const CONFIG: &str = "[containers]\npolicies = [\"p\"]\nmissing = \"close\"\n\
                      [[policy]]\nname = \"p\"\ninterface = \"a1\"\ncgroups = [\"@/one\"]\n";

/// Runs ip(8) in a network namespace. `NAME` stands for the name of a link.
fn ip(netns: &Netns, arguments: &str, name: &[u8]) -> Outcome {
    let mut command = Command::new("ip");
    netns.enter(&mut command);
    let words = arguments.split(' ').map(|word| if word == "NAME" { name } else { word.as_bytes() });
    let ran = output(command.args(words.map(OsStr::from_bytes)))?;
    ensure!(ran.code == 0, "ip {arguments}: {ran:?}");
    Ok(())
}

/// A link with this index comes from another network namespace, and all destinations are neighbours on it. It ends with that
/// namespace, which is returned.
fn move_in(bed: &Bed, index: u32, name: &[u8]) -> anyhow::Result<Netns> {
    let (outside, client) = (Netns::new("outside")?, &bed.net.client);
    ip(&outside, &format!("link add moved index {index} type veth peer name far"), b"")?;
    outside.set_up("far")?;
    outside.move_link("moved", client)?;
    ensure!(client.ifindex("moved")? == index, "it has another index");
    ip(client, "link set moved name NAME", name)?;
    ip(client, "link set NAME up", name)?;
    for add in [
        "addr add 192.0.2.2/24",
        "addr add 2001:db8::2/64 nodad",
        "route add default metric 1",
        "-6 route add default metric 1",
    ] {
        ip(client, &format!("{add} dev NAME"), name)?;
    }
    Ok(outside)
}

fn index(bed: &Bed, policy: &str) -> anyhow::Result<Option<u64>> {
    Ok(bed.policy(policy)?["ifindex"].as_u64())
}

/// Tries each way as both users; no packet may leave.
fn check_nothing_leaves(bed: &Bed, cgroup: &Cgroup, spy: &mut Spy) -> Outcome {
    for user in [User::Root, User::Nobody] {
        let outcomes = bed.probe(Some(cgroup), user)?;
        ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:?}");
    }
    spy.saw_nothing()
}

pub(super) fn names_that_are_not_text() -> Outcome {
    let bed = Bed::new("hostile-bytes")?;
    let one = bed.cgroup.child("one")?;
    let daemon = bed.daemon(CONFIG)?;
    bed.check_steered(&one, 1)?;
    let before = bed.net.ifindex(1)?;
    let mut spy = Spy::on(&bed, &[])?;
    // The uplink gets such a name, and ends. Another link with such a name gets its index.
    for rename in ["link set a1 down", "link set a1 name NAME"] {
        ip(&bed.net.client, rename, BYTES)?;
    }
    wait_until("the uplink to be missed", PATIENCE, || index(&bed, "p").is_ok_and(|index| index.is_none()))?;
    let names = bed.succeed(&["interfaces"])?;
    ensure!(names.contains(r"\xff\xfe"), "{names}");
    ip(&bed.net.client, "link del NAME", BYTES)?;
    let _outside = move_in(&bed, before, BYTES)?;
    check_nothing_leaves(&bed, &one, &mut spy)?;
    ensure!(index(&bed, "p")?.is_none(), "{}", bed.policy("p")?);
    // By an alternative name, it is the uplink. All commands know it.
    ip(&bed.net.client, "link property add dev NAME altname a1", BYTES)?;
    wait_until("the uplink to be known", PATIENCE, || index(&bed, "p").is_ok_and(|now| now == Some(before.into())))?;
    let explained = bed.succeed(&["explain", one.path()])?;
    ensure!(explained.contains(r"now called \xff\xfe"), "{explained}");
    let found = bed.doctor(&[])?.findings;
    let wrong = found.iter().find(|finding| finding.id == "uplink");
    ensure!(wrong.is_none_or(|wrong| wrong.text("what").contains("cannot be decoded")), "{found:?}");
    // Its end is noticed.
    ip(&bed.net.client, "link del NAME", BYTES)?;
    wait_until("the uplink to be missed", PATIENCE, || index(&bed, "p").is_ok_and(|index| index.is_none()))?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}

/// Without a daemon, nobody follows the links. Each command compares indexes with names before it trusts the pins.
pub(super) fn a_link_with_the_index_of_an_uplink() -> Outcome {
    for what in ["attach", "attach --policy", "exec", "hook"] {
        let bed = Bed::new("hostile-index")?;
        let (one, two) = (bed.cgroup.child("one")?, bed.cgroup.child("two")?);
        ensure!(bed.daemon(CONFIG)?.end(Signal::SIGKILL)?.is_none());
        bed.check_steered(&one, 1)?;
        let host = if what == "hook" { Some(Host::new(&bed)?) } else { None };
        let before = bed.net.ifindex(1)?;
        let mut spy = Spy::on(&bed, &[])?;
        bed.net.remove_uplink(1)?;
        let _outside = move_in(&bed, before, b"evil")?;
        // Reading commands report it.
        let stale = format!("index {before} of the policy belongs to evil now, not to a1");
        let status = bed.succeed(&["status"])?;
        ensure!(status.contains(&format!("error: policy p: {stale}")), "{status}");
        let found = bed.doctor(&[])?.findings;
        let is_it = |found: &steer_tests::Finding| found.id == "uplink-index" && found.text("what") == stale;
        ensure!(found.iter().any(is_it), "{found:?}");
        match (what, &host) {
            ("attach", _) => drop(bed.succeed(&["attach", two.path(), "-i", "a0"])?),
            ("attach --policy", _) => drop(bed.succeed(&["attach", two.path(), "--policy", "p"])?),
            ("exec", _) => drop(bed.succeed(&["exec", "-i", "a0", "--", "true"])?),
            (_, Some(host)) => {
                let mut container = Command::new("sleep");
                bed.place(container.arg("1000"), Some(&two), User::Root);
                let mut container = container.spawn()?;
                let hooked = host.hook(&json!({
                    "ociVersion": "1.0.2", "id": "two", "status": "created", "pid": container.id(), "bundle": "/",
                    "annotations": {"steer.policy": "p"},
                }))?;
                container.kill()?;
                container.wait()?;
                ensure!(hooked.code == 0, "{hooked:?}");
            }
            (_, None) => unreachable!("the hook has a host"),
        }
        ensure!(index(&bed, "p")?.is_none(), "{what}: {}", bed.policy("p")?);
        ensure!(bed.policy("p")?["stale"].is_null(), "{what}: {}", bed.policy("p")?);
        check_nothing_leaves(&bed, &one, &mut spy).with_context(|| what)?;
        if matches!(what, "attach --policy" | "hook") {
            check_nothing_leaves(&bed, &two, &mut spy).with_context(|| what)?;
        }
        drop(host);
    }
    Ok(())
}
