//! All attempts to escape from inside a container, as its root.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, ensure};
use steer_lab::{Capture, Direction, Family, Packet, Vector, wait_until};

use super::Host;
use crate::{
    Output, PATIENCE, Scene, Try, User,
    escape::{is_marker, leaked},
};

/// The number of concurrent attempts: most of them wait for an answer that never comes.
const AT_ONCE: usize = 16;
/// No program sees these, except on security hooks. steer stops them only where it reports that it covers them.
const UNSEEN: [Vector; 12] = [
    Vector::PacketRaw,
    Vector::PacketDgram,
    Vector::PacketBypass,
    Vector::PacketLegacy,
    Vector::PacketUring,
    Vector::Xdp,
    Vector::Smc,
    Vector::SmcInet,
    Vector::CompatJoin,
    Vector::CompatJoinSocketcall,
    Vector::CompatJoinUring,
    Vector::CompatPacket,
];

impl Host<'_> {
    /// Checks that no attempt of a container in the host's network, steered to `a1`, gets a packet out by another link.
    /// `run` makes a shell in the container run a line. Packets from outside the container prove that the captures
    /// work.
    pub fn check_no_escape(&self, run: impl FnOnce(&str) -> anyhow::Result<Output>) -> anyhow::Result<()> {
        let bed = self.bed;
        let line = self.attempts()?;
        let mut client = Capture::start_except(&bed.net.client, &["lo", bed.net.link(1)])?;
        let mut server = Capture::start_except(&bed.net.server, &["lo", &bed.net.server_link(1)])?;
        let ran = run(&line)?;
        ensure!(ran.stdout.contains(r#""outcome":"ok""#), "not one attempt was plain use that works: {ran:?}");
        let markers = [bed.send_marker(Family::V4)?, bed.send_marker(Family::V6)?];
        let (mut left, mut arrived) = (Vec::new(), Vec::new());
        let mut failed = None;
        wait_until("packets of the test's own on the other link", PATIENCE, || {
            let took = client.take().and_then(|packets| {
                left.extend(packets);
                arrived.extend(server.take()?);
                Ok(())
            });
            failed = took.err();
            let has = |packets: &[Packet]| {
                markers.iter().all(|&marker| packets.iter().any(|packet| is_marker(packet, marker)))
            };
            failed.is_some() || has(&left) && has(&arrived)
        })
        .with_context(|| format!("{ran:?}"))?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let mut out = leaked(&left, Direction::Out, &markers);
        out.extend(leaked(&arrived, Direction::In, &markers));
        ensure!(out.is_empty(), "{} packets got out: {out:#?}\n{}", out.len(), ran.stdout);
        Ok(())
    }

    /// A shell line that makes all attempts.
    fn attempts(&self) -> anyhow::Result<String> {
        let covered = self.bed.not_covered()?.is_none();
        let mut line = String::new();
        let vectors = Vector::all().iter().filter(|&vector| covered || !UNSEEN.contains(vector));
        let all = vectors.flat_map(|&vector| [Family::V4, Family::V6].map(|family| (vector, family)));
        for (number, (vector, family)) in all.enumerate() {
            let timeout = Duration::from_millis(200);
            let this = Try { vector, user: User::Root, family, scene: Scene::Steered, timeout };
            let program = self.bed.escape_program(this, &self.bed.cgroup)?;
            let arguments = program.get_args().map(|argument| argument.to_string_lossy().into_owned());
            write!(line, "/bed/steer-escape {} </dev/null & ", arguments.collect::<Vec<_>>().join(" "))?;
            if number % AT_ONCE == AT_ONCE - 1 {
                line += "wait; ";
            }
        }
        Ok(line + "wait")
    }
}
