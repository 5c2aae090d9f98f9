//! A hundred containers, several at a time.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::ensure;
use steer_tests::{
    Bed, Outcome,
    container::{Bundle, Host, Runtime},
};

use super::{CONFIG, bed, with_both};

with_both![a_hundred_at_once, a_hundred_with_a_daemon];

const CONTAINERS: u32 = 100;
const AT_ONCE: usize = 8;

/// A bed whose containers wait for each other, however slow the machine: only one changes the pins at a time.
fn crowded(name: &str) -> anyhow::Result<Bed> {
    let bed = bed(name)?;
    bed.write_config(&CONFIG.replace("[containers]", "[containers]\ntimeout_ms = 60000"))?;
    Ok(bed)
}

fn a_hundred_at_once(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = crowded("containers-many")?;
    let host = Host::new(&bed)?;
    hundred(&host, &runtime, CONTAINERS)?;
    host.wait_until_nothing_left(|| host.clean_up())
}

/// Only the daemon removes the leftovers.
fn a_hundred_with_a_daemon(runtime: &'static str) -> Outcome {
    let runtime = Runtime::find(runtime)?;
    let bed = crowded("containers-many-daemon")?;
    let host = Host::new(&bed)?;
    let daemon = host.daemon()?;
    hundred(&host, &runtime, CONTAINERS / 2)?;
    host.wait_until_nothing_left(|| Ok(()))?;
    ensure!(daemon.end(nix::sys::signal::Signal::SIGTERM)? == Some(0));
    Ok(())
}

/// Starts and removes containers. Some of them first make a socket, which must be bound.
fn hundred(host: &Host<'_>, runtime: &Runtime, containers: u32) -> Outcome {
    let next = AtomicU32::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= containers {
                return Ok(());
            }
            let i = number % 2;
            let (policy, saw) = if i == 1 { ("vpn", "10.0.1.2") } else { ("lan", "10.0.0.2") };
            let port = host.bed.server.port().to_string();
            let probe = ["/bed/steer-probe", "--json", "--family", "v4", "--port", &port].map(str::to_owned);
            let bundle = Bundle::new(&format!("c{number}")).annotate("steer.policy", policy).command(&probe);
            let ran = runtime.run(host, &bundle.hooked(host))?;
            let seen = format!("\"saw\":\"{saw}\"");
            ensure!(ran.code == 0 && ran.stdout.contains(&seen), "{policy}: {ran:?}");
        }
    };
    std::thread::scope(|scope| {
        let threads = (0..AT_ONCE).map(|_| scope.spawn(work)).collect::<Vec<_>>();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("a thread of the test panicked"),
        })
    })?;
    ensure!(host.cgroups().is_empty(), "{:?}", host.cgroups());
    Ok(())
}
