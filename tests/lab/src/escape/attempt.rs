//! The result of an attempt, and the step at which it ended.

use super::Vector;
use crate::{
    error::{Error, Result},
    probe::Family,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The steps of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Entering the namespace or cgroup where the socket is made.
    Place,
    /// Making the socket.
    Socket,
    /// Setting an option.
    Option,
    /// Binding it to an address.
    Bind,
    /// Waiting for a connection.
    Accept,
    /// Connecting it.
    Connect,
    /// Disconnecting it with `connect(AF_UNSPEC)`.
    Disconnect,
    /// Sending.
    Send,
    /// Receiving the answer.
    Receive,
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The vector.
    pub vector: Vector,
    /// The address family.
    pub family: Family,
    /// `ok`, `n/a` or the name of the errno.
    pub outcome: String,
    /// The step at which it was refused.
    pub step: Option<Step>,
    /// What the server saw, or the reason why the attempt could not be made.
    pub note: String,
}

impl Attempt {
    /// Whether every step succeeded, as far as a program can know.
    pub fn is_ok(&self) -> bool {
        self.outcome == "ok"
    }

    /// Whether the attempt could be made at all.
    pub fn is_applicable(&self) -> bool {
        self.outcome != "n/a"
    }

    /// Parses the last line that `steer-escape --json` prints.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source })
    }
}
