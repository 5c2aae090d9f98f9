//! A runtime that reports a process id which another process has by now. The test plays the runtime.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Stdio},
};

use anyhow::{Context as _, ensure};
use prost::Message;
use steer_tests::{Bed, Outcome, PATIENCE, User};

pub(super) const TEST: crate::Test = ("a_reused_process_id_is_left_alone", a_reused_process_id_is_left_alone);

const RUNNING: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Synchronize {
    #[prost(message, repeated, tag = "2")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(int32, tag = "4")]
    state: i32,
    #[prost(btree_map = "string, string", tag = "6")]
    annotations: BTreeMap<String, String>,
    #[prost(uint32, tag = "12")]
    pid: u32,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends one message in one frame, on connection 1 (the runtime calls) or 2 (the runtime answers).
fn send(stream: &mut UnixStream, connection: u32, kind: u8, body: &[u8]) -> Outcome {
    let length = u32::try_from(body.len())?;
    let message = [&length.to_be_bytes()[..], &1_u32.to_be_bytes(), &[kind, 0], body].concat();
    let frame = [&connection.to_be_bytes()[..], &u32::try_from(message.len())?.to_be_bytes(), &message].concat();
    Ok(stream.write_all(&frame)?)
}

/// Skips one message on this connection.
fn receive(stream: &mut UnixStream, connection: u32) -> Outcome {
    let (mut seen, mut wanted) = (Vec::new(), 10);
    while seen.len() < wanted {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let (number, length) = header.split_at(4);
        ensure!(number == connection.to_be_bytes(), "a message on another connection: {number:?}");
        let mut content = vec![0; usize::try_from(u32::from_be_bytes(length.try_into()?))?];
        stream.read_exact(&mut content)?;
        seen.extend(content);
        if let Some(length) = seen.first_chunk() {
            wanted = 10 + usize::try_from(u32::from_be_bytes(*length))?;
        }
    }
    Ok(())
}

fn a_reused_process_id_is_left_alone() -> Outcome {
    let bed = Bed::new("nri-reused")?;
    bed.write_config(super::CONFIG)?;
    let stranger = bed.cgroup.child("stranger")?;
    let mut command = std::process::Command::new("cat");
    bed.place(&mut command, Some(&stranger), User::Nobody);
    let process = Killed(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
    let socket = bed.directory.join("nri.sock");
    let listener = UnixListener::bind(&socket)?;
    let log = bed.directory.join("nri.log");
    let mut plugin = bed.steer_here(&["hook", "nri", "--nri-socket"]);
    plugin.arg(&socket).arg("--config").arg(bed.config_file()).env("STEER_LOG", "info");
    let _plugin = Killed(plugin.stderr(File::create(&log)?).spawn()?);
    let (mut runtime, _) = listener.accept()?;
    runtime.set_read_timeout(Some(PATIENCE))?;
    receive(&mut runtime, 2)?;
    send(&mut runtime, 2, 2, &[])?;
    let asks = |name: &str, policy: &str| Container {
        id: name.repeat(64),
        state: RUNNING,
        annotations: [("steer.policy".to_owned(), policy.to_owned())].into(),
        pid: process.0.id(),
    };
    // One may have its policy, and the other is to be closed.
    let payload = Synchronize { containers: vec![asks("a", "second"), asks("b", "third")] }.encode_to_vec();
    let (service, method) = ("nri.pkg.api.v1alpha1.Plugin".to_owned(), "Synchronize".to_owned());
    send(&mut runtime, 1, 1, &Request { service, method, payload }.encode_to_vec())?;
    receive(&mut runtime, 1)?;
    let said = fs::read_to_string(&log).context("no log")?;
    ensure!(said.matches("it may be another process").count() == 2, "{said}");
    ensure!(super::attached(&bed)?.is_empty(), "{:?}", super::attached(&bed)?);
    bed.check_unsteered(Some(&stranger))
}
