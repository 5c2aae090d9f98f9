//! The cgroup of a container, and the closed parent cgroup of containers: only containers that steer has classified get
//! packets out.

use anyhow::ensure;
use serde_json::json;
use steer_lab::wait_until;
use steer_tests::{
    Bed, Held, Machine, Outcome, PATIENCE, User,
    container::{Bundle, Host, Runtime, everything},
};

use super::{CONFIG, bed};
use crate::systemd::{Client, drop_in};

pub(crate) const TESTS: &[crate::Test] = &[
    ("runc::closed_until_classified", || closed_until_classified("runc")),
    ("crun::closed_until_classified", || closed_until_classified("crun")),
    ("systemd::a_unit_in_a_slice_of_containers", a_unit_in_a_slice_of_containers),
    ("the_first_process_in_a_cgroup_below", the_first_process_in_a_cgroup_below),
    ("a_chosen_id_does_not_name_a_cgroup", a_chosen_id_does_not_name_a_cgroup),
];

fn held(parent: &str) -> String {
    CONFIG.replace("[containers]", &format!("[containers]\nparent = \"{parent}\""))
}

fn closed_until_classified(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-parent")?;
    bed.write_config(&held("/pods"))?;
    let host = Host::new(&bed)?;
    let pods = bed.cgroup.child("pods")?;
    let _daemon = host.daemon()?;
    bed.check_closed(&pods)?;
    let run = |bundle: Bundle<'_>| {
        let bundle = bundle.parent("/pods").command(&everything(bed.ways()));
        runtime.run(&host, &bundle)
    };
    // It is not classified: no hook is called.
    host.check_closed(bed.ways(), || run(Bundle::new("one")))?;
    // It requests nothing, so it is unsteered.
    host.check_unsteered(bed.ways(), || run(Bundle::new("one").hooked(&host)))?;
    // The next container of the same name is a different one.
    host.check_closed(bed.ways(), || run(Bundle::new("one")))?;
    for (policy, i) in [("vpn", 1), ("lan", 0)] {
        host.check_steered(bed.ways(), i, || run(Bundle::new("one").annotate("steer.policy", policy).hooked(&host)))?;
    }
    host.check_closed(bed.ways(), || run(Bundle::new("one")))?;
    host.check_unsteered(bed.ways(), || runtime.run(&host, &Bundle::new("one").command(&everything(bed.ways()))))?;
    let mut last = Ok(());
    let removed = wait_until("leftovers of containers to be removed", PATIENCE, || {
        last = host.check_only_links_of(&[&pods]);
        last.is_ok()
    });
    last.and(removed.map_err(Into::into))?;
    ensure!(host.cgroups() == ["/pods"], "{:?}", host.cgroups());
    Ok(())
}

/// systemd makes such slices for containers, and a unit may be put into one.
fn a_unit_in_a_slice_of_containers() -> Outcome {
    let bed = Bed::new("systemd-slice")?;
    let machine = Machine::boot(&bed)?;
    machine.install(&held("/kubepods.slice"))?;
    let client = Client::install(&bed, &machine, "Slice=kubepods.slice")?;
    let has_slice = || machine.status().is_ok_and(|status| status.to_string().contains("\"/kubepods.slice\""));
    machine.succeed(&["systemctl", "start", "kubepods.slice"])?;
    wait_until("the slice to be held", PATIENCE, has_slice)?;
    client.check_closed(&bed, &machine)?;
    drop_in(&machine, &["--interface", "a1"])?;
    client.check_steered(&bed, &machine, 1)?;
    client.check_steered(&bed, &machine, 1)?;
    drop_in(&machine, &["--policy", "lan"])?;
    client.check_steered(&bed, &machine, 0)?;
    drop_in(&machine, &["--remove"])?;
    client.check_closed(&bed, &machine)
}

/// The state of a container with this id and process. It requests a policy or nothing.
fn state(id: &str, process: &Held, policy: Option<&str>) -> serde_json::Value {
    let annotations = policy.map_or_else(|| json!({}), |policy| json!({ "steer.policy": policy }));
    let pid = process.pid();
    json!({ "ociVersion": "1.0.2", "id": id, "status": "created", "pid": pid, "bundle": "/", "annotations": annotations })
}

/// A runtime may start the process in a cgroup below. The whole container is steered, which is the cgroup with its id
/// in the name.
fn the_first_process_in_a_cgroup_below() -> Outcome {
    let bed = bed("containers-below")?;
    let host = Host::new(&bed)?;
    let id = "0a1b2c3d".repeat(8);
    let pod = bed.cgroup.child("pod")?;
    let container = pod.child(&format!("libpod-{id}.scope"))?;
    let (first, later) = (container.child("container")?, container.child("later")?);
    let process = Held::start(bed.client(Some(&first), User::Nobody)?.args(bed.everything()))?;
    let hooked = host.hook(&state(&id, &process, Some("vpn")))?;
    ensure!(hooked.code == 0, "{hooked:?}");
    for cgroup in [&container, &first, &later] {
        bed.check_steered(cgroup, 1)?;
    }
    bed.check_unsteered(Some(&pod))
}

/// A name that a user chose does not identify the surrounding cgroups: they may hold other processes, or may be the
/// closed parent.
fn a_chosen_id_does_not_name_a_cgroup() -> Outcome {
    let bed = bed("containers-chosen")?;
    bed.write_config(&held("/held"))?;
    let host = Host::new(&bed)?;
    let held = bed.cgroup.child("held")?;
    let (own, other) = (held.child("own")?, held.child("other")?);
    let _daemon = host.daemon()?;
    bed.check_closed(&held)?;
    let process = Held::start(bed.client(Some(&own), User::Nobody)?.args(bed.everything()))?;
    for (policy, i) in [(None, None), (Some("vpn"), Some(1))] {
        let hooked = host.hook(&state("held", &process, policy))?;
        ensure!(hooked.code == 0, "{hooked:?}");
        match i {
            Some(i) => bed.check_steered(&own, i)?,
            None => bed.check_unsteered(Some(&own))?,
        }
        bed.check_closed(&other)?;
        bed.check_closed(&held)?;
    }
    Ok(())
}
