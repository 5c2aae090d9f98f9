//! runc and crun behind `steer hook wrap`.

use anyhow::ensure;
use steer_tests::{
    Outcome,
    container::{Bundle, Host, Network, OwnNetwork, Runtime, everything},
};

use super::{bed, with_both};

with_both![
    wrapped_by_annotation,
    wrapped_by_variable,
    wrapped_for_all,
    wrapped_in_a_network_that_comes_late,
    wrapped_is_not_started_when_refused,
    wrapped_does_not_run,
    wrapped_passes_through,
];

fn wrapper(host: &Host<'_>, options: &[&str]) -> Vec<String> {
    let mut line = host.hook_line("wrap");
    line.extend(options.iter().map(ToString::to_string));
    line.push("--".to_owned());
    line
}

fn wrapped_by_annotation(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap")?;
    let host = Host::new(&bed)?;
    let runtime = runtime.wrapped(wrapper(&host, &[]));
    for (name, value, i) in [("steer.policy", "vpn", 1), ("steer.policy", "lan", 0), ("steer.interface", "a1", 1)] {
        let container = runtime.start(&host, &Bundle::new("one").annotate(name, value))?;
        host.check_steered(bed.ways(), i, || container.exec(&everything(bed.ways())))?;
        // `delete` cleans up: no hook is called.
        container.delete()?;
        host.wait_until_nothing_left(|| host.clean_up())?;
    }
    let container = runtime.start(&host, &Bundle::new("one"))?;
    host.check_unsteered(bed.ways(), || container.exec(&everything(bed.ways())))?;
    container.delete()?;
    host.check_nothing_left()
}

/// The image of a bundle is not known, so its variables may be those of the image.
fn wrapped_by_variable(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-variable")?;
    let host = Host::new(&bed)?;
    for (options, message) in [(&[][..], "add --variables"), (&["--variables"], "cannot find its image")] {
        let runtime = runtime.clone().wrapped(wrapper(&host, options));
        let refused = host.check_silent(bed.ways(), || {
            let created = runtime.create(&host, &Bundle::new("one").variable("STEER_POLICY", "vpn"))?;
            created.map_err(|refused| anyhow::anyhow!("{refused:?}"))?.start()
        })?;
        ensure!(refused.code != 0 && refused.stderr.contains(message), "{options:?}: {refused:?}");
    }
    let runtime = runtime.wrapped(wrapper(&host, &["--policy", "vpn"]));
    let container = runtime.start(&host, &Bundle::new("one").variable("STEER_POLICY", "lan"))?;
    host.check_steered(bed.ways(), 1, || container.exec(&everything(bed.ways())))?;
    container.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// One runtime for each uplink, whatever its containers request.
fn wrapped_for_all(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-all")?;
    let host = Host::new(&bed)?;
    // The host may select a policy that containers may not request.
    for (options, i) in [(["--policy", "vpn"], 1), (["--policy", "kept"], 0), (["--interface", "a1"], 1)] {
        let runtime = runtime.clone().wrapped(wrapper(&host, &options));
        let container = runtime.start(&host, &Bundle::new("one"))?;
        host.check_steered(bed.ways(), i, || container.exec(&everything(bed.ways())))?;
        container.delete()?;
    }
    let runtime = runtime.wrapped(wrapper(&host, &["--policy", "vpn"]));
    let created = runtime.create(&host, &Bundle::new("one").annotate("steer.policy", "lan"))?;
    let container = created.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let refused = container.start()?;
    ensure!(refused.code != 0 && refused.stderr.contains("another uplink"), "{refused:?}");
    container.delete()?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// The network appears between create and start, as with Docker from version 28 on.
fn wrapped_in_a_network_that_comes_late(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-late")?;
    let mut own = OwnNetwork::new(&bed)?;
    own.net.remove_uplink(1)?;
    let host = Host::new(&bed)?;
    let runtime = runtime.wrapped(wrapper(&host, &[]));
    let joined = own.net.client.clone();
    let bundle = Bundle::new("one").network(Network::Joined(&joined)).annotate("steer.policy", "vpn");
    let created = runtime.create(&host, &bundle)?;
    let container = created.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    let early = container.start()?;
    ensure!(early.code != 0 && early.stderr.contains("does not start"), "{early:?}");
    own.net.create_uplink(1)?;
    let started = container.start()?;
    ensure!(started.code == 0, "{started:?}");
    host.check_steered(own.ways(), 1, || container.exec(&everything(own.ways())))?;
    container.delete()
}

fn wrapped_is_not_started_when_refused(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-refused")?;
    let host = Host::new(&bed)?;
    let runtime = runtime.wrapped(wrapper(&host, &[]));
    let rows = [
        ("steer.policy", "kept", "it is not in `policies`"),
        ("steer.policy", "vpm", "no policy \"vpm\""),
        ("steer.interface", "a0", "it is not in `interfaces`"),
        ("steer.polcy", "vpn", "steer.polcy"),
    ];
    for (name, value, message) in rows {
        let refused = host.check_silent(bed.ways(), || {
            let bundle = Bundle::new("one").annotate(name, value).command(&everything(bed.ways()));
            match runtime.create(&host, &bundle)? {
                Ok(container) => container.start(),
                Err(refused) => Ok(refused),
            }
        })?;
        ensure!(refused.code != 0 && refused.stderr.contains(message), "{name}: {refused:?}");
        host.check_nothing_left()?;
        ensure!(host.cgroups().is_empty(), "{name}: {:?}", host.cgroups());
    }
    Ok(())
}

/// `run` leaves no time between create and start.
fn wrapped_does_not_run(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-run")?;
    let host = Host::new(&bed)?;
    let runtime = runtime.wrapped(wrapper(&host, &[]));
    let bundle = || Bundle::new("one").command(&everything(bed.ways()));
    let refused = host.check_silent(bed.ways(), || runtime.run(&host, &bundle().annotate("steer.policy", "vpn")))?;
    ensure!(refused.code != 0 && refused.stderr.contains("created and started"), "{refused:?}");
    host.check_unsteered(bed.ways(), || runtime.run(&host, &bundle()))?;
    host.check_nothing_left()
}

/// The wrapper passes all other arguments to the real runtime, and returns its exit status.
fn wrapped_passes_through(runtime: &'static str) -> Outcome {
    let bare = Runtime::find(runtime)?;
    let bed = bed("containers-wrap-hands-on")?;
    let host = Host::new(&bed)?;
    let wrapped = bare.clone().wrapped(wrapper(&host, &[]));
    let say = |runtime: &Runtime, arguments: &[&str]| steer_tests::output(&mut runtime.command(&host, arguments));
    for arguments in [&["--version"] as &[&str], &["state", "nobody"]] {
        let (one, other) = (say(&bare, arguments)?, say(&wrapped, arguments)?);
        ensure!(one.code == other.code && one.stdout == other.stdout, "{arguments:?}: {one:?} {other:?}");
    }
    // An unknown command is refused, because it might start a container.
    let unknown = say(&wrapped, &["no-such-command"])?;
    ensure!(unknown.code == 1 && unknown.stderr.contains("is no command of an OCI runtime"), "{unknown:?}");
    let exits = wrapped.run(&host, &Bundle::new("one").command(&super::shell("exit 7")))?;
    ensure!(exits.code == 7, "{exits:?}");
    Ok(())
}
