//! NRI, the interface through which containerd and CRI-O call plugins before a container starts: the plugin's side, as in the
//! `api.proto` of github.com/containerd/nri.
//!
//! One unix socket carries two connections, each a stream of ttrpc messages. On one the runtime calls the plugin; on the other
//! the plugin calls the runtime.
//!
//! **Invariant:** all input becomes a request, or an error that ends the session. No input makes the plugin panic or keep more
//! than a fixed amount of memory. Every request is answered before the runtime's timeout, after which the runtime would go on
//! without the plugin.

mod frame;
mod message;
mod session;

pub use frame::{Connection, Decoder, Frame, Kind, encode};
pub use message::{Container, LinuxContainer, LinuxPodSandbox, PodSandbox, State};
pub use session::{End, Identity, PATIENCE, Plugin, serve};

use std::{io, time::Duration};

use thiserror::Error;

/// Why a session ended early.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket failed.
    #[error("the socket of the runtime failed: {0}")]
    Socket(#[from] io::Error),
    /// A frame for a connection that NRI does not have.
    #[error("the runtime sent a frame for connection {0}; NRI has 1 and 2, so it speaks another protocol or version")]
    UnknownConnection(u32),
    /// A message longer than ttrpc allows.
    #[error("the runtime announced a message of {length} bytes, but {limit} are allowed; the connection is closed")]
    TooLong {
        /// The announced length.
        length: u64,
        /// The allowed length.
        limit: usize,
    },
    /// A message that is neither a request nor a response.
    #[error("the runtime sent a message of type {0}, which NRI does not use; the connection is closed")]
    UnknownKind(u8),
    /// A message that is not allowed at this point.
    #[error("the runtime sent {what}, which the protocol does not allow; the connection is closed")]
    OutOfPlace {
        /// The message.
        what: &'static str,
    },
    /// Bytes that cannot be decoded.
    #[error("the runtime's data cannot be read as {what}: {source}")]
    Undecodable {
        /// The expected message.
        what: &'static str,
        /// The cause.
        source: prost::DecodeError,
    },
    /// The runtime rejected this plugin.
    #[error("the runtime refused the plugin {name} with index {index}: {reason}")]
    Refused {
        /// The plugin's name.
        name: String,
        /// Its index.
        index: String,
        /// The runtime's reason.
        reason: String,
    },
    /// The runtime does not answer.
    #[error("the runtime did not answer the registration within {} s", .0.as_secs())]
    NoAnswer(Duration),
}
