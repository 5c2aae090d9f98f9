//! What a policy reaches besides its uplink, as a person writes it: `local` and `except`.
//!
//! **Invariant:** the server's address is inside of the prefix around it, in both families.

use std::fmt;

use steer_lab::Family;

use super::groups::FAMILIES;

/// Where an exception goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Link(&'static str),
    Main,
    Refuse,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Link(name) => name,
            Self::Main => "main",
            Self::Refuse => "refuse",
        }
    }
}

/// `local` and `except`; or what `[containers]` grants of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) host: bool,
    pub(crate) lan: bool,
    /// Only multicast and broadcasts need it, so it leads nothing that is sent here. It does mark the sockets.
    pub(crate) discovery: bool,
    /// The exception for the server's addresses.
    pub(crate) server: Option<By>,
    /// The exception for the prefixes around them.
    pub(crate) around: Option<By>,
    /// The exception for all of IPv6.
    pub(crate) six: Option<By>,
}

const SERVER: [&str; 2] = ["198.51.100.1", "fd00:ffff::1"];
const AROUND: [&str; 2] = ["198.51.100.0/24", "fd00:ffff::/64"];
/// An exception for ::/0 is refused.
const SIX: [&str; 2] = ["::/1", "8000::/1"];

impl Reach {
    pub(crate) const NONE: Self =
        Self { host: false, lan: false, discovery: false, server: None, around: None, six: None };
    pub(crate) const HOST: Self = Self { host: true, ..Self::NONE };
    pub(crate) const LAN: Self = Self { lan: true, ..Self::NONE };

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// With what the options of this one do not name: a list is replaced as a whole.
    pub(crate) fn over(self, old: &Self) -> Self {
        let (mut words, mut except) = (self, self);
        if self.words().is_empty() {
            words = *old;
        }
        if self.exceptions().is_empty() {
            except = *old;
        }
        Self { server: except.server, around: except.around, six: except.six, ..words }
    }

    /// The words of `local`.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let words = [(self.host, "host"), (self.lan, "lan"), (self.discovery, "discovery")];
        words.into_iter().filter(|(has, _)| *has).map(|(_, word)| word).collect()
    }

    /// The exceptions, by destination.
    pub(crate) fn exceptions(&self) -> Vec<(&'static str, &'static str)> {
        let of =
            |to: [&'static str; 2], by: Option<By>| by.into_iter().flat_map(move |by| to.map(|to| (to, by.name())));
        of(SERVER, self.server).chain(of(AROUND, self.around)).chain(of(SIX, self.six)).collect()
    }

    /// The exceptions as an option or an annotation.
    pub(crate) fn except(&self) -> String {
        let all: Vec<_> = self.exceptions().iter().map(|(to, by)| format!("{to}={by}")).collect();
        all.join(",")
    }

    /// The keys of a policy, or of `[containers]`.
    pub(crate) fn keys(&self) -> String {
        let all: Vec<_> =
            self.exceptions().iter().map(|(to, by)| format!("{{ to = \"{to}\", by = \"{by}\" }}")).collect();
        format!("local = {:?}\nexcept = [{}]\n", self.words(), all.join(", "))
    }

    /// The exception that decides about the server's addresses.
    pub(crate) fn of_server(&self, family: Family) -> Option<By> {
        self.server.or(self.of_around(family))
    }

    /// The exception that decides about the addresses around them.
    pub(crate) fn of_around(&self, family: Family) -> Option<By> {
        self.around.or(self.six.filter(|_| family == Family::V6))
    }

    /// Whether an exception leads as if nothing were steered.
    pub(crate) fn is_by_main(&self) -> bool {
        [self.server, self.around, self.six].contains(&Some(By::Main))
    }

    /// What a container gets that asks for this besides what its policy has, as far as `[containers]` grants it.
    pub(crate) fn granted(&self, asked: &Self, grants: &Self) -> Option<Self> {
        let word = |asked: bool, own: bool, granted: bool| !asked || own || granted;
        let words = word(asked.host, self.host, grants.host)
            && word(asked.lan, self.lan, grants.lan)
            && word(asked.discovery, self.discovery, grants.discovery);
        // The policy decides about what its own exceptions cover.
        let exception = |asked: Option<By>, own: Option<By>, granted: &[Option<By>]| match (asked, own) {
            (None, _) => true,
            (Some(_), Some(_)) => asked == own,
            (Some(_), None) => granted.contains(&asked),
        };
        let of_family = |family| {
            exception(asked.server, self.of_server(family), &[grants.server, grants.of_around(family)])
                && exception(asked.around, self.of_around(family), &[grants.of_around(family)])
        };
        let exceptions = FAMILIES.into_iter().all(of_family) && exception(asked.six, self.six, &[grants.six]);
        let asks_word = asked.host || asked.lan || asked.discovery;
        let local = if asks_word { asked } else { self };
        (words && exceptions).then(|| Self {
            server: self.server.or(asked.server),
            around: self.around.or(asked.around),
            six: self.six.or(asked.six),
            ..*local
        })
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |what: &'static str, by: Option<By>| by.map(|by| format!("{what}={}", by.name()));
        let words = self.words().into_iter().map(str::to_owned);
        let all: Vec<_> = words
            .chain(by("server", self.server))
            .chain(by("around", self.around))
            .chain(by("six", self.six))
            .collect();
        write!(formatter, "{}", all.join(" "))
    }
}
