//! What came of an attempt, and where it ended.

use super::Vector;
use crate::{
    error::{Error, Result},
    probe::Family,
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Getting to where the socket is to be made: a namespace, a cgroup.
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
    /// Taking the connection back, with `connect(AF_UNSPEC)`.
    Disconnect,
    /// Sending.
    Send,
    /// Receiving the answer.
    Receive,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried.
    pub vector: Vector,
    /// The family it was tried with.
    pub family: Family,
    /// `ok`, `n/a` or the name of the errno.
    pub outcome: String,
    /// Where it ended, if it was refused.
    pub step: Option<Step>,
    /// What the server saw, or why the attempt could not be made.
    pub note: String,
}

impl Attempt {
    /// Whether all went as the program wanted, as far as a program can know.
    pub fn is_ok(&self) -> bool {
        self.outcome == "ok"
    }

    /// Whether the attempt could be made at all.
    pub fn is_applicable(&self) -> bool {
        self.outcome != "n/a"
    }

    /// Reads what `steer-escape --json` prints last.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).map_err(|source| Error::Output { line: line.to_owned(), source })
    }
}
