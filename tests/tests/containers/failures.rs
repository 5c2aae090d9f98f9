//! A hook that fails at any of its steps: the container does not start, and nothing is left.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::ensure;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use steer_tests::{
    Outcome,
    container::{Bundle, Host, Runtime, everything},
};

use super::{CONFIG, bed, run_everything, with_both};

with_both![
    a_broken_configuration,
    pins_that_cannot_be_made,
    a_lock_that_is_held,
    a_hook_that_is_killed,
    a_cgroup_of_its_own_is_needed,
];

fn a_broken_configuration(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-config")?;
    let host = Host::new(&bed)?;
    let bundle = || Bundle::new("one").annotate("steer.policy", "vpn");
    let rows = [("[[policy", "steer.toml:1:9"), ("[containers]\npolices = []\n", "polices"), ("", "no policy")];
    for (config, message) in rows {
        bed.write_config(config)?;
        let refused = host.check_silent(bed.ways(), || run_everything(&host, &runtime, bundle(), bed.ways()))?;
        ensure!(refused.code != 0 && refused.stdout.is_empty(), "{config}: {refused:?}");
        ensure!(refused.stderr.contains(message), "{config}: no {message:?} in {refused:?}");
        host.check_nothing_left()?;
        ensure!(host.cgroups().is_empty(), "{config}: {:?}", host.cgroups());
    }
    std::fs::remove_file(bed.config_file())?;
    let refused = host.check_silent(bed.ways(), || run_everything(&host, &runtime, bundle(), bed.ways()))?;
    ensure!(refused.code != 0 && refused.stderr.contains("steer.toml"), "{refused:?}");
    // A container that requests nothing starts anyway.
    host.check_unsteered(bed.ways(), || run_everything(&host, &runtime, Bundle::new("one"), bed.ways()))?;
    host.check_nothing_left()?;
    bed.write_config(CONFIG)?;
    host.check_steered(bed.ways(), 1, || run_everything(&host, &runtime, bundle(), bed.ways()))
}

fn pins_that_cannot_be_made(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-pins")?;
    let host = Host::new(&bed)?;
    // A directory that is not empty, and one that cannot be created.
    for pins in [bed.directory.to_string_lossy().into_owned(), "/proc/steer".to_owned()] {
        let mut line = host.hook_line("oci");
        line[2].clone_from(&pins);
        let bundle = Bundle::new("one").annotate("steer.policy", "vpn").command(&everything(bed.ways()));
        let bundle = bundle.hook("createRuntime", &line).hook("poststop", &line);
        let refused = host.check_silent(bed.ways(), || runtime.run(&host, &bundle))?;
        ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
        ensure!(refused.stderr.contains(&pins), "no {pins} in {refused:?}");
        ensure!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    }
    host.check_nothing_left()
}

/// A hook waits for a held lock, but only for a limited time.
fn a_lock_that_is_held(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-lock")?;
    bed.write_config(&CONFIG.replace("[containers]", "[containers]\ntimeout_ms = 300"))?;
    let host = Host::new(&bed)?;
    let _daemon = host.daemon()?;
    let lock = Flock::lock(File::open(&bed.pins)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let bundle = Bundle::new("one").annotate("steer.policy", "vpn").hooked(&host).command(&everything(bed.ways()));
    let begun = Instant::now();
    let refused = host.check_silent(bed.ways(), || runtime.run(&host, &bundle))?;
    let took = begun.elapsed();
    ensure!(refused.code != 0 && refused.stdout.is_empty(), "{refused:?}");
    ensure!(took < Duration::from_secs(8), "a hook that waits for the lock took {took:?}: {refused:?}");
    lock.unlock().map_err(|(_, errno)| errno)?;
    host.wait_until_nothing_left(|| host.clean_up())?;
    host.check_steered(bed.ways(), 1, || runtime.run(&host, &bundle))
}

/// Whatever step the hook was killed at, the container does not start or is steered, and the next clean-up removes all
/// leftovers.
fn a_hook_that_is_killed(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = bed("containers-killed")?;
    let host = Host::new(&bed)?;
    let (mut started, mut refused) = (0, 0);
    for after_ms in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30] {
        let mut line = ["/usr/bin/timeout", "-s", "KILL", &format!("0.{after_ms:03}1")].map(str::to_owned).to_vec();
        line.extend(host.hook_line("oci"));
        let bundle = Bundle::new("one").annotate("steer.policy", "vpn").command(&everything(bed.ways()));
        let bundle = bundle.hook("createRuntime", &line).hook("poststop", &host.hook_line("oci"));
        let ran = host.check_silent_but(bed.ways(), 1, || runtime.run(&host, &bundle))?;
        if ran.code == 0 || !ran.stdout.is_empty() {
            started += 1;
        } else {
            refused += 1;
        }
        ensure!(host.cgroups().is_empty(), "{:?}", host.cgroups());
        host.wait_until_nothing_left(|| host.clean_up())?;
    }
    ensure!(refused > 0, "no hook was killed in time: {started} started");
    let bundle = Bundle::new("one").annotate("steer.policy", "vpn");
    host.check_steered(bed.ways(), 1, || run_everything(&host, &runtime, bundle, bed.ways()))
}

/// A policy for the runtime's own cgroup, or for the whole host, would apply to more than the container.
fn a_cgroup_of_its_own_is_needed(_runtime: &'static str) -> Outcome {
    let bed = bed("containers-cgroup")?;
    let host = Host::new(&bed)?;
    for (pid, message) in [(host.pid(), "cgroup of its own"), (1, "")] {
        let refused = host.hook(&json!({
            "ociVersion": "1.0.2", "id": "one", "status": "created", "pid": pid, "bundle": "/",
            "annotations": {"steer.policy": "vpn"},
        }))?;
        ensure!(refused.code == 1 && refused.stderr.contains(message), "{pid}: {refused:?}");
        ensure!(refused.stderr.trim().lines().count() == 1, "more than one line: {refused:?}");
        host.check_nothing_left()?;
    }
    Ok(())
}
