//! containerd, which calls steer as an NRI plugin before a container starts.

pub(crate) mod deployed;
mod reused;

use std::{fs, thread};

use anyhow::{Context as _, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use steer_lab::{Capture, Family, Proto, leaks, wait_until};
use steer_tests::{
    Bed, Outcome, PATIENCE, Spy, User, check_outcomes,
    containerd::{Containerd, Pod, PodOptions, Service},
};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("by_annotation_of_pod_and_container", by_annotation_of_pod_and_container),
    ("a_network_namespace_of_its_own", a_network_namespace_of_its_own),
    ("a_request_that_is_not_allowed_does_not_start", a_request_that_is_not_allowed_does_not_start),
    ("catches_up_with_running_containers", catches_up_with_running_containers),
    ("older_connections_are_taken_over", older_connections_are_taken_over),
    ("a_held_lock_refuses_in_time", a_held_lock_refuses_in_time),
    ("many_at_once", many_at_once),
    ("containerd_is_restarted", containerd_is_restarted),
    ("a_hung_plugin_is_skipped_and_catches_up", a_hung_plugin_is_skipped_and_catches_up),
    ("a_parent_closes_unclassified_containers", a_parent_closes_unclassified_containers),
    reused::TEST,
];

const CONFIG: &str = "[containers]\npolicies = [\"*\"]\ninterfaces = [\"a1\", \"eth0\", \"a9\"]\n\
                      [[policy]]\nname = \"second\"\ninterface = \"a1\"\ncgroups = []\n";
const SECOND: (&str, &str) = ("steer.policy", "second");

type Attempts = anyhow::Result<Vec<steer_lab::Outcome>>;

fn annotated<'a>(annotations: &'a [(&'a str, &'a str)]) -> PodOptions<'a> {
    PodOptions { annotations, ..PodOptions::default() }
}

/// Checks that the client's packets leave only by uplink `i`.
fn check_steered(bed: &Bed, i: u8, attempts: impl FnOnce() -> Attempts) -> Outcome {
    let mut spy = Spy::on(bed, &[bed.net.link(i)])?;
    let outcomes = attempts()?;
    spy.saw_nothing()?;
    check_outcomes(&outcomes, User::Root, i)?;
    ensure!(outcomes.iter().all(|outcome| outcome.bound_ifindex > 0), "not bound: {outcomes:?}");
    Ok(())
}

/// Checks that none of the client's packets leaves.
fn check_closed(bed: &Bed, attempts: impl FnOnce() -> Attempts) -> Outcome {
    let mut spy = Spy::on(bed, &[])?;
    let outcomes = attempts()?;
    spy.saw_nothing()?;
    ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "got through: {outcomes:?}");
    Ok(())
}

/// Checks that the client is not steered.
fn check_untouched(attempts: impl FnOnce() -> Attempts) -> Outcome {
    let outcomes = attempts()?;
    check_outcomes(&outcomes, User::Root, 0)?;
    ensure!(outcomes.iter().all(|outcome| outcome.bound_ifindex <= 0), "bound: {outcomes:?}");
    Ok(())
}

/// The attached cgroups, each with its part of `status`.
fn attached(bed: &Bed) -> anyhow::Result<Vec<serde_json::Value>> {
    let status = bed.status()?;
    let policies = status["policies"].as_array().context("no list of policies")?;
    let cgroups = policies.iter().filter_map(|policy| policy["cgroups"].as_array());
    Ok(cgroups.flatten().cloned().collect())
}

/// Checks that no pin of a container is left.
fn check_nothing_left(bed: &Bed) -> Outcome {
    let links = fs::read_dir(bed.abi().join("links")).map_or(0, Iterator::count);
    let attached = attached(bed)?;
    ensure!(links == 0 && attached.is_empty(), "{links} cgroups have links: {attached:?}");
    Ok(())
}

fn by_annotation_of_pod_and_container() -> Outcome {
    let bed = Bed::new("nri-annotation")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let plugin = Service::plugin(&bed, &containerd)?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    check_steered(&bed, 1, || pod.client(&bed, &[])?.outcomes())?;
    // A process that is added later is in the same cgroup.
    let waiting = pod.waiting(&bed, &[])?;
    waiting.start()?;
    check_steered(&bed, 1, || waiting.probe(&bed))?;
    // The container's own annotation takes precedence, and the current configuration applies.
    bed.write_config(&CONFIG.replace("\"a9\"", "\"a0\""))?;
    check_steered(&bed, 0, || pod.client(&bed, &[("steer.interface", "a0")])?.outcomes())?;
    let plain = Pod::run(&containerd, PodOptions::default())?;
    check_steered(&bed, 1, || plain.client(&bed, &[SECOND])?.outcomes())?;
    check_untouched(|| plain.client(&bed, &[("other", "x")])?.outcomes())?;
    let attached = attached(&bed)?;
    ensure!(attached.len() == 1 && attached[0]["manual"] == true && attached[0]["complete"] == true, "{attached:?}");
    ensure!(bed.sockets("second", "bound")? > 0);
    waiting.stop()?;
    waiting.remove()?;
    pod.remove()?;
    check_nothing_left(&bed)?;
    ensure!(plugin.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}

fn a_network_namespace_of_its_own() -> Outcome {
    let bed = Bed::new("nri-netns")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let _plugin = Service::plugin(&bed, &containerd)?;
    containerd.give_link_to_pods("a1", "10.0.1.2/24", "10.0.1.1")?;
    let own = PodOptions { own_network: true, ..PodOptions::default() };
    let pod = Pod::run(&containerd, own)?;
    let mut other = Capture::start(&bed.net.server, &bed.net.server_link(0))?;
    let outcomes = pod.client(&bed, &[("steer.interface", "eth0")])?.outcomes()?;
    // A new namespace allows no user to ping, and this one has no IPv6.
    let may = |outcome: &&steer_lab::Outcome| {
        matches!(outcome.proto, Proto::Tcp | Proto::Udp) && outcome.family == Family::V4
    };
    let outcomes: Vec<_> = outcomes.iter().filter(may).collect();
    let is_by_eth0 =
        |outcome: &&steer_lab::Outcome| outcome.saw.as_deref() == Some("10.0.1.2") && outcome.bound_ifindex > 0;
    ensure!(outcomes.len() == 2 && outcomes.iter().all(is_by_eth0), "{outcomes:?}");
    let packets = other.take()?;
    ensure!(leaks(&packets).is_empty(), "{packets:?}");
    // The container cannot use the host's links.
    let client = pod.client(&bed, &[SECOND])?;
    let refusal = client.start().err().context("started")?.to_string();
    ensure!(refusal.contains("no interface \"a1\"") && !client.has_run(), "{refusal}");
    Ok(())
}

fn a_request_that_is_not_allowed_does_not_start() -> Outcome {
    let bed = Bed::new("nri-refused")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let _plugin = Service::plugin(&bed, &containerd)?;
    let pod = Pod::run(&containerd, PodOptions::default())?;
    let mut spy = Spy::on(&bed, &[])?;
    for (annotation, reason) in [
        (("steer.policy", "third"), "the configuration has no policy \"third\"; there are second"),
        (("steer.interface", "a0"), "it is not in `interfaces` of [containers]"),
        (("steer.polcy", "second"), "steer knows no such annotation"),
        (("steer.interface", "a9"), "no interface \"a9\""),
    ] {
        let client = pod.client(&bed, &[annotation])?;
        let refusal = client.start().err().with_context(|| format!("{annotation:?} started"))?.to_string();
        ensure!(refusal.contains("steer: container ") && refusal.contains(reason), "{annotation:?}: {refusal}");
        ensure!(!client.has_run());
        client.remove()?;
    }
    // A broken configuration rejects every request, and does not affect containers without one.
    bed.write_config("[[policy")?;
    let client = pod.client(&bed, &[SECOND])?;
    let refusal = client.start().err().context("started")?.to_string();
    ensure!(refusal.contains("steer.toml:1:9: unclosed") && !client.has_run(), "{refusal}");
    spy.saw_nothing()?;
    check_untouched(|| pod.client(&bed, &[])?.outcomes())?;
    bed.write_config(CONFIG)?;
    check_steered(&bed, 1, || pod.client(&bed, &[SECOND])?.outcomes())?;
    pod.remove()?;
    check_nothing_left(&bed)
}

fn catches_up_with_running_containers() -> Outcome {
    let mut bed = Bed::new("nri-catch-up")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let pod = Pod::run(&containerd, PodOptions::default())?;
    let [asks, not_granted, without, silent] =
        [&[SECOND][..], &[("steer.policy", "third")], &[("steer.interface", "a9")], &[]].map(|annotations| {
            let container = pod.waiting(&bed, annotations)?;
            container.start()?;
            anyhow::Ok(container)
        });
    let (asks, not_granted, without, silent) = (asks?, not_granted?, without?, silent?);
    // No plugin is called, so none rejects it.
    for container in [&asks, &not_granted] {
        check_untouched(|| container.probe(&bed))?;
    }
    let _daemon = Service::daemon(&bed, &containerd)?;
    let plugin = Service::plugin(&bed, &containerd)?;
    check_steered(&bed, 1, || asks.probe(&bed))?;
    check_closed(&bed, || not_granted.probe(&bed))?;
    check_closed(&bed, || without.probe(&bed))?;
    check_untouched(|| silent.probe(&bed))?;
    let log = plugin.log();
    for line in ["runs already and is closed now: the container asks for policy \"third\"", "until its uplink is there"]
    {
        ensure!(log.contains(line), "{log}");
    }
    // With a daemon, an uplink that appears later is used.
    bed.net.rename_uplink(1, "a9")?;
    wait_until("the uplink to be seen", PATIENCE, || bed.policy("a9").is_ok_and(|policy| policy["ifindex"].is_u64()))?;
    check_steered(&bed, 1, || without.probe(&bed))?;
    check_closed(&bed, || asks.probe(&bed))?;
    for container in [asks, not_granted, without, silent] {
        container.stop()?;
        container.remove()?;
    }
    check_nothing_left(&bed)
}

fn older_connections_are_taken_over() -> Outcome {
    let bed = Bed::new("nri-existing")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(&format!("{CONFIG}existing = \"destroy\"\n"))?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    let mut held = pod.held(&bed, &[])?;
    check_outcomes(&held.round()?, User::Root, 0)?;
    let _plugin = Service::plugin(&bed, &containerd)?;
    let mut spy = Spy::on(&bed, &["a1"])?;
    // A socket that was destroyed fails once, and the next one uses the uplink.
    let mut outcomes = Vec::new();
    wait_until("all sockets to use the uplink", PATIENCE, || {
        outcomes = held.round().unwrap_or_default();
        !outcomes.is_empty() && check_outcomes(&outcomes, User::Root, 1).is_ok()
    })
    .with_context(|| format!("{outcomes:?}"))?;
    spy.saw_nothing()
}

fn a_held_lock_refuses_in_time() -> Outcome {
    let bed = Bed::new("nri-lock")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let plugin = Service::plugin(&bed, &containerd)?;
    let pod = Pod::run(&containerd, PodOptions::default())?;
    // It stays, so the pins do, too.
    pod.waiting(&bed, &[SECOND])?.start()?;
    let directory = fs::File::open(&bed.pins)?;
    let lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let client = pod.client(&bed, &[SECOND])?;
    let refusal = client.start().err().context("started")?.to_string();
    ensure!(refusal.contains("steer: container ") && refusal.contains("lock") && !client.has_run(), "{refusal}");
    // Other requests are not delayed, and the runtime has kept the plugin.
    check_untouched(|| pod.client(&bed, &[])?.outcomes())?;
    lock.unlock().map_err(|(_, error)| error)?;
    check_steered(&bed, 1, || pod.client(&bed, &[SECOND])?.outcomes())?;
    ensure!(!plugin.log().contains("until the runtime is there again"), "{}", plugin.log());
    Ok(())
}

fn many_at_once() -> Outcome {
    let bed = Bed::new("nri-many")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(&CONFIG.replace("\"a9\"", "\"a0\""))?;
    let _plugin = Service::plugin(&bed, &containerd)?;
    let one_after_the_other = |annotations: &[(&str, &str)]| {
        for _ in 0..2 {
            let pod = Pod::run(&containerd, annotated(annotations))?;
            let (first, second) = (pod.waiting(&bed, &[])?, pod.waiting(&bed, &[])?);
            first.start()?;
            second.start()?;
            let policy = annotations[0].1;
            let ids = [&first.id, &second.id];
            let status = bed.policy(policy)?;
            let is_steered = |id: &&String| status["cgroups"].to_string().contains(*id);
            ensure!(ids.iter().all(is_steered), "{ids:?} are not steered by {policy}: {status}");
            pod.remove()?;
        }
        anyhow::Ok(())
    };
    let annotations = [SECOND, ("steer.interface", "a0"), ("steer.interface", "a1"), SECOND];
    thread::scope(|scope| {
        let threads = annotations.map(|annotation| scope.spawn(move || one_after_the_other(&[annotation])));
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|panic| anyhow::anyhow!("{panic:?}"))?)
    })?;
    check_nothing_left(&bed)
}

fn containerd_is_restarted() -> Outcome {
    let bed = Bed::new("nri-restart")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    containerd.kill_server()?;
    // It waits for a runtime that has not started yet, and for one that restarts.
    let plugin = Service::plugin_in_waiting(&bed, &containerd)?;
    plugin.wait_for_log("until the runtime is there again")?;
    containerd.start_server()?;
    plugin.wait_until_ready()?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    let waiting = pod.waiting(&bed, &[])?;
    waiting.start()?;
    check_steered(&bed, 1, || waiting.probe(&bed))?;
    containerd.kill_server()?;
    containerd.start_server()?;
    plugin.wait_until_ready()?;
    check_steered(&bed, 1, || waiting.probe(&bed))?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    check_steered(&bed, 1, || pod.client(&bed, &[])?.outcomes())?;
    let reports = plugin.log().matches("until the runtime is there again").count();
    ensure!(reports == 2, "reported {reports} times for 2 outages: {}", plugin.log());
    Ok(())
}

fn a_hung_plugin_is_skipped_and_catches_up() -> Outcome {
    let bed = Bed::new("nri-hung")?;
    let containerd = Containerd::start(&bed)?;
    bed.write_config(CONFIG)?;
    let plugin = Service::plugin(&bed, &containerd)?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    plugin.signal(Signal::SIGSTOP)?;
    // This is NRI's design: the runtime waits for its time limit and continues.
    let waiting = pod.waiting(&bed, &[])?;
    waiting.start()?;
    check_untouched(|| waiting.probe(&bed))?;
    plugin.signal(Signal::SIGCONT)?;
    plugin.wait_until_ready()?;
    check_steered(&bed, 1, || waiting.probe(&bed))
}

fn a_parent_closes_unclassified_containers() -> Outcome {
    let bed = Bed::new("nri-parent")?;
    let containerd = Containerd::start(&bed)?;
    let parent = containerd.cgroup("kubepods")?;
    bed.write_config(
        &format!("{CONFIG}# \n")
            .replace("[containers]\n", "[containers]\nparent = \"/kubepods\"\nexempt_namespaces = [\"kube-system\"]\n"),
    )?;
    let _daemon = Service::daemon(&bed, &containerd)?;
    let other = parent.child("other")?;
    bed.check_closed(&other)?;
    let plugin = Service::plugin(&bed, &containerd)?;
    let held = PodOptions { cgroup_parent: "/kubepods", ..PodOptions::default() };
    let pod = Pod::run(&containerd, PodOptions { annotations: &[SECOND], ..held })?;
    check_steered(&bed, 1, || pod.client(&bed, &[])?.outcomes())?;
    let plain = Pod::run(&containerd, held)?;
    check_untouched(|| plain.client(&bed, &[])?.outcomes())?;
    let exempt = Pod::run(&containerd, PodOptions { annotations: &[SECOND], namespace: "kube-system", ..held })?;
    check_untouched(|| exempt.client(&bed, &[])?.outcomes())?;
    // Without the plugin the runtime calls nothing, and the unclassified containers get no packet out.
    plugin.end(Signal::SIGKILL)?;
    let (late, free) = (pod.waiting(&bed, &[])?, plain.waiting(&bed, &[])?);
    for container in [&late, &free] {
        container.start()?;
        check_closed(&bed, || container.probe(&bed))?;
    }
    let outside = Pod::run(&containerd, annotated(&[SECOND]))?;
    check_untouched(|| outside.client(&bed, &[])?.outcomes())?;
    let _plugin = Service::plugin(&bed, &containerd)?;
    check_steered(&bed, 1, || late.probe(&bed))?;
    check_untouched(|| free.probe(&bed))?;
    for pod in [pod, plain, exempt, outside] {
        pod.remove()?;
    }
    wait_until("only the parent to be attached", PATIENCE, || attached(&bed).is_ok_and(|attached| attached.len() == 1))
        .with_context(|| format!("{:?}", attached(&bed)))
}
