//! The plugin in its deployed forms: as a service, and in a pod.

use anyhow::{Context as _, ensure};
use steer_lab::wait_until;
use steer_tests::{
    Bed, Machine, Outcome, PATIENCE, User, check_outcomes,
    containerd::{Containerd, Pod, PodOptions, Service, wait_until_ready},
};

use super::{CONFIG, SECOND, annotated, check_steered, check_untouched};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[("in_a_pod_of_its_own", in_a_pod_of_its_own), ("as_a_service", as_a_service)];

fn in_a_pod_of_its_own() -> Outcome {
    let bed = Bed::new("nri-pod")?;
    let containerd = Containerd::start(&bed)?;
    let _parent = containerd.cgroup("kubepods")?;
    bed.write_config(&CONFIG.replace("[containers]\n", "[containers]\nparent = \"/kubepods\"\n"))?;
    let held = PodOptions { cgroup_parent: "/kubepods", ..PodOptions::default() };
    let pod = Pod::run(&containerd, PodOptions { privileged: true, namespace: "steer", ..held })?;
    let _daemon = Service::daemon_in_pod(&bed, &pod)?;
    let (_plugin, notify) = Service::plugin_in_pod(&bed, &pod)?;
    let other = Pod::run(&containerd, held)?;
    check_steered(&bed, 1, || other.client(&bed, &[SECOND])?.outcomes())?;
    check_untouched(|| other.client(&bed, &[])?.outcomes())?;
    // It finds itself among the running containers, and does not wait for that.
    containerd.kill_server()?;
    containerd.start_server()?;
    wait_until_ready(&notify, &bed.directory.join("pod.log"))?;
    let other = Pod::run(&containerd, held)?;
    check_steered(&bed, 1, || other.client(&bed, &[SECOND])?.outcomes())
}

fn as_a_service() -> Outcome {
    let bed = Bed::new("nri-service")?;
    let machine = Machine::boot(&bed)?;
    machine.install(&format!("{CONFIG}existing = \"rebind\"\n"))?;
    machine.write("/etc/systemd/system/steer-nri.service", include_str!("../../../../packaging/steer-nri.service"))?;
    machine.succeed(&["systemctl", "daemon-reload"])?;
    machine.succeed(&["systemd-analyze", "verify", "--man=no", "steer-nri.service"])?;
    // It may start before the runtime.
    machine.succeed(&["systemctl", "start", "steer-nri"])?;
    let containerd = Containerd::start_on(&bed, &machine)?;
    let registered = || machine.journal().is_ok_and(|journal| journal.contains("registered with the runtime"));
    wait_until("the plugin to register", PATIENCE, registered)
        .with_context(|| machine.journal().unwrap_or_default())?;
    let pod = Pod::run(&containerd, annotated(&[SECOND]))?;
    check_steered(&bed, 1, || pod.client(&bed, &[])?.outcomes())
        .with_context(|| machine.journal().unwrap_or_default())?;
    // Its sandbox must allow access to sockets of other processes and to their network namespaces.
    machine.succeed(&["systemctl", "stop", "steer-nri"])?;
    let mut held = pod.held(&bed, &[])?;
    check_outcomes(&held.round()?, User::Root, 0)?;
    machine.succeed(&["systemctl", "start", "steer-nri"])?;
    let mut outcomes = Vec::new();
    wait_until("all sockets to use the uplink", PATIENCE, || {
        outcomes = held.round().unwrap_or_default();
        !outcomes.is_empty() && check_outcomes(&outcomes, User::Root, 1).is_ok()
    })
    .with_context(|| format!("{outcomes:?}\n{}", machine.journal().unwrap_or_default()))?;
    containerd.give_link_to_pods("a1", "10.0.1.2/24", "10.0.1.1")?;
    let own = Pod::run(&containerd, PodOptions { own_network: true, ..PodOptions::default() })?;
    let outcomes = own.client(&bed, &[("steer.interface", "eth0")])?.outcomes()?;
    let is_steered = |outcome: &steer_lab::Outcome| outcome.bound_ifindex > 0;
    ensure!(outcomes.iter().any(|outcome| outcome.is_ok() && is_steered(outcome)), "{outcomes:?}");
    // The daemon's sandbox must allow this: it follows the container's interface, which is removed with its peer.
    let waiting = own.waiting(&bed, &[("steer.interface", "eth0")])?;
    waiting.start()?;
    let ifindex = || -> anyhow::Result<serde_json::Value> {
        let status = machine.status()?;
        let policies = status["policies"].as_array().context("no list of policies")?;
        let policy = policies.iter().find(|policy| policy["name"] == "eth0").context("no policy eth0")?;
        Ok(policy["ifindex"].clone())
    };
    ensure!(ifindex()?.is_u64());
    bed.net.server.delete_link(&bed.net.server_link(1))?;
    wait_until("the daemon to see it", PATIENCE, || ifindex().is_ok_and(|ifindex| ifindex.is_null()))
        .with_context(|| machine.journal().unwrap_or_default())
}
