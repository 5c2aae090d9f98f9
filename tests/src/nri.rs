//! A runtime that knows NRI, as little of it as a plugin needs to catch up with one running container. It shares no code with the
//! product.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::Stdio,
};

use anyhow::{Context as _, ensure};

use crate::{Bed, PATIENCE};

/// The connection on which the runtime calls, and that on which the plugin does.
const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

impl Bed {
    /// Starts a plugin beside a container that runs already, with this process and one annotation. Waits until the plugin has caught
    /// up, and ends it.
    pub fn catch_up(&self, pid: u32, id: &str, annotation: (&str, &str)) -> anyhow::Result<()> {
        let address = self.directory.join("nri.sock");
        let _ = std::fs::remove_file(&address);
        let listener = UnixListener::bind(&address)?;
        let log = std::fs::File::create(self.directory.join("nri.log"))?;
        let mut plugin = self.steer(&["hook", "nri", "--config"]);
        plugin.arg(self.config_file()).arg("--nri-socket").arg(&address).stdout(Stdio::null()).stderr(log);
        let mut plugin = plugin.spawn()?;
        let caught_up =
            accept(&listener, &mut plugin).and_then(|stream| Session(stream).synchronize(pid, id, annotation));
        let _ = plugin.kill();
        plugin.wait()?;
        let log = || std::fs::read_to_string(self.directory.join("nri.log")).unwrap_or_default();
        caught_up.with_context(log)
    }
}

fn accept(listener: &UnixListener, plugin: &mut std::process::Child) -> anyhow::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    steer_lab::wait_until("the plugin to connect", PATIENCE, || {
        accepted = listener.accept().ok();
        accepted.is_some() || plugin.try_wait().is_ok_and(|ended| ended.is_some())
    })?;
    let (stream, _) = accepted.context("the plugin has ended")?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

struct Session(UnixStream);

impl Session {
    fn synchronize(mut self, pid: u32, id: &str, (key, value): (&str, &str)) -> anyhow::Result<()> {
        let (stream, _) = self.receive(RUNTIME, REQUEST).context("the registration")?;
        self.send(RUNTIME, stream, RESPONSE, &[])?;
        // The plugin loads the kernel programs, if they are not loaded.
        let time_limit = [vec![5 << 3], varint(u64::try_from(PATIENCE.as_millis())?)].concat();
        self.call(1, "Configure", &time_limit)?;
        let annotation = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
        let container = [
            field(1, id.as_bytes()),
            field(3, b"model"),
            // Running.
            vec![4 << 3, 3],
            field(6, &annotation),
            [vec![12 << 3], varint(pid.into())].concat(),
        ]
        .concat();
        self.call(3, "Synchronize", &field(2, &container))
    }

    fn call(&mut self, stream: u32, method: &str, payload: &[u8]) -> anyhow::Result<()> {
        let service = field(1, b"nri.pkg.api.v1alpha1.Plugin");
        let request = [service, field(2, method.as_bytes()), field(3, payload)].concat();
        self.send(PLUGIN, stream, REQUEST, &request)?;
        let (answered, answer) = self.receive(PLUGIN, RESPONSE).context(method.to_owned())?;
        // A failure is the first field.
        ensure!(
            answered == stream && answer.first() != Some(&0x0a),
            "{method}: {:?}",
            String::from_utf8_lossy(&answer)
        );
        Ok(())
    }

    fn send(&mut self, connection: u32, stream: u32, kind: u8, body: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(body.len())?;
        let header = [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat();
        let message = [&header, body].concat();
        let frame = [&connection.to_be_bytes()[..], &u32::try_from(message.len())?.to_be_bytes(), &message].concat();
        Ok(self.0.write_all(&frame)?)
    }

    /// The stream and the body of a message, which may come in several frames.
    fn receive(&mut self, connection: u32, kind: u8) -> anyhow::Result<(u32, Vec<u8>)> {
        let mut message = Vec::new();
        loop {
            let word =
                |at: usize| -> Option<u32> { Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?)) };
            if let (Some(length), Some(stream), Some(found)) = (word(0), word(4), message.get(8))
                && message.len() == 10 + length as usize
            {
                ensure!(*found == kind, "another kind of message: {message:?}");
                return Ok((stream, message.split_off(10)));
            }
            let mut header = [0; 8];
            self.0.read_exact(&mut header)?;
            let [from, length] =
                [0, 4].map(|at| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
            ensure!(from == connection, "on connection {from}");
            let mut content = vec![0; length as usize];
            self.0.read_exact(&mut content)?;
            message.extend(content);
        }
    }
}

/// A field of a protobuf message: bytes, a text or another message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push((number & 0x7f) as u8);
    bytes
}
