//! Sockets that are not bound to the uplink.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use steer_lab::{SERVER_V4, client_v4, wait_until};
use steer_tests::{Bed, Outcome, PATIENCE, User};

use super::{CONFIG, Process, attached_bed, idle};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_socket_made_before", a_socket_made_before),
    ("a_socket_made_elsewhere", a_socket_made_elsewhere),
    ("a_socket_of_a_removed_uplink", a_socket_of_a_removed_uplink),
];

/// A client with a UDP socket, in the bed's cgroup, and its port.
pub(super) fn listening(bed: &Bed) -> anyhow::Result<(Process, String)> {
    let mut command = bed.client(Some(&bed.cgroup), User::Nobody)?;
    let mut client = Process(command.arg("--listen").stdout(Stdio::piped()).spawn()?);
    let mut port = String::new();
    BufReader::new(client.0.stdout.take().context("no pipe")?).read_line(&mut port)?;
    Ok((client, port.trim().to_owned()))
}

fn a_socket_made_before() -> Outcome {
    for (enforce, severity, why) in [("strict", "warning", "are stopped"), ("steer", "error", "leave by other links")] {
        let bed = Bed::new("doctor-before")?;
        let (client, port) = listening(&bed)?;
        let attach = ["attach", bed.cgroup.path(), "-i", "a1", "--enforce", enforce];
        bed.succeed(&attach)?;
        let finding = bed.only_finding("older-sockets")?;
        let process = serde_json::json!({ "pid": client.0.id(), "comm": "steer-probe" });
        ensure!(finding.json["subject"]["process"] == process, "{finding:?}");
        ensure!(finding.text("severity") == severity && finding.text("why").contains(why), "{finding:?}");
        for text in [bed.cgroup.path(), "UDP socket ", &format!(":{port} "), "(not bound)"] {
            ensure!(finding.text("what").contains(text), "{text} in {finding:?}");
        }
        // It continues to work, over the uplink.
        ensure!(finding.command()?.ends_with(" --existing rebind"), "{finding:?}");
        ensure!(bed.repair(&finding)?);
        bed.is_healthy()?;
        drop(client);
        // For a policy of the configuration, it names the service to restart.
        bed.succeed(&["off", "--forget"])?;
        let (mut client, _) = listening(&bed)?;
        let _daemon = bed.daemon(&format!("{CONFIG}enforce = \"{enforce}\"\n"))?;
        let finding = bed.only_finding("older-sockets")?;
        let advice = format!("restart the program of process {}; ", client.0.id());
        ensure!(finding.advice()?.starts_with(&advice), "{finding:?}");
        client.0.kill()?;
        client.0.wait()?;
        bed.is_healthy()?;
    }
    Ok(())
}

fn a_socket_made_elsewhere() -> Outcome {
    let bed = attached_bed("doctor-elsewhere")?;
    let connect = |address: SocketAddr| bed.net.client.run(|| TcpStream::connect(address));
    let listener = bed.net.client.run(|| TcpListener::bind((client_v4(0), 0)))??;
    let local = connect(listener.local_addr()?)??;
    let holder = idle(&bed, &bed.cgroup, OwnedFd::from(local).into())?;
    // Traffic to this host leaves by no link.
    bed.is_healthy()?;
    drop(holder);
    let server = SocketAddr::from((SERVER_V4, bed.server.port()));
    let inner = bed.cgroup.child("unit.service")?;
    let holder = idle(&bed, &inner, OwnedFd::from(connect(server)??).into())?;
    let finding = bed.only_finding("older-sockets")?;
    let text = format!(" to {server} (not bound)");
    ensure!(finding.text("what").contains(&text), "{text} in {finding:?}");
    ensure!(finding.text("severity") == "error" && finding.text("why").contains("made elsewhere"), "{finding:?}");
    ensure!(finding.command()? == "systemctl restart unit.service", "{finding:?}");
    // An exemption does not report it.
    bed.succeed(&["attach", inner.path(), "-i", "none"])?;
    bed.is_healthy()?;
    bed.succeed(&["detach", inner.path()])?;
    drop(holder);
    bed.is_healthy()
}

fn a_socket_of_a_removed_uplink() -> Outcome {
    let mut bed = Bed::new("doctor-stale")?;
    let _daemon = bed.daemon(CONFIG)?;
    let _client = listening(&bed)?;
    bed.is_healthy()?;
    let before = bed.net.ifindex(1)?;
    bed.net.remove_uplink(1)?;
    bed.only_finding("uplink")?;
    bed.net.create_uplink(1)?;
    wait_until("the daemon to follow", PATIENCE, || bed.only_finding("older-sockets").is_ok())?;
    let finding = bed.only_finding("older-sockets")?;
    let text = format!("(bound to index {before}, which no interface has)");
    ensure!(finding.text("what").contains(&text), "{text} in {finding:?}");
    Ok(())
}
