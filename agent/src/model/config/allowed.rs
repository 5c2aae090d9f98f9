//! What `[containers]` grants of one kind: names, addresses, words or exceptions.
//!
//! **Invariant:** nothing is granted by default, and `["*"]` grants all.

use std::net::IpAddr;

use toml::{Spanned, de::DeValue};

use super::reader::Reader;
use crate::model::spec::{self, Exception, Near, PolicySpec};

/// Stands for all.
const ANY: &str = "*";
/// More than the longest text of an IP address.
const ADDRESS_BYTES: usize = 64;

/// What containers may request of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed<T = String> {
    /// `["*"]`.
    Any,
    /// These; none by default.
    Named(Vec<T>),
}

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl Allowed {
    /// Whether a container may request this one.
    pub fn allow(&self, wanted: &str) -> bool {
        matches!(self, Self::Any) || self.name(wanted)
    }

    /// Whether this one is named.
    pub fn name(&self, wanted: &str) -> bool {
        matches!(self, Self::Named(names) if names.iter().any(|name| name == wanted))
    }
}

impl Allowed<Near> {
    /// Whether a container may request this word.
    pub fn allow_word(&self, wanted: Near) -> bool {
        match self {
            Self::Any => true,
            Self::Named(words) => words.contains(&wanted),
        }
    }
}

impl Allowed<Exception> {
    /// Whether a container may request this exception.
    pub fn allow_exception(&self, wanted: &Exception) -> bool {
        match self {
            Self::Any => true,
            Self::Named(granted) => {
                granted.iter().any(|granted| granted.by == wanted.by && granted.to.covers(&wanted.to))
            }
        }
    }
}

impl Reader<'_> {
    /// Whether the value is `["*"]`.
    fn is_any(value: &Spanned<DeValue<'_>>) -> bool {
        let items = value.get_ref().as_array();
        items.is_some_and(|items| items.len() == 1 && items.iter().all(|item| item.get_ref().as_str() == Some(ANY)))
    }

    /// Reads the value of a key of `[containers]` as that of a policy's key of the same name.
    fn granted(&mut self, path: &str, name: &str, value: &Spanned<DeValue<'_>>) -> PolicySpec {
        let mut spec = PolicySpec::default();
        if let Some(key) = spec::key(name) {
            self.key_of_policy(path, key, value, &mut spec);
        }
        spec
    }

    pub(super) fn allowed_words(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Allowed<Near> {
        if Self::is_any(value) {
            return Allowed::Any;
        }
        Allowed::Named(self.granted(path, "local", value).local.unwrap_or_default().words().collect())
    }

    pub(super) fn allowed_exceptions(&mut self, path: &str, value: &Spanned<DeValue<'_>>) -> Allowed<Exception> {
        if Self::is_any(value) {
            return Allowed::Any;
        }
        Allowed::Named(self.granted(path, "except", value).except.unwrap_or_default().iter().cloned().collect())
    }

    pub(super) fn allowed(&mut self, key: &str, value: &Spanned<DeValue<'_>>, bytes: usize) -> Allowed {
        let names = self.names(key, value, bytes);
        let any = names.iter().any(|name| name == ANY);
        if any && names.len() > 1 {
            self.wrong(key, value, "\"*\" stands for all; expected it alone");
        }
        if any { Allowed::Any } else { Allowed::Named(names) }
    }

    pub(super) fn allowed_resolvers(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Allowed {
        let Allowed::Named(names) = self.allowed(key, value, ADDRESS_BYTES) else { return Allowed::Any };
        let mut addresses = Vec::new();
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(address) => addresses.push(address.to_canonical().to_string()),
                Err(_not_one) => self.wrong(key, value, format!("{name:?} is not an IP address")),
            }
        }
        Allowed::Named(addresses)
    }
}
