//! Docker with `steer hook wrap` among its runtimes.

use anyhow::ensure;
use steer_tests::{
    Outcome,
    container::{Docker, Host, everything},
    output,
};

use super::bed;

pub(crate) const TESTS: &[crate::Test] = &[
    ("docker::by_variable", by_variable),
    ("docker::restarted_and_executed", restarted_and_executed),
    ("docker::a_request_that_is_not_allowed_is_refused", a_request_that_is_not_allowed_is_refused),
];

fn by_variable() -> Outcome {
    let bed = bed("docker-variable")?;
    let host = Host::new(&bed)?;
    let docker = Docker::start(&host)?;
    let everything = everything(bed.ways());
    let steered = ["--rm", "--network", "host", "--runtime", "steered"];
    for (variable, i) in [("STEER_POLICY=vpn", 1), ("STEER_POLICY=lan", 0), ("STEER_INTERFACE=a1", 1)] {
        let options = [&steered as &[&str], &["--env", variable]].concat();
        host.check_steered(bed.ways(), i, || output(docker.run(&options).args(&everything)))?;
    }
    // A separate runtime for an uplink needs no variable. A container that requests nothing is not an error.
    let options = ["--rm", "--network", "host", "--runtime", "vpn"];
    host.check_steered(bed.ways(), 1, || output(docker.run(&options).args(&everything)))?;
    host.check_unsteered(bed.ways(), || output(docker.run(&steered).args(&everything)))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

fn restarted_and_executed() -> Outcome {
    let bed = bed("docker-restart")?;
    let host = Host::new(&bed)?;
    let docker = Docker::start(&host)?;
    let everything = everything(bed.ways());
    for (name, variable) in [("one", "STEER_POLICY=vpn"), ("two", "STEER_POLICY=lan")] {
        let options = ["--detach", "--name", name, "--network", "host", "--runtime", "steered", "--env", variable];
        host.succeed(docker.run(&options).args(["sleep", "infinity"]))?;
    }
    let exec = |name: &str| output(docker.command(&["exec", name]).args(&everything));
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.check_steered(bed.ways(), 0, || exec("two"))?;
    host.succeed(&mut docker.command(&["restart", "--time", "0", "one"]))?;
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.succeed(&mut docker.command(&["stop", "--time", "0", "one"]))?;
    host.succeed(&mut docker.command(&["start", "one"]))?;
    host.check_steered(bed.ways(), 1, || exec("one"))?;
    host.succeed(&mut docker.command(&["stop", "--time", "0", "one"]))?;
    host.check_steered(bed.ways(), 0, || exec("two"))?;
    host.succeed(&mut docker.command(&["rm", "--force", "two"]))?;
    host.wait_until_nothing_left(|| host.clean_up())
}

fn a_request_that_is_not_allowed_is_refused() -> Outcome {
    let bed = bed("docker-refused")?;
    let host = Host::new(&bed)?;
    let docker = Docker::start(&host)?;
    let rows = [
        ("host", "STEER_POLICY=kept", "it is not in `policies`"),
        ("host", "STEER_POLICY=vpm", "no policy"),
        ("host", "STEER_INTERFACE=a0", "it is not in `interfaces`"),
        ("none", "STEER_POLICY=vpn", "does not start"),
    ];
    for (network, variable, message) in rows {
        let options = ["--rm", "--network", network, "--runtime", "steered", "--env", variable];
        let refused = host.check_silent(bed.ways(), || output(docker.run(&options).args(everything(bed.ways()))))?;
        ensure!(refused.code != 0 && refused.stdout.is_empty(), "{variable}: {refused:?}");
        ensure!(refused.stderr.contains(message), "{variable}: no {message:?} in {refused:?}");
        host.wait_until_nothing_left(|| host.clean_up())?;
    }
    Ok(())
}
