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
    ("docker::what_the_image_asks_for_does_not_count", what_the_image_asks_for_does_not_count),
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

fn what_the_image_asks_for_does_not_count() -> Outcome {
    let bed = bed("docker-image")?;
    let host = Host::new(&bed)?;
    let docker = Docker::start(&host)?;
    let everything = everything(bed.ways());
    docker.image("asks", &["STEER_POLICY=lan", "STEER_DNS=10.0.0.1"])?;
    let run = |image: &str, runtime: &str, variables: &[&str]| {
        let options = ["--rm", "--network", "host", "--runtime", runtime].into_iter();
        let options: Vec<_> = options.chain(variables.iter().flat_map(|variable| ["--env", *variable])).collect();
        output(docker.run_image(&options, image).args(&everything))
    };
    for (image, runtime, variables, message) in [
        ("asks", "steered", &[][..], "is also in the image"),
        ("asks", "steered", &["STEER_POLICY=vpn"], "variable STEER_DNS=10.0.0.1 is also in the image"),
        ("asks", "annotated", &[], "STEER_POLICY=lan is a variable of the container"),
        ("lab", "annotated", &["STEER_POLICY=vpn"], "STEER_POLICY=vpn is a variable of the container"),
    ] {
        let refused = host.check_silent(bed.ways(), || run(image, runtime, variables))?;
        ensure!(refused.code != 0 && refused.stdout.is_empty(), "{image} {runtime} {variables:?}: {refused:?}");
        ensure!(refused.stderr.contains(message), "{image} {runtime} {variables:?}: {refused:?}");
    }
    // The host chooses.
    host.check_steered(bed.ways(), 1, || run("asks", "vpn", &[]))?;
    docker.image("other", &["STEER_POLICY=lan"])?;
    host.check_steered(bed.ways(), 1, || run("other", "steered", &["STEER_POLICY=vpn"]))?;
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
