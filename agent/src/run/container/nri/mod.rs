//! NRI, the interface by which containerd and CRI-O ask plugins before a container starts: the plugin's side of it, as
//! in the `api.proto` of github.com/containerd/nri.
//!
//! One unix socket carries two connections, each a stream of ttrpc messages: by one the runtime calls the plugin, by
//! the other the plugin calls the runtime.
//!
//! **Invariant:** whatever the other end sends becomes a request, or an error that ends the session; nothing it sends
//! makes this end panic, or keep more than a fixed amount of memory. Every request is answered before the runtime stops
//! waiting, for then it would go on as if there were no plugin.

mod frame;
mod message;
mod session;

pub use frame::{Connection, Decoder, Frame, Kind, encode};
pub use message::{Container, LinuxContainer, LinuxPodSandbox, PodSandbox, State};
pub use session::{End, Identity, PATIENCE, Plugin, serve};

use std::{io, time::Duration};

use thiserror::Error;

/// What ends a session before its time.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket failed.
    #[error("the socket of the runtime failed: {0}")]
    Socket(#[from] io::Error),
    /// A frame for a connection that NRI does not have.
    #[error("the runtime sent a frame for connection {0}; NRI has 1 and 2, so it speaks another protocol or version")]
    UnknownConnection(u32),
    /// A message longer than ttrpc allows.
    #[error("the runtime announced a message of {length} bytes, of {limit} allowed; the connection was given up")]
    TooLong {
        /// What was announced.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A message that is neither a request nor a response.
    #[error("the runtime sent a message of type {0}, which NRI does not use; the connection was given up")]
    UnknownKind(u8),
    /// A message that belongs elsewhere.
    #[error("the runtime sent {what} where the protocol has none; the connection was given up")]
    OutOfPlace {
        /// What it was.
        what: &'static str,
    },
    /// Bytes that are not what they should be.
    #[error("what the runtime sent cannot be read as {what}: {source}")]
    Undecodable {
        /// What was expected.
        what: &'static str,
        /// Why not.
        source: prost::DecodeError,
    },
    /// The runtime does not want this plugin.
    #[error("the runtime refused the plugin {name} with index {index}: {reason}")]
    Refused {
        /// The plugin's name.
        name: String,
        /// Its index.
        index: String,
        /// What the runtime says.
        reason: String,
    },
    /// The runtime does not answer.
    #[error("the runtime did not answer the registration within {} s", .0.as_secs())]
    NoAnswer(Duration),
}
