//! runc and crun with `steer hook oci`: containers with network namespaces of their own.

use anyhow::ensure;
use steer_lab::wait_until;
use steer_tests::{
    Outcome, PATIENCE,
    container::{Bundle, Container, Host, Network, OwnNetwork, Runtime, everything},
};

use super::{bed, run_everything, with_both};

with_both![
    several_uplinks_of_its_own,
    a_name_that_only_the_host_has,
    no_network_at_all,
    an_uplink_that_comes_back_is_followed,
];

/// The interface name is resolved in the container's namespace, where the index differs from the host's.
fn several_uplinks_of_its_own(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-own")?;
    let own = OwnNetwork::new(&bed)?;
    let host = Host::new(&bed)?;
    let joined = Network::Joined(&own.net.client);
    for (name, value, i) in [("steer.policy", "vpn", 1), ("steer.policy", "lan", 0), ("steer.interface", "a1", 1)] {
        let bundle = Bundle::new("one").network(joined).annotate(name, value);
        host.check_steered(own.ways(), i, || run_everything(&host, &runtime, bundle, own.ways()))?;
    }
    let container =
        runtime.start(&host, &Bundle::new("one").network(joined).annotate("steer.policy", "vpn").hooked(&host))?;
    host.check_steered(own.ways(), 1, || container.exec(&everything(own.ways())))?;
    let status = host.status()?;
    let cookie = own.net.client.cookie()?;
    let index = own.net.ifindex(1)?;
    let policies = status["policies"].as_array().into_iter().flatten();
    let is_its = |policy: &&serde_json::Value| policy["netns_cookie"] == cookie && policy["ifindex"] == index;
    ensure!(policies.filter(is_its).count() == 1, "{cookie}, {index}: {status}");
    container.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

fn a_name_that_only_the_host_has(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-host-name")?;
    let mut own = OwnNetwork::new(&bed)?;
    own.net.rename_uplink(1, "c1")?;
    let host = Host::new(&bed)?;
    let bundle = Bundle::new("one").network(Network::Joined(&own.net.client)).annotate("steer.interface", "a1");
    let refused = host.check_silent(own.ways(), || run_everything(&host, &runtime, bundle, own.ways()))?;
    ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr.contains("a1") && refused.stderr.contains("does not start"), "{refused:?}");
    host.check_nothing_left()
}

fn no_network_at_all(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-none")?;
    let host = Host::new(&bed)?;
    let bundle = Bundle::new("one").network(Network::None).annotate("steer.policy", "vpn");
    let refused = host.check_silent(bed.ways(), || run_everything(&host, &runtime, bundle, bed.ways()))?;
    ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    // If the configuration lets it start, it is closed.
    bed.write_config(&super::CONFIG.replace("[containers]", "[containers]\nmissing = \"close\""))?;
    let bundle = Bundle::new("one").network(Network::None).annotate("steer.policy", "vpn");
    host.check_closed(bed.ways(), || run_everything(&host, &runtime, bundle, bed.ways()))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// The daemon observes the container's namespace as it observes the host's.
fn an_uplink_that_comes_back_is_followed(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-follow")?;
    let mut own = OwnNetwork::new(&bed)?;
    let host = Host::new(&bed)?;
    let _daemon = host.daemon()?;
    let container = start_in(&host, &runtime, &own, "steer.policy", "vpn")?;
    host.check_steered(own.ways(), 1, || container.exec(&everything(own.ways())))?;
    own.net.remove_uplink(1)?;
    host.check_closed(own.ways(), || container.exec(&everything(own.ways())))?;
    for _ in 0..2 {
        own.net.create_uplink(1)?;
        wait_for_index(&host, &own)?;
        host.check_steered(own.ways(), 1, || container.exec(&everything(own.ways())))?;
        own.net.remove_uplink(1)?;
        host.check_closed(own.ways(), || container.exec(&everything(own.ways())))?;
    }
    container.delete()?;
    host.wait_until_nothing_left(|| Ok(()))
}

fn start_in<'h, 'b>(
    host: &'h Host<'b>,
    runtime: &Runtime,
    own: &OwnNetwork,
    name: &str,
    value: &str,
) -> anyhow::Result<Container<'h, 'b>> {
    let bundle = Bundle::new("one").network(Network::Joined(&own.net.client)).annotate(name, value);
    runtime.start(host, &bundle.hooked(host))
}

/// Waits until the daemon has seen the current uplink.
fn wait_for_index(host: &Host<'_>, own: &OwnNetwork) -> Outcome {
    let (cookie, index) = (own.net.client.cookie()?, own.net.ifindex(1)?);
    let mut last = serde_json::Value::Null;
    let followed = wait_until("the daemon to follow the uplink", PATIENCE, || {
        last = host.status().unwrap_or_default();
        let mut policies = last["policies"].as_array().into_iter().flatten();
        policies.any(|policy| policy["netns_cookie"] == cookie && policy["ifindex"] == index)
    });
    followed.map_err(|error| anyhow::anyhow!("{error}: {last}"))
}
