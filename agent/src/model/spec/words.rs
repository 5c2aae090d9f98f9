//! Options whose value is one of a few words, or a list of them.
//!
//! **Invariant:** the spelling of a word is its variant's name, and its meaning is the variant's documentation. Files, the API,
//! options of commands, annotations, help and the manual page read both from here.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use strum::{EnumMessage, IntoStaticStr, VariantArray};

use super::Near;

/// How steer enforces the uplink against programs that try to use another interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Enforce {
    /// Sockets are bound when they are created, and connect(2) restores a lost binding. Nothing else is stopped.
    Steer,
    /// As "steer". What "strict" would stop passes, and is reported and counted.
    Observe,
    /// No packet of the cgroup leaves by another link, whatever its socket is bound to. No socket can be bound elsewhere.
    #[default]
    Strict,
}

/// By which links packets may come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Ingress {
    /// By any link.
    #[default]
    Any,
    /// By the uplink and loopback only. Needs `strict` or `observe`.
    Uplink,
}

/// Whether traffic is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Account {
    /// It is not.
    #[default]
    False,
    /// What passes is counted by link, except on loopback.
    True,
}

/// What happens to sockets of other network namespaces, where the uplink's index is not valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OtherNetns {
    /// They are left alone, and counted.
    #[default]
    Leave,
    /// They are refused.
    Refuse,
}

/// What happens to sockets that are bound elsewhere when the policy starts, or when its uplink gets another index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Existing {
    /// They stay unchanged. A strict policy drops their packets.
    #[default]
    Keep,
    /// They are bound to the uplink. Connections that cannot continue there are ended.
    Rebind,
    /// Connections are ended, so that programs make new ones. Listeners and other UDP sockets are bound to the uplink.
    Destroy,
}

/// What happens if the uplink of a container is missing at its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Missing {
    /// The container does not start.
    #[default]
    Refuse,
    /// The container starts closed. A daemon opens it when the uplink appears.
    Close,
}

/// What decides about the member of a group of uplinks that a socket gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Balance {
    /// All sockets of a cgroup that is attached have the same member, so a program has one address.
    #[default]
    Cgroup,
    /// A TCP connection has the member of its destination.
    Destination,
    /// Each socket has a member of its own.
    Socket,
}

/// What happens to the sockets of a member that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OnFail {
    /// Connections are ended, so that programs make new ones. Other sockets are moved to the next member.
    #[default]
    End,
    /// They stay on the member.
    Keep,
}

/// What happens to sockets on a worse member when a better one returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OnReturn {
    /// They stay for 30 seconds, and are then treated as those of a member that fails.
    Linger,
    /// They stay.
    Keep,
}

/// What happens if every member of a group is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AllDown {
    /// Sockets get the last member that was up.
    #[default]
    Keep,
    /// Sockets get no member. Their calls fail.
    Close,
}

/// A value that is one of a few words.
pub trait Word: Copy + PartialEq + VariantArray + EnumMessage + Into<&'static str> {
    /// The word as written.
    fn text(self) -> &'static str {
        self.into()
    }

    /// All accepted words, with their meanings.
    fn all() -> Vec<(&'static str, &'static str)> {
        let words = Self::VARIANTS.iter().map(|word| (word.text(), word.get_documentation().unwrap_or_default()));
        words.collect()
    }

    /// The words as a sentence: `expected "keep", "rebind" or "destroy"`.
    fn expected() -> String {
        let words: Vec<_> = Self::all().iter().map(|(word, _)| format!("{word:?}")).collect();
        match words.split_last() {
            _ if words == ["\"false\"", "\"true\""] => "expected true or false".to_owned(),
            Some((last, rest)) if !rest.is_empty() => format!("expected {} or {last}", rest.join(", ")),
            _ => format!("expected {}", words.concat()),
        }
    }

    /// Reads a word.
    fn read(text: &str) -> Result<Self, String> {
        let word = Self::VARIANTS.iter().find(|word| word.text() == text);
        word.copied().ok_or_else(Self::expected)
    }
}

macro_rules! words {
    ($($name:ident),+) => { $(
        impl Word for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.text())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.text())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::read(&String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    )+ };
}

words!(Account, Enforce, Ingress, OtherNetns, Existing, Missing, Near, Balance, OnFail, OnReturn, AllDown);

#[cfg(test)]
mod tests {
    use super::{Enforce, Existing, Word as _};

    #[test]
    fn words_are_spelled_by_their_variants() {
        assert_eq!(Enforce::read("strict"), Ok(Enforce::Strict));
        assert_eq!(Enforce::expected(), "expected \"steer\", \"observe\" or \"strict\"");
        assert_eq!(Existing::read("leave").expect_err("wrong"), "expected \"keep\", \"rebind\" or \"destroy\"");
        assert!(Existing::all().iter().all(|(_, meaning)| meaning.ends_with('.')), "every word has a meaning");
    }
}
