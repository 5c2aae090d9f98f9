//! Errors of a lab.
//!
//! **Invariant:** every error names the operation and its object. The errno is available as the source.

use std::{io, time::Duration};

/// Shorthand for the results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why an operation of a lab failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a netlink request failed.
    #[error("{doing}")]
    Os {
        /// The operation, with the names of its objects.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request failed without an errno.
    #[error("{doing}")]
    Netlink {
        /// The operation, with the names of its objects.
        doing: String,
        /// The library's message.
        source: Box<rtnetlink::Error>,
    },
    /// No interface has this name.
    #[error("no interface {link} in namespace {netns}")]
    NoLink {
        /// The requested name.
        link: String,
        /// The namespace's label.
        netns: String,
    },
    /// An address or a prefix length that is invalid in its place.
    #[error("{doing}: {reason}")]
    Invalid {
        /// The operation, with the names of its objects.
        doing: String,
        /// The reason.
        reason: String,
    },
    /// The kernel dropped packets because the capture's buffer was full: the capture proves nothing.
    #[error("capture of {capture} lost {lost} packets")]
    Lost {
        /// What is captured.
        capture: String,
        /// The number of packets lost since the last read.
        lost: u32,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {timeout:?}")]
    Timeout {
        /// The condition.
        what: String,
        /// The time that was waited.
        timeout: Duration,
    },
    /// A line of a probe's output is invalid.
    #[error("parse probe output {line:?}")]
    Output {
        /// The line.
        line: String,
        /// What the parser expected.
        source: serde_json::Error,
    },
}

impl Error {
    /// The errno behind the error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn netlink(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Os { doing: doing.into(), source: message.to_io() },
            other => Self::Netlink { doing: doing.into(), source: Box::new(other) },
        }
    }
}

/// Names the operation in the error.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Os { doing: what(), source: error.into() })
    }
}
