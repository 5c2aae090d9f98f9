//! Uplinks in a VRF, and a VRF as uplink, where the kernel has VRFs.

use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use steer_lab::{Error, client_v4, client_v6, gateway_v4, gateway_v6};
use steer_tests::{Bed, NotHere, Outcome, Spy, User, check_outcomes};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_link_in_a_vrf", a_link_in_a_vrf),
    ("the_vrf_itself_steered", the_vrf_itself_steered),
    ("the_vrf_itself_is_closed_if_strict", the_vrf_itself_is_closed_if_strict),
];

const VRF: &str = "vrf1";
const TABLE: u32 = 1001;

/// A bed whose second uplink is in a VRF.
fn bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    let client = &bed.net.client;
    match client.add_vrf(VRF, TABLE) {
        Err(Error::Os { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Err(NotHere("this kernel has no VRF".to_owned()).into());
        }
        made => made?,
    }
    client.set_master("a1", VRF)?;
    client.wait_running("a1")?;
    for (address, prefix_len) in [(IpAddr::V4(client_v4(1)), 24), (IpAddr::V6(client_v6(1)), 64)] {
        client.add_address("a1", address, prefix_len)?;
    }
    for gateway in [IpAddr::V4(gateway_v4(1)), IpAddr::V6(gateway_v6(1))] {
        client.add_default_route_to(TABLE, gateway, "a1")?;
    }
    Ok(bed)
}

/// Everything leaves by the VRF's link alone.
fn check(bed: &Bed) -> Outcome {
    for user in [User::Root, User::Nobody] {
        let mut spy = Spy::on(bed, &["a1", VRF])?;
        let outcomes = bed.probe(Some(&bed.cgroup), user)?;
        spy.saw_nothing().with_context(|| format!("{user:?}"))?;
        check_outcomes(&outcomes, user, 1).with_context(|| format!("{user:?}"))?;
    }
    Ok(())
}

fn a_link_in_a_vrf() -> Outcome {
    let bed = bed("vrf-link")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    check(&bed)
}

fn the_vrf_itself_steered() -> Outcome {
    let bed = bed("vrf-steer")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", VRF, "--enforce", "steer"])?;
    check(&bed)
}

/// Its packets leave by a link in it, which is another one than the uplink: they are stopped.
fn the_vrf_itself_is_closed_if_strict() -> Outcome {
    let bed = bed("vrf-strict")?;
    bed.succeed(&["attach", bed.cgroup.path(), "-i", VRF])?;
    let mut spy = Spy::on(&bed, &[VRF])?;
    let outcomes = bed.probe(Some(&bed.cgroup), User::Root)?;
    spy.saw_nothing()?;
    ensure!(outcomes.iter().all(|outcome| !outcome.is_ok()), "{outcomes:?}");
    ensure!(bed.sockets(VRF, "stopped_egress")? > 0);
    Ok(())
}
