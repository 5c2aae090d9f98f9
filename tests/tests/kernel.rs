//! One test for each feature that depends on the kernel: the columns of docs/kernels.md, which `cargo xtask vm` writes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use steer_lab::{Family, Vector};
use steer_tests::{Bed, Level, Outcome, Scene, Try, User, binary, output};

use crate::{Test, dns, filter, guards, reach, uplink_groups, uplinks, vrf, wireguard};

pub(crate) const TESTS: &[Test] = &[
    ("demo", demo),
    ("bind", bind),
    ("steer", steer),
    ("strict", strict),
    ("dns", dns::every_way_of_asking),
    ("LSM guard", guards::sockets_past_ip_are_refused),
    ("32 bit calls", filter::compat_calls_are_possible),
    ("32 bit guard", filter::compat_calls_are_refused_and_reported),
    ("exec guard", filter::exec_of_root_refuses_what_no_program_sees),
    ("without LSM guard", filter::without_security_programs),
    ("last ACK", guards::the_last_acknowledgement_of_a_closed_connection),
    ("local host", reach::this_host),
    ("exceptions", reach::exceptions),
    ("uplink group", uplink_groups::shares_follow_the_weights),
    ("uplink made again", uplinks::deleted_and_made_again),
    ("VRF", vrf::a_link_in_a_vrf),
    ("ip vrf exec beside", vrf::ip_vrf_exec_beside_a_policy),
    ("WireGuard", wireguard::by_the_tunnel_only),
    ("WireGuard made again", wireguard::removed_and_made_again_under_load),
];

fn demo() -> Outcome {
    let mut demo = std::process::Command::new(binary("STEER_DEMO", "steer-demo"));
    demo.arg("--steer").arg(binary("STEER_BIN", "steer"));
    let demo = output(&mut demo)?;
    ensure!(demo.code == 0, "{demo:?}");
    Ok(())
}

/// Whether an attempt worked, and whether a packet left by another link, at a level.
fn attempt(bed: &Bed, vector: Vector, level: Level, family: Family) -> anyhow::Result<(bool, bool)> {
    let timeout = Duration::from_secs(2);
    let seen = bed.attempt(Try { vector, user: User::Nobody, family, scene: Scene::Steered, timeout }, level)?;
    Ok((seen.attempt.is_ok(), !seen.leaked.is_empty()))
}

/// Checks that a level steers plain use, and the result of a lost binding: `(works, leaks)`, with a later connect and
/// without.
fn check(level: Level, connecting: (bool, bool), sending: (bool, bool)) -> Outcome {
    let bed = Bed::new(&format!("kernel-{}", level.name()))?;
    bed.furnish_for_escapes()?;
    level.attach(&bed, &bed.cgroup)?;
    bed.check_steered(&bed.cgroup, 1)?;
    for family in [Family::V4, Family::V6] {
        for (vector, expected) in [(Vector::UdpAfUnspecConnect, connecting), (Vector::UdpAfUnspec, sending)] {
            let seen = attempt(&bed, vector, level, family).with_context(|| format!("{vector:?} {family:?}"))?;
            ensure!(seen == expected, "{vector:?} {family:?}: {seen:?} and not {expected:?} (works, leaks)");
        }
    }
    Ok(())
}

/// The leak of a lost binding proves that the captures work.
fn bind() -> Outcome {
    check(Level::Bind, (true, true), (true, true))
}

fn steer() -> Outcome {
    check(Level::Steer, (true, false), (true, true))
}

fn strict() -> Outcome {
    check(Level::Strict, (true, false), (false, false))
}
