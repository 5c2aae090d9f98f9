//! `except`: destinations that do not go by the uplink.
//!
//! An exception is a table, or as text TO=BY: a prefix has no `=`, so the first one separates the two.
//!
//! **Invariant:** at most one exception for each prefix, sorted by prefix. None is for all addresses of a family.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Uplink;
use crate::model::prefix::Prefix;

/// By what a destination is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The interface with this name or alternative name.
    Interface(String),
    /// The routing table, as if not steered. Written `main`.
    Main,
    /// Nothing: such packets are refused. Written `refuse`.
    Refuse,
}

/// One destination, and by what it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Written", into = "Written")]
pub struct Exception {
    /// The destination.
    #[schema(value_type = String)]
    pub to: Prefix,
    /// An interface, `main` or `refuse`.
    #[schema(value_type = String)]
    pub by: By,
}

/// An exception as a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    to: String,
    by: String,
}

/// The exceptions of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions(Vec<Exception>);

/// The fields of an exception, with their meanings, in the order of its text.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("to", "A prefix, or an address."),
    (
        "by",
        "The name or alternative name of an interface; \"main\": as if not steered; or \"refuse\": it cannot be reached.",
    ),
];

impl By {
    /// The word for the routing table.
    pub const MAIN: &str = "main";
    /// The word for nothing.
    pub const REFUSE: &str = "refuse";

    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("expected the name of an interface, {:?} or {:?}", Self::MAIN, Self::REFUSE);
        match text {
            "" => Err(expected()),
            Self::MAIN => Ok(Self::Main),
            Self::REFUSE => Ok(Self::Refuse),
            _ => match Uplink::parse(text)? {
                Uplink::Interface(name) => Ok(Self::Interface(name)),
                Uplink::Group(_) => Err(format!("{}; an exception goes by one interface, not by several", expected())),
                Uplink::Exempt | Uplink::Closed => {
                    Err(format!("{}; {:?} is as if not steered", expected(), Self::MAIN))
                }
            },
        }
    }

    /// The name of its interface.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Interface(name) => Some(name),
            Self::Main | Self::Refuse => None,
        }
    }
}

impl Exception {
    /// Reads TO=BY.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((to, by)) = text.split_once('=') else {
            return Err("expected TO=BY, as \"192.168.3.0/24=eth0\"".to_owned());
        };
        Self::of(to.trim(), by.trim())
    }

    fn of(to: &str, by: &str) -> Result<Self, String> {
        let named = |field: &str, problem: String| format!("{field}: {problem}");
        let to = destination(to).map_err(|problem| named("to", problem))?;
        let by = By::parse(by).map_err(|problem| named("by", problem))?;
        Ok(Self { to, by })
    }
}

/// Reads a destination.
fn destination(text: &str) -> Result<Prefix, String> {
    let to: Prefix = text.parse()?;
    if to.len() == 0 {
        return Err("that is the whole uplink; expected a longer prefix".to_owned());
    }
    Ok(to)
}

impl Exceptions {
    /// No exception.
    pub const NONE: Self = Self(Vec::new());

    /// Adds an exception as text.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let exception = Exception::parse(text)?;
        match self.position(&exception.to) {
            Err(place) => {
                self.0.insert(place, exception);
                Ok(())
            }
            Ok(_) => Err(format!("to: {}", Self::twice(&exception.to))),
        }
    }

    /// Checks one field of an exception that is to be added.
    pub(super) fn check(&self, field: &str, text: &str) -> Result<(), String> {
        match field {
            "to" => {
                let to = destination(text)?;
                if self.position(&to).is_ok() { Err(Self::twice(&to)) } else { Ok(()) }
            }
            _ => By::parse(text).map(|_by| ()),
        }
    }

    fn twice(to: &Prefix) -> String {
        format!("{to} has an exception already; expected one")
    }

    fn position(&self, to: &Prefix) -> Result<usize, usize> {
        self.0.binary_search_by(|exception| exception.to.cmp(to))
    }

    /// The exception that decides about all addresses of a prefix, unless one for a part of it does: the longest around it.
    pub fn deciding(&self, to: &Prefix) -> Option<&Exception> {
        self.0.iter().filter(|exception| exception.to.covers(to)).max_by_key(|exception| exception.to.len())
    }

    /// Takes the exceptions of `other` for prefixes that have none here.
    pub fn fill_from(&mut self, other: &Self) {
        for exception in &other.0 {
            if let Err(place) = self.position(&exception.to) {
                self.0.insert(place, exception.clone());
            }
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The exceptions, sorted by prefix.
    pub fn iter(&self) -> impl Iterator<Item = &Exception> {
        self.0.iter()
    }
}

impl fmt::Display for By {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Interface(name) => name,
            Self::Main => Self::MAIN,
            Self::Refuse => Self::REFUSE,
        })
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.to, self.by)
    }
}

impl From<Exception> for Written {
    fn from(exception: Exception) -> Self {
        Self { to: exception.to.to_string(), by: exception.by.to_string() }
    }
}

impl TryFrom<Written> for Exception {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        Self::of(&written.to, &written.by)
    }
}

#[cfg(test)]
mod tests {
    use super::{By, Exception, Exceptions};

    #[test]
    fn exceptions_are_sorted() {
        let mut exceptions = Exceptions::NONE;
        for text in ["2001:db8::/32=refuse", "192.168.3.0/24=eth0", "10.0.1.0/24=main", "10.0.0.0/8=a=b"] {
            exceptions.add(text).expect(text);
        }
        let texts: Vec<_> = exceptions.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8=a=b", "10.0.1.0/24=main", "192.168.3.0/24=eth0", "2001:db8::/32=refuse"]);
        let kinds: Vec<_> = exceptions.iter().map(|exception| exception.by.interface()).collect();
        assert_eq!(kinds, [Some("a=b"), None, Some("eth0"), None]);
        let deciding = |to: &str| exceptions.deciding(&to.parse().expect(to)).map(|found| found.by.to_string());
        assert_eq!(deciding("10.0.1.1").as_deref(), Some("main"), "the longest");
        assert_eq!(deciding("10.0.2.0/24").as_deref(), Some("a=b"));
        assert_eq!(deciding("10.0.0.0/7"), None);
        let json = serde_json::to_string(exceptions.iter().next().expect("one")).expect("JSON");
        assert_eq!(json, r#"{"to":"10.0.0.0/8","by":"a=b"}"#);
        let read: Exception = serde_json::from_str(&json).expect("the same");
        assert_eq!(read.by, By::Interface("a=b".to_owned()));
    }

    #[test]
    fn mistakes() {
        for (text, want) in [
            ("192.168.3.0/24", "expected TO=BY"),
            ("192.168.3.7/24=eth0", "192.168.3.0/24"),
            ("0.0.0.0/0=eth0", "to: that is the whole uplink"),
            ("::/0=main", "to: that is the whole uplink"),
            ("=eth0", "to: expected a prefix"),
            ("192.168.3.0/24=", "by: expected the name of an interface, \"main\" or \"refuse\""),
            ("192.168.3.0/24=none", "\"main\" is as if not steered"),
            ("192.168.3.0/24=auto", "goes by one interface"),
            ("192.168.3.0/24=eth 0", "by: expected the name of a network interface"),
            ("10.0.0.1/32=eth1", "has an exception already"),
        ] {
            let mut exceptions = Exceptions::NONE;
            exceptions.add("10.0.0.1=eth0").expect("the first");
            let problem = exceptions.add(text).expect_err(text);
            assert!(problem.contains(want), "{text}: {problem}");
        }
    }
}
