//! `account`: what the cgroups of a policy send and receive, by link.

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use steer_lab::{Capture, Direction, Packet, SERVER_V4, SERVER_V6, Vector};
use steer_tests::{Bed, Outcome};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("counts_what_passes", counts_what_passes)];

/// The counts of the policy on one link: bytes and packets that were sent, and that came in.
fn counted(bed: &Bed, link: &str) -> anyhow::Result<[u64; 4]> {
    let policy = bed.policy("p")?;
    ensure!(policy["account"] == true, "{policy}");
    let links = policy["traffic"].as_array().context("no list")?;
    let found = links.iter().find(|found| found["interface"] == link);
    let number = |name: &str| found.map_or(Some(0), |found| found[name].as_u64()).context("no number");
    Ok([number("sent_bytes")?, number("sent_packets")?, number("received_bytes")?, number("received_packets")?])
}

/// The packets to and from the server as captured: how many were sent, and how many came in.
fn captured(packets: &[Packet]) -> [u64; 2] {
    let mut sum = [0; 2];
    let servers = [SERVER_V4.into(), SERVER_V6.into()];
    let is_counted = |it: &&Packet| [it.src, it.dst].into_iter().flatten().any(|address| servers.contains(&address));
    for packet in packets.iter().filter(is_counted) {
        sum[usize::from(packet.direction == Direction::In)] += 1;
    }
    sum
}

/// The counts are those of a capture, at each level. What is stopped is not counted, and a new daemon goes on counting.
fn counts_what_passes() -> Outcome {
    for level in ["steer", "observe", "strict"] {
        let bed = Bed::new("account")?;
        let config = |rest: &str| {
            format!("[[policy]]\nname = \"p\"\ninterface = \"a1\"\nenforce = \"{level}\"\ncgroups = [\"@\"]\n{rest}")
        };
        let daemon = bed.daemon(&config(""))?;
        bed.check_steered(&bed.cgroup, 1)?;
        ensure!(bed.policy("p")?["account"] == false);
        let mut capture = Capture::start(&bed.net.client, "a1")?;
        bed.write_config(&config("account = true\n"))?;
        bed.succeed(&["reload"])?;
        ensure!(counted(&bed, "a1")? == [0; 4], "{level}");
        capture.take()?;
        bed.check_steered(&bed.cgroup, 1)?;
        ensure!(daemon.end(Signal::SIGKILL)?.is_none());
        bed.check_steered(&bed.cgroup, 1)?;
        let daemon = bed.daemon(&config("account = true\n"))?;
        bed.check_steered(&bed.cgroup, 1)?;
        let ([sent_bytes, sent, received_bytes, received], seen) = (counted(&bed, "a1")?, captured(&capture.take()?));
        // The last acknowledgement of a connection has no socket, so no cgroup.
        for (count, seen) in [sent, received].into_iter().zip(seen) {
            ensure!(count > 0 && count <= seen && count * 10 >= seen * 7, "{level}: {count} of {seen} packets");
        }
        for (bytes, packets) in [(sent_bytes, sent), (received_bytes, received)] {
            ensure!((packets * 28..packets * 200).contains(&bytes), "{level}: {bytes} bytes in {packets} packets");
        }
        ensure!(counted(&bed, "a0")? == [0; 4], "{level}");
        // A changed policy goes on from there.
        let sockets = bed.sockets("p", "bound")?;
        bed.write_config(&config("account = true\ndns = [\"203.0.113.53\"]\n"))?;
        bed.succeed(&["reload"])?;
        let now = counted(&bed, "a1")?;
        ensure!(now[1] >= sent && now[3] >= received && bed.sockets("p", "bound")? == sockets, "{level}: {now:?}");
        let text = bed.succeed(&["status"])?;
        ensure!(text.contains("a1: sent ") && text.contains(" packets, received "), "{text}");
        bed.write_config(&config(""))?;
        bed.succeed(&["reload"])?;
        ensure!(bed.policy("p")?["traffic"].as_array().is_some_and(Vec::is_empty));
        ensure!(daemon.end(Signal::SIGTERM)? == Some(0));
    }
    stopped_is_not_counted()
}

fn stopped_is_not_counted() -> Outcome {
    let bed = Bed::new("account-stopped")?;
    let _daemon = bed.daemon("[[policy]]\nname = \"p\"\ninterface = \"a1\"\naccount = true\ncgroups = [\"@\"]\n")?;
    let attempt = bed.attempt_in(&bed.cgroup, Vector::IpPktinfo)?;
    ensure!(!attempt.is_ok(), "{attempt:?}");
    ensure!(bed.sockets("p", "stopped_egress")? > 0 && counted(&bed, "a0")? == [0; 4]);
    Ok(())
}
