//! Why a probe has no answer.
//!
//! **Invariant:** a failure that says nothing about the line is not applicable, so it never takes a member down.

use std::io;

use nix::errno::Errno;
use thiserror::Error;

/// Why a probe failed, as a short text for people.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// No answer until the deadline.
    #[error("no answer in time")]
    Timeout,
    /// No route leads to the target by the member; for `gateway`: no default route.
    #[error("no route by this link")]
    NoRoute,
    /// The link is gone.
    #[error("the link is missing")]
    NoLink,
    /// The link is down.
    #[error("the link is down")]
    Down,
    /// A router, or this host for want of a neighbour, reports that the target cannot be reached.
    #[error("host unreachable")]
    Unreachable,
    /// This host does not let the packet out: a firewall, a route of the type `prohibit`, or steer's own programs.
    #[error("stopped on this host, by a firewall or a rule")]
    Stopped,
    /// The target is there, and refuses.
    #[error("refused")]
    Refused,
    /// The connection ended before the answer.
    #[error("the connection ended before the answer")]
    Ended,
    /// The name server answers with an error.
    #[error("the name server answers {0}")]
    Answer(String),
    /// The name of the target does not exist.
    #[error("the name does not exist")]
    NoName,
    /// The status is not the expected one, as from a captive portal.
    #[error("status {0}: a captive portal, or not the expected server")]
    Status(u16),
    /// The body is not the expected one, as from a captive portal.
    #[error("status {0}, but another body: a captive portal, or not the expected server")]
    Body(u16),
    /// The certificate is not valid for the target.
    #[error("wrong certificate: {0}")]
    Certificate(String),
    /// Something else answers than TLS or HTTP.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// Not applicable: a link without gateways, such as WireGuard or PPP.
    #[error("this link has no gateway")]
    NoGateway,
    /// Not applicable: the target has no address of this family.
    #[error("the target has no address of this family")]
    OtherFamily,
    /// Not applicable: the target has a name, and the member has no resolver of this family.
    #[error("the member has no `dns` of this family, to resolve the name with")]
    NoResolver,
    /// Not applicable: this process may not ask.
    #[error("not permitted: the probe needs CAP_NET_RAW and CAP_NET_ADMIN")]
    Forbidden,
    /// Not applicable: this host has no certificates to compare with.
    #[error("this host has no trusted certificates: {0}")]
    NoCertificates(String),
    /// Not applicable: this host could not ask.
    #[error("{0}")]
    Error(String),
}

impl Failure {
    /// Whether it says something about the line. If not, the target counts neither for nor against the member.
    pub fn is_applicable(&self) -> bool {
        match self {
            Self::NoGateway
            | Self::OtherFamily
            | Self::NoResolver
            | Self::Forbidden
            | Self::NoCertificates(_)
            | Self::Error(_) => false,
            Self::Timeout
            | Self::NoRoute
            | Self::NoLink
            | Self::Down
            | Self::Unreachable
            | Self::Stopped
            | Self::Refused
            | Self::Ended
            | Self::Answer(_)
            | Self::NoName
            | Self::Status(_)
            | Self::Body(_)
            | Self::Certificate(_)
            | Self::Protocol(_) => true,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            // An address of the family may be missing, too, or the kernel may not have the family.
            Some(Errno::ENETUNREACH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT) => Self::NoRoute,
            Some(Errno::EHOSTUNREACH) => Self::Unreachable,
            Some(Errno::ENODEV | Errno::ENXIO) => Self::NoLink,
            Some(Errno::ENETDOWN) => Self::Down,
            Some(Errno::ETIMEDOUT) => Self::Timeout,
            Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => Self::Ended,
            Some(Errno::EPERM | Errno::EACCES) => Self::Stopped,
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Ended,
            _ => Self::Error(error.to_string()),
        }
    }
}
