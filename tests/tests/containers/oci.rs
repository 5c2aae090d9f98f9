//! runc and crun with `steer hook oci` in generated bundles, on the host's network.

use anyhow::ensure;
use nix::sys::signal::Signal;
use steer_tests::{
    Outcome,
    container::{Bundle, Host, Runtime, everything},
};

use super::{bed, run_everything, shell, with_both};

with_both![
    by_annotation,
    a_request_that_is_not_allowed_is_refused,
    without_its_uplink_it_does_not_start,
    two_policies_at_once,
    a_command_in_it_is_steered,
    started_again,
    no_way_out,
    escapes_below_the_strict_level,
    with_a_daemon,
];

/// The policy of one annotation is in force from the first instruction, and is removed with the container.
fn by_annotation(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-annotation")?;
    let host = Host::new(&bed)?;
    let rows = [("steer.policy", "vpn", 1), ("steer.policy", "lan", 0), ("steer.interface", "a1", 1)];
    for (name, value, i) in rows {
        let bundle = Bundle::new("one").annotate(name, value);
        host.check_steered(bed.ways(), i, || run_everything(&host, &runtime, bundle, bed.ways()))?;
    }
    host.check_unsteered(bed.ways(), || run_everything(&host, &runtime, Bundle::new("one"), bed.ways()))?;
    // crun calls no hook after it has removed the cgroup. The kernel detaches the links later.
    host.wait_until_nothing_left(|| host.clean_up())?;
    ensure!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    Ok(())
}

fn a_request_that_is_not_allowed_is_refused(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-refused")?;
    let host = Host::new(&bed)?;
    let rows: [(&[(&str, &str)], &str); 9] = [
        (&[("steer.policy", "kept")], "it is not in `policies` of [containers]"),
        (&[("steer.policy", "vpm")], "no policy \"vpm\""),
        (&[("steer.interface", "a0")], "it is not in `interfaces` of [containers]"),
        (&[("steer.interface", "none")], "it is not in `interfaces` of [containers]"),
        (&[("steer.interface", "a1"), ("steer.enforce", "steer")], "less than `enforce` of [containers]"),
        (&[("steer.policy", "vpn"), ("steer.interface", "a1")], "both"),
        (&[("steer.enforce", "strict")], "neither a policy"),
        (&[("steer.policy", "vpn"), ("steer.dns", "nobody")], "steer.dns"),
        (&[("steer.polcy", "vpn")], "steer.polcy"),
    ];
    for (annotations, message) in rows {
        let bundle = annotations.iter().fold(Bundle::new("one"), |bundle, (name, value)| bundle.annotate(name, value));
        let refused = host.check_silent(bed.ways(), || run_everything(&host, &runtime, bundle, bed.ways()))?;
        ensure!(refused.code != 0 && refused.stdout.is_empty(), "{annotations:?}: {refused:?}");
        // runc includes the hook's message in its own error.
        let said = refused.stderr.replace("\\\"", "\"");
        ensure!(said.contains(message), "{annotations:?}: no {message:?} in {said}");
        host.check_nothing_left()?;
        ensure!(host.cgroups().is_empty(), "{annotations:?}: {:?}", host.cgroups());
    }
    Ok(())
}

fn without_its_uplink_it_does_not_start(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-missing")?;
    bed.net.remove_uplink(1)?;
    let host = Host::new(&bed)?;
    let bundle = Bundle::new("one").annotate("steer.policy", "vpn");
    let refused = host.check_silent(bed.ways(), || run_everything(&host, &runtime, bundle, bed.ways()))?;
    ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr.contains("a1") && refused.stderr.contains("does not start"), "{refused:?}");
    host.check_nothing_left()?;
    ensure!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    // If the host allows it, the container starts closed. Without a daemon it stays closed.
    bed.write_config(&super::CONFIG.replace("[containers]", "[containers]\nmissing = \"close\""))?;
    let bundle = Bundle::new("one").annotate("steer.policy", "vpn");
    host.check_closed(bed.ways(), || run_everything(&host, &runtime, bundle, bed.ways()))
}

fn two_policies_at_once(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-two")?;
    let host = Host::new(&bed)?;
    let start =
        |id: &str, policy: &str| runtime.start(&host, &Bundle::new(id).annotate("steer.policy", policy).hooked(&host));
    let (vpn, lan) = (start("vpn-user", "vpn")?, start("lan-user", "lan")?);
    ensure!(host.attached("/vpn-user")?.as_deref() == Some("vpn"), "{}", host.status()?);
    ensure!(host.attached("/lan-user")?.as_deref() == Some("lan"), "{}", host.status()?);
    for _ in 0..2 {
        host.check_steered(bed.ways(), 1, || vpn.exec(&everything(bed.ways())))?;
        host.check_steered(bed.ways(), 0, || lan.exec(&everything(bed.ways())))?;
    }
    // The end of one does not affect the other.
    vpn.delete()?;
    host.check_steered(bed.ways(), 0, || lan.exec(&everything(bed.ways())))?;
    lan.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// This includes commands that are started in a container later, in a cgroup below its own.
fn a_command_in_it_is_steered(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-exec")?;
    let host = Host::new(&bed)?;
    let bundle = Bundle::new("one").annotate("steer.interface", "a1").hooked(&host);
    let container = runtime.start(&host, &bundle)?;
    ensure!(host.attached("/one")?.as_deref() == Some("a1"), "{}", host.status()?);
    host.check_steered(bed.ways(), 1, || container.exec(&everything(bed.ways())))?;
    let nested = shell(&everything(bed.ways()).join(" "));
    host.check_steered(bed.ways(), 1, || container.exec(&nested))?;
    container.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// The same name and cgroup path, with another policy each time.
fn started_again(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-again")?;
    let host = Host::new(&bed)?;
    for (policy, i) in [("vpn", 1), ("lan", 0), ("vpn", 1)] {
        let container = runtime.start(&host, &Bundle::new("one").annotate("steer.policy", policy).hooked(&host))?;
        ensure!(host.attached("/one")?.as_deref() == Some(policy), "{}", host.status()?);
        host.check_steered(bed.ways(), i, || container.exec(&everything(bed.ways())))?;
        container.delete()?;
    }
    // Without annotations it has no policy of the earlier container of that name.
    let container = runtime.start(&host, &Bundle::new("one").hooked(&host))?;
    host.check_unsteered(bed.ways(), || container.exec(&everything(bed.ways())))?;
    container.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// As its root, with the capability for raw sockets.
fn no_way_out(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-escape")?;
    bed.furnish_for_escapes()?;
    let host = Host::new(&bed)?;
    let container = runtime.start(&host, &Bundle::new("one").annotate("steer.interface", "a1").hooked(&host))?;
    host.check_no_escape(|line| container.exec(&shell(line)))?;
    container.delete()
}

/// With the weaker level, which the host allows, packets get out. This proves that the captures work.
fn escapes_below_the_strict_level(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-leaks")?;
    bed.furnish_for_escapes()?;
    bed.write_config(&super::CONFIG.replace("[containers]", "[containers]\nenforce = \"steer\""))?;
    let host = Host::new(&bed)?;
    let bundle = Bundle::new("one").annotate("steer.interface", "a1").annotate("steer.enforce", "steer");
    let container = runtime.start(&host, &bundle.hooked(&host))?;
    let leaks = host.check_no_escape(|line| container.exec(&shell(line)));
    let error = leaks.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("packets got out"), "no packet got out: {error}");
    container.delete()
}

/// A daemon keeps the attachment of a hook, follows the uplink, and removes the attachment with the container.
fn with_a_daemon(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-daemon")?;
    let host = Host::new(&bed)?;
    let daemon = host.daemon()?;
    let start = |id: &str| runtime.start(&host, &Bundle::new(id).annotate("steer.policy", "vpn").hooked(&host));
    let (one, two) = (start("one")?, start("two")?);
    host.check_steered(bed.ways(), 1, || one.exec(&everything(bed.ways())))?;
    two.delete()?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    host.check_steered(bed.ways(), 1, || one.exec(&everything(bed.ways())))?;
    let daemon = host.daemon()?;
    host.check_steered(bed.ways(), 1, || one.exec(&everything(bed.ways())))?;
    one.delete()?;
    host.wait_until_nothing_left(|| Ok(()))?;
    ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    Ok(())
}
