//! Podman with the hook that the package installs.

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Netns, leaks, parse_outcomes};
use steer_tests::{
    Bed, Outcome, Output, Spy,
    container::{Host, Podman, everything},
    output,
};

use super::{CONFIG, bed};

pub(crate) const TESTS: &[crate::Test] = &[
    ("podman::on_the_hosts_network", on_the_hosts_network),
    ("podman::restarted_and_executed", restarted_and_executed),
    ("podman::a_request_that_is_not_allowed_is_refused", a_request_that_is_not_allowed_is_refused),
    ("podman::what_the_image_asks_for_does_not_count", what_the_image_asks_for_does_not_count),
    ("podman::without_the_binary_of_the_hook", without_the_binary_of_the_hook),
    ("podman::without_a_network", without_a_network),
    ("podman::on_two_bridges", on_two_bridges),
];

fn podman_run(podman: &Podman<'_, '_>, options: &[&str], command: &[String]) -> anyhow::Result<Output> {
    output(podman.run(options).args(command))
}

fn on_the_hosts_network() -> Outcome {
    let bed = bed("podman-host")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    let everything = everything(bed.ways());
    for (annotation, i) in [("steer.policy=vpn", 1), ("steer.policy=lan", 0), ("steer.interface=a1", 1)] {
        let options = ["--rm", "--network", "host", "--annotation", annotation];
        host.check_steered(bed.ways(), i, || podman_run(&podman, &options, &everything))
            .with_context(|| annotation.to_owned())?;
    }
    host.check_unsteered(bed.ways(), || podman_run(&podman, &["--rm", "--network", "host"], &everything))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

fn restarted_and_executed() -> Outcome {
    let bed = bed("podman-restart")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    let everything = everything(bed.ways());
    let run = |name: &str, policy: &str| {
        let annotation = format!("steer.policy={policy}");
        let options = ["--detach", "--name", name, "--network", "host", "--annotation", &annotation];
        host.succeed(podman.run(&options).args(["sleep", "infinity"]))
    };
    run("one", "vpn")?;
    run("two", "lan")?;
    let exec = |name: &str| output(podman.command(&["exec", name]).args(&everything));
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.check_steered(bed.ways(), 0, || exec("two"))?;
    host.succeed(&mut podman.command(&["restart", "--time", "0", "one"]))?;
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.succeed(&mut podman.command(&["stop", "--time", "0", "one"]))?;
    host.check_steered(bed.ways(), 0, || exec("two"))?;
    host.succeed(&mut podman.command(&["start", "one"]))?;
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.succeed(&mut podman.command(&["rm", "--force", "--time", "0", "one", "two"]))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

fn a_request_that_is_not_allowed_is_refused() -> Outcome {
    let bed = bed("podman-refused")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    let rows = [
        ("steer.policy=kept", "it is not in `policies`"),
        ("steer.interface=a0", "it is not in `interfaces`"),
        ("steer.polcy=vpn", "steer.polcy"),
    ];
    for (annotation, message) in rows {
        let options = ["--rm", "--network", "host", "--annotation", annotation];
        let refused = host.check_silent(bed.ways(), || podman_run(&podman, &options, &everything(bed.ways())))?;
        ensure!(refused.code == 126 && refused.stdout.is_empty(), "{annotation}: {refused:?}");
        ensure!(refused.stderr.contains(message), "{annotation}: no {message:?} in {refused:?}");
        host.check_nothing_left()?;
    }
    Ok(())
}

/// Podman makes the annotations of an image the container's.
fn what_the_image_asks_for_does_not_count() -> Outcome {
    let bed = bed("podman-image")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    let everything = everything(bed.ways());
    let run = |annotations: &[&str]| {
        let options = ["--rm", "--network", "host"].into_iter();
        let annotations = annotations.iter().flat_map(|annotation| ["--annotation", *annotation]);
        let options: Vec<_> = options.chain(annotations).collect();
        output(podman.run_image(&options, "image").args(&everything))
    };
    podman.image("image", "steer.interface=a0", "STEER_POLICY=lan")?;
    bed.write_config(&CONFIG.replace("\"eth0\"", "\"a0\""))?;
    for annotations in [&[][..], &["steer.interface=a0"]] {
        let refused = host.check_silent(bed.ways(), || run(annotations))?;
        ensure!(refused.code == 126 && refused.stdout.is_empty(), "{annotations:?}: {refused:?}");
        ensure!(refused.stderr.contains("what an image says does not count"), "{annotations:?}: {refused:?}");
    }
    host.check_steered(bed.ways(), 1, || run(&["steer.interface=a1"]))?;
    podman.image("image", "steer.dns=10.0.0.1", "STEER_POLICY=lan")?;
    bed.write_config(&CONFIG.replace("[containers]", "[containers]\ndns = [\"*\"]"))?;
    let refused = host.check_silent(bed.ways(), || run(&["steer.policy=vpn"]))?;
    ensure!(refused.stderr.contains("annotation steer.dns=10.0.0.1 is also in the image"), "{refused:?}");
    podman.image("image", "steer.example.com/policy=lan", "STEER_POLICY=lan")?;
    host.check_steered(bed.ways(), 1, || run(&["steer.policy=vpn"]))?;
    host.check_unsteered(bed.ways(), || run(&[]))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// Podman skips a hook whose program is missing.
fn without_the_binary_of_the_hook() -> Outcome {
    let bed = bed("podman-no-binary")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    podman.hook_without_binary()?;
    let options = ["--rm", "--network", "host", "--annotation", "steer.policy=vpn"];
    let refused = host.check_silent(bed.ways(), || podman_run(&podman, &options, &everything(bed.ways())))?;
    ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    host.check_unsteered(bed.ways(), || podman_run(&podman, &["--rm", "--network", "host"], &everything(bed.ways())))
}

fn without_a_network() -> Outcome {
    let bed = bed("podman-none")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    let options = ["--rm", "--network", "none", "--annotation", "steer.interface=a1"];
    let refused = host.check_silent(bed.ways(), || podman_run(&podman, &options, &everything(bed.ways())))?;
    ensure!(refused.code == 126 && refused.stderr.contains("does not start"), "{refused:?}");
    bed.write_config(&CONFIG.replace("[containers]", "[containers]\nmissing = \"close\""))?;
    host.check_closed(bed.ways(), || podman_run(&podman, &options, &everything(bed.ways())))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// The names of the bridges' links must be given: by default Podman numbers them in any order.
fn on_two_bridges() -> Outcome {
    let bed = bed("podman-bridge")?;
    let host = Host::new(&bed)?;
    let podman = Podman::new(&host)?;
    for (name, subnet) in [("first", "10.201.0.0/24"), ("second", "10.202.0.0/24")] {
        host.succeed(&mut podman.command(&["network", "create", "--disable-dns", "--subnet", subnet, name]))?;
    }
    for (interface, address) in [("eth0", "10.201.0."), ("eth1", "10.202.0.")] {
        let annotation = format!("steer.interface={interface}");
        let (first, second) = ("first:interface_name=eth0", "second:interface_name=eth1");
        let networks = ["--network", first, "--network", second, "--annotation", &annotation];
        let options = [&["--detach", "--name", "one"] as &[&str], &networks].concat();
        host.succeed(podman.run(&options).args(["sleep", "infinity"]))?;
        check_bridged(&bed, &host, &podman, interface, address).with_context(|| interface.to_owned())?;
        host.succeed(&mut podman.command(&["restart", "--time", "0", "one"]))?;
        check_bridged(&bed, &host, &podman, interface, address).with_context(|| interface.to_owned())?;
        host.succeed(&mut podman.command(&["rm", "--force", "--time", "0", "one"]))?;
        host.wait_until_nothing_left(|| host.clean_up())?;
    }
    // The host's interface names do not apply in the container.
    let options = ["--rm", "--network", "first", "--annotation", "steer.interface=a1"];
    let refused = podman_run(&podman, &options, &everything(bed.ways()))?;
    ensure!(refused.code == 126 && refused.stdout.is_empty(), "{refused:?}");
    Ok(())
}

/// Checks that the container's packets leave only by this interface, and with its address. The host's further handling
/// of them is not checked.
fn check_bridged(bed: &Bed, host: &Host<'_>, podman: &Podman<'_, '_>, interface: &str, address: &str) -> Outcome {
    let pid: u32 = podman.inspect("one", "{{.State.Pid}}")?.parse()?;
    let netns = Netns::of_process(pid)?;
    let index = i32::try_from(netns.ifindex(interface)?)?;
    let mut spy = Spy::in_netns(&netns, &bed.server, &[interface])?;
    let mut uplink = Capture::start(&netns, interface)?;
    let probe = ["/bed/steer-probe", "--json", "--family", "v4", "--proto", "tcp", "--proto", "udp", "--proto", "raw"];
    let port = bed.server.port().to_string();
    let ran = output(podman.command(&["exec", "one"]).args(probe).args(["--port", &port, "--timeout-ms", "300"]))?;
    let outcomes = parse_outcomes(&ran.stdout).with_context(|| format!("{ran:?}"))?;
    ensure!(outcomes.len() == 3, "{ran:?}");
    for outcome in &outcomes {
        ensure!(outcome.bound_ifindex == index, "not bound to {interface}, which is {index}: {outcome:?}");
        let local = outcome.local.map(|local| local.to_string()).unwrap_or_default();
        ensure!(local.starts_with(address), "{local} is not of {address}: {outcome:?}");
    }
    spy.saw_nothing()?;
    ensure!(leaks(&uplink.take()?).len() >= outcomes.len(), "too few packets on {interface} in {}", host.status()?);
    Ok(())
}
