//! What the configuration means: which policy holds for a cgroup, and the record that says so to the kernel. Pure.
//!
//! **Invariant:** every cgroup has one answer, whatever the order in which cgroups and interfaces appear.

use steer_common::{
    CLOSED_IFINDEX, Kind, Owner, PolicyRecord,
    address::address_words,
    policy_flags,
    record::{INTERFACE_BYTES, NAME_BYTES},
};

use crate::model::{
    cgroup_path::CgroupPath,
    config::{self, Config, Enforce, Existing, Ingress, Manner, OtherNetns},
};

/// What a policy does, apart from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The uplink; `None` exempts.
    pub interface: Option<String>,
    /// How.
    pub manner: Manner,
}

impl Target {
    /// The record of a policy with this target. `ifindex` is the uplink's index in the namespace `netns_cookie`; `None`
    /// while it is missing.
    pub fn record(&self, name: &str, owner: Owner, ifindex: Option<i32>, netns_cookie: u64) -> PolicyRecord {
        let Manner { enforce, ingress, other_netns, dns, existing } = self.manner;
        let enforced = match (enforce, ingress) {
            (Enforce::Steer, _) => policy_flags::RESTORE,
            (Enforce::Strict, Ingress::Any) => policy_flags::RESTORE | policy_flags::GUARD,
            (Enforce::Strict, Ingress::Uplink) => {
                policy_flags::RESTORE | policy_flags::GUARD | policy_flags::GUARD_INGRESS
            }
        };
        let flags = enforced
            | match other_netns {
                OtherNetns::Leave => 0,
                OtherNetns::Refuse => policy_flags::REFUSE_OTHER_NETNS,
            }
            | match existing {
                Existing::Keep => 0,
                Existing::Rebind => policy_flags::EXISTING_REBIND,
                Existing::Destroy => policy_flags::EXISTING_DESTROY,
            }
            | if dns.v4.is_some() { policy_flags::DNS4 } else { 0 }
            | if dns.v6.is_some() { policy_flags::DNS6 } else { 0 };
        let common = PolicyRecord { owner: owner as u32, name: padded::<NAME_BYTES>(name), ..PolicyRecord::EMPTY };
        match &self.interface {
            None => PolicyRecord { kind: Kind::Exempt as u32, flags, ..common },
            Some(interface) => PolicyRecord {
                kind: Kind::Steer as u32,
                flags,
                ifindex: ifindex.unwrap_or(CLOSED_IFINDEX),
                netns_cookie,
                dns4: dns.v4.map_or([0; 4], |resolver| address_words(resolver.to_ipv6_mapped())),
                dns6: dns.v6.map_or([0; 4], address_words),
                interface: padded::<INTERFACE_BYTES>(interface),
                ..common
            },
        }
    }
}

/// How a policy with these flags is enforced.
pub fn enforce(flags: u32) -> Enforce {
    if flags & policy_flags::GUARD == 0 { Enforce::Steer } else { Enforce::Strict }
}

/// What a policy with these flags says of sockets that were there before it.
pub fn existing(flags: u32) -> Existing {
    match (flags & policy_flags::EXISTING_DESTROY, flags & policy_flags::EXISTING_REBIND) {
        (0, 0) => Existing::Keep,
        (0, _) => Existing::Rebind,
        _ => Existing::Destroy,
    }
}

/// As many whole characters as leave room for a NUL.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let end = (0..N.min(text.len() + 1)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

/// The policies of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    policies: Vec<config::Policy>,
}

impl Policies {
    /// Takes a configuration's policies.
    pub fn new(config: Config) -> Self {
        Self { policies: config.policies }
    }

    /// As configured.
    pub fn configured(&self) -> &[config::Policy] {
        &self.policies
    }

    /// Their names and targets, by index.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Target)> {
        self.policies
            .iter()
            .map(|policy| (policy.name.as_str(), Target { interface: policy.interface.clone(), manner: policy.manner }))
    }

    /// Index of the policy that names this very cgroup: a plain path before a glob, then the first in the file.
    pub fn naming(&self, path: &CgroupPath) -> Option<usize> {
        let parts = path.parts().collect::<Vec<_>>();
        self.find(&parts, true).or_else(|| self.find(&parts, false))
    }

    fn find(&self, parts: &[&str], literal: bool) -> Option<usize> {
        self.policies.iter().position(|policy| {
            policy.cgroups.iter().any(|pattern| pattern.is_literal() == literal && pattern.matches(parts))
        })
    }

    /// Index of the policy to attach to this cgroup: the one that names it. Not attached is one that only a glob names and
    /// whose nearest attached cgroup around it has the same policy, which then holds here too. `by_hand` tells which cgroups
    /// have another than the configuration's.
    pub fn attaching(&self, path: &CgroupPath, by_hand: impl Fn(&CgroupPath) -> bool) -> Option<usize> {
        let own = self.naming(path)?;
        let parts = path.parts().collect::<Vec<_>>();
        if self.find(&parts, true).is_some() {
            return Some(own);
        }
        let outer = path
            .ancestors()
            .into_iter()
            .find_map(|ancestor| if by_hand(&ancestor) { Some(None) } else { self.naming(&ancestor).map(Some) });
        (outer != Some(Some(own))).then_some(own)
    }

    /// Whether a policy could name a cgroup below this one.
    pub fn may_name_below(&self, path: &CgroupPath) -> bool {
        let parts = path.parts().collect::<Vec<_>>();
        self.policies.iter().any(|policy| policy.cgroups.iter().any(|pattern| pattern.may_match_below(&parts)))
    }
}

#[cfg(test)]
mod tests {
    use steer_common::{CLOSED_IFINDEX, Kind, Owner, policy_flags};

    use super::{Policies, Target, padded};
    use crate::model::{
        cgroup_path::CgroupPath,
        config::{self, Existing},
    };

    fn policies() -> Policies {
        let text = r#"
            [[policy]]
            name = "wide"
            interface = "a0"
            cgroups = ["/s/**"]
            [[policy]]
            name = "glob"
            interface = "a1"
            cgroups = ["/s/*/g", "/u/*"]
            [[policy]]
            name = "plain"
            interface = "none"
            cgroups = ["/s/x", "/s/x/g"]
        "#;
        Policies::new(config::parse("test", text).expect("valid"))
    }

    fn path(text: &str) -> CgroupPath {
        text.parse().expect("a path")
    }

    #[test]
    fn one_answer_for_every_cgroup() {
        let policies = policies();
        let cases = [
            ("/", None, None),
            ("/t", None, None),
            ("/s", Some(0), Some(0)),
            ("/s/y", Some(0), None),
            ("/s/y/g", Some(0), None),
            ("/s/x", Some(2), Some(2)),
            ("/s/x/y", Some(0), Some(0)),
            ("/s/x/g", Some(2), Some(2)),
            ("/u/v", Some(1), Some(1)),
            ("/u/v/w", None, None),
        ];
        for (text, naming, attaching) in cases {
            assert_eq!(policies.naming(&path(text)), naming, "{text} is named by");
            assert_eq!(policies.attaching(&path(text), |_| false), attaching, "{text} is attached to");
        }
        // Something else was attached in between by hand.
        assert_eq!(policies.attaching(&path("/s/y/g"), |outer| *outer == path("/s/y")), Some(0));
    }

    #[test]
    fn watches_only_where_something_can_appear() {
        let policies = policies();
        for (text, may) in [("/", true), ("/s/q/r", true), ("/u", true), ("/u/v", false), ("/t", false)] {
            assert_eq!(policies.may_name_below(&path(text)), may, "{text}");
        }
    }

    #[test]
    fn records() {
        let manner = config::Manner { other_netns: config::OtherNetns::Refuse, ..config::Manner::default() };
        let steer = Target { interface: Some("wg0".to_owned()), manner };
        let record = steer.record("vpn", Owner::Config, Some(7), 9);
        assert_eq!((record.kind, record.ifindex, record.netns_cookie), (Kind::Steer as u32, 7, 9));
        let strict = policy_flags::RESTORE | policy_flags::GUARD;
        assert_eq!(record.flags, strict | policy_flags::REFUSE_OTHER_NETNS, "strict is the default");
        assert_eq!(steer.record("vpn", Owner::Config, None, 9).ifindex, CLOSED_IFINDEX);
        for existing in [Existing::Keep, Existing::Rebind, Existing::Destroy] {
            let steer = Target { interface: None, manner: config::Manner { existing, ..manner } };
            assert_eq!(super::existing(steer.record("vpn", Owner::Config, None, 9).flags), existing);
        }
        let exempt = Target { interface: None, manner: config::Manner::default() };
        assert_eq!(exempt.record("direct", Owner::Config, None, 9).kind, Kind::Exempt as u32);
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(padded::<4>("abcdef"), *b"abc\0");
        assert_eq!(padded::<4>("ab\u{e9}"), *b"ab\0\0");
        assert_eq!(padded::<4>("a"), *b"a\0\0\0");
    }
}
