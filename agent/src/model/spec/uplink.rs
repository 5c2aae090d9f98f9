//! The uplink of a policy.

use std::fmt;

use steer_common::record::INTERFACE_BYTES;

use crate::model::uplink::group::{AUTO, GroupName};

/// The word that exempts.
const NONE: &str = "none";

/// The uplink of a policy's sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The interface with this name or alternative name.
    Interface(String),
    /// The group of uplinks with this name.
    Group(GroupName),
    /// None: the routing table decides, as without steer. Written `none`.
    Exempt,
    /// Closed permanently. No interface opens it.
    Closed,
}

impl Uplink {
    /// Reads the name of an interface, or `none`, or `auto`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() >= INTERFACE_BYTES || text.contains(char::is_control) {
            return Err(<Self as super::value::Value>::expected());
        }
        // As dev_valid_name() in the kernel.
        if text == "." || text == ".." || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            return Err("expected the name of a network interface, without space, / or :".to_owned());
        }
        if let Some((name, peer)) = text.split_once('@').filter(|(name, peer)| !name.is_empty() && !peer.is_empty()) {
            return Err(format!("`ip` prints NAME@PEER, and {peer:?} is the peer; expected {name:?}"));
        }
        Ok(match text {
            NONE => Self::Exempt,
            AUTO => Self::Group(GroupName::parse(AUTO)?),
            _ => Self::Interface(text.to_owned()),
        })
    }

    /// The name of its interface.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Interface(name) => Some(name),
            Self::Group(_) | Self::Exempt | Self::Closed => None,
        }
    }

    /// The name of its group.
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Group(name) => Some(name),
            Self::Interface(_) | Self::Exempt | Self::Closed => None,
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Interface(name) => name,
            Self::Group(name) => name.as_str(),
            Self::Exempt => NONE,
            Self::Closed => "closed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Uplink;

    #[test]
    fn a_name_as_ip_prints_it() {
        let error = Uplink::parse("a1@if3").expect_err("two names");
        assert!(error.contains("`ip` prints NAME@PEER") && error.ends_with(r#"expected "a1""#), "{error}");
        assert!(["a1", "@", "a@"].iter().all(|name| Uplink::parse(name).is_ok()));
    }
}
