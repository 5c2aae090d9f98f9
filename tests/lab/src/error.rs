//! What can go wrong in a lab.
//!
//! **Invariant:** every error names what was being done and to which object; the errno stays reachable as the source.

use std::{io, time::Duration};

/// Shorthand for the results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a lab could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a netlink request failed.
    #[error("{doing}")]
    Os {
        /// What was being done, with the names of its objects.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request failed without an errno.
    #[error("{doing}")]
    Netlink {
        /// What was being done, with the names of its objects.
        doing: String,
        /// The library's account of it.
        source: Box<rtnetlink::Error>,
    },
    /// No interface has that name.
    #[error("no interface {link} in namespace {netns}")]
    NoLink {
        /// The name looked for.
        link: String,
        /// The namespace's label.
        netns: String,
    },
    /// An address or a prefix length that makes no sense where it stands.
    #[error("{doing}: {reason}")]
    Invalid {
        /// What was being done, with the names of its objects.
        doing: String,
        /// What does not fit.
        reason: String,
    },
    /// The kernel dropped packets because the capture's buffer was full: the capture proves nothing.
    #[error("capture of {capture} lost {lost} packets")]
    Lost {
        /// What is captured.
        capture: String,
        /// How many packets were lost since the last look.
        lost: u32,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {timeout:?}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// A line of a probe's output is not what a probe prints.
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

/// Names what was being done when an operation failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Os { doing: what(), source: error.into() })
    }
}
