//! containerd, which asks steer as an NRI plugin before a container starts.

use anyhow::ensure;
use steer_tests::{Bed, Containerd, Outcome, Pod, PodOptions, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("without_steer_pods_run", without_steer_pods_run)];

fn without_steer_pods_run() -> Outcome {
    let bed = Bed::new("nri-without")?;
    let containerd = Containerd::start(&bed)?;
    let pod = Pod::run(&containerd, PodOptions::default())?;
    let client = pod.client(&bed, &[])?;
    check_outcomes(&client.outcomes()?, User::Root, 0)?;
    let waiting = pod.waiting(&bed, &[])?;
    waiting.start()?;
    check_outcomes(&waiting.probe(&bed)?, User::Root, 0)?;
    waiting.stop()?;
    waiting.remove()?;
    pod.remove()?;
    containerd.give_link_to_pods("a1", "10.0.1.2/24", "10.0.1.1")?;
    let pod = Pod::run(&containerd, PodOptions { own_network: true, ..PodOptions::default() })?;
    let outcomes = pod.client(&bed, &[])?.outcomes()?;
    let answered = outcomes.iter().filter(|outcome| outcome.saw.as_deref() == Some("10.0.1.2")).count();
    ensure!(answered == 4, "{outcomes:?}");
    Ok(())
}
