//! The meaning of a policy.
//!
//! **Invariant:** every option has a value, and the options are compatible. [`Target::spec`] writes what [`PolicySpec::target`] reads.

use super::{Account, Enforce, Exceptions, Existing, Ingress, Local, OtherNetns, PolicySpec, Resolvers, Uplink};

impl PolicySpec {
    /// Its meaning with this uplink.
    pub fn target(&self, uplink: Uplink) -> Result<Target, Vec<Conflict>> {
        let enforcement = Enforcement {
            enforce: self.enforce.unwrap_or_default(),
            ingress: self.ingress.unwrap_or_default(),
            other_netns: self.other_netns.unwrap_or_default(),
            existing: self.existing.unwrap_or_default(),
            dns: self.dns.unwrap_or_default(),
            account: self.account.unwrap_or_default(),
        };
        let reach = Reach { local: self.local.unwrap_or_default(), except: self.except.clone().unwrap_or_default() };
        let target = Target { uplink, enforcement, reach };
        let conflicts = target.conflicts();
        if conflicts.is_empty() { Ok(target) } else { Err(conflicts) }
    }
}

/// Options that are not compatible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key with the conflict.
    pub key: &'static str,
    /// The problem, and what is expected.
    pub problem: &'static str,
}

/// The meaning of a policy: its uplink, its enforcement, and what else it reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The uplink of the sockets.
    pub uplink: Uplink,
    /// How the uplink is enforced.
    pub enforcement: Enforcement,
    /// What its sockets reach besides the uplink.
    pub reach: Reach,
}

/// How a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// See [`PolicySpec::enforce`].
    pub enforce: Enforce,
    /// See [`PolicySpec::ingress`].
    pub ingress: Ingress,
    /// See [`PolicySpec::other_netns`].
    pub other_netns: OtherNetns,
    /// See [`PolicySpec::existing`].
    pub existing: Existing,
    /// See [`PolicySpec::dns`].
    pub dns: Resolvers,
    /// See [`PolicySpec::account`].
    pub account: Account,
}

impl Enforcement {
    /// The enforcement of a closed cgroup: no packet leaves, and sockets of any network namespace are refused.
    pub const CLOSED: Self = Self {
        enforce: Enforce::Strict,
        ingress: Ingress::Any,
        other_netns: OtherNetns::Refuse,
        existing: Existing::Keep,
        dns: Resolvers::NONE,
        account: Account::False,
    };
}

/// What a policy's sockets reach besides the uplink. It does not depend on how the uplink is enforced: `steer` and
/// `ingress = "uplink"` go with all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// See [`PolicySpec::local`].
    pub local: Local,
    /// See [`PolicySpec::except`].
    pub except: Exceptions,
}

impl Reach {
    /// The uplink alone.
    pub const NONE: Self = Self { local: Local::NONE, except: Exceptions::NONE };

    /// Whether it is the uplink alone.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl Target {
    /// A target that keeps a cgroup closed.
    pub const CLOSED: Self = Self { uplink: Uplink::Closed, enforcement: Enforcement::CLOSED, reach: Reach::NONE };

    /// A target that leaves sockets unchanged.
    pub fn exempt() -> Self {
        Self { uplink: Uplink::Exempt, enforcement: Enforcement::default(), reach: Reach::NONE }
    }

    fn conflicts(&self) -> Vec<Conflict> {
        let Self { uplink, enforcement, reach } = self;
        let exempts = *uplink == Uplink::Exempt;
        let rules = [
            (
                enforcement.ingress == Ingress::Uplink && enforcement.enforce == Enforce::Steer,
                "ingress",
                "ingress = \"uplink\" needs enforce = \"strict\" or \"observe\"",
            ),
            (exempts && !enforcement.dns.is_empty(), "dns", "an exemption has no uplink for queries; expected no dns"),
            (
                enforcement.dns.link && enforcement.enforce == Enforce::Steer,
                "dns",
                "dns = \"link\" needs enforce = \"strict\", which stops queries while the link has no resolver, or \"observe\"",
            ),
            (
                uplink.group().is_some() && enforcement.dns.link,
                "dns",
                "a group of uplinks has no link of its own; expected addresses, here or in `dns` of its members",
            ),
            (
                exempts && enforcement.existing != Existing::Keep,
                "existing",
                "an exemption binds no socket; expected no existing",
            ),
            (
                exempts && enforcement.account == Account::True,
                "account",
                "an exemption has no program on packets; expected no account",
            ),
            (exempts && !reach.local.is_empty(), "local", "an exemption reaches this host anyway; expected no local"),
            (exempts && !reach.except.is_empty(), "except", "an exemption has no uplink; expected no except"),
        ];
        rules
            .into_iter()
            .filter(|(is_broken, ..)| *is_broken)
            .map(|(_, key, problem)| Conflict { key, problem })
            .collect()
    }

    /// The same, written in full, without cgroups.
    pub fn spec(&self) -> PolicySpec {
        let Enforcement { enforce, ingress, other_netns, existing, dns, account } = self.enforcement;
        let Reach { local, except } = &self.reach;
        PolicySpec {
            interface: Some(self.uplink.clone()).filter(|uplink| uplink.group().is_none()),
            uplink: self.uplink.group().cloned(),
            cgroups: None,
            units: None,
            user_units: None,
            users: None,
            parent: None,
            enforce: Some(enforce),
            ingress: Some(ingress),
            other_netns: Some(other_netns),
            existing: Some(existing),
            dns: Some(dns),
            local: Some(*local),
            except: Some(except.clone()),
            // No option of a command says that it is not.
            account: Some(account).filter(|account| *account == Account::True),
            allow_users: None,
            allow_groups: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::spec::{Enforce, PolicySpec, Uplink, tests::spec};

    #[test]
    fn a_target_is_written_in_full() {
        let written = spec(&[
            ("enforce", "steer"),
            ("local", "discovery"),
            ("local", "host"),
            ("except", "192.168.3.0/24=eth0"),
            ("except", "10.0.1.0/24=main"),
            ("except", "2001:db8::/32=refuse"),
            ("except", "192.0.2.0/24=wg0"),
        ]);
        let uplink = || Uplink::Interface("wg0".to_owned());
        let target = written.target(uplink()).expect("`local` and `except` go with \"steer\"");
        assert_eq!(target.reach.except.iter().count(), 4, "by the policy's own interface, too");
        assert_eq!(target.spec().target(uplink()), Ok(target.clone()));
        let json = serde_json::to_value(target.spec()).expect("JSON");
        assert_eq!(json["local"], serde_json::json!(["host", "discovery"]));
        assert_eq!(json["except"][0], serde_json::json!({"to": "10.0.1.0/24", "by": "main"}));
        let read: PolicySpec = serde_json::from_value(json).expect("the same");
        assert_eq!(read, target.spec());
        let strict = spec(&[("ingress", "uplink"), ("local", "lan")]);
        assert!(strict.target(uplink()).is_ok(), "packets of the LAN may come in then");
    }

    #[test]
    fn options_that_conflict() {
        let uplink = || Uplink::Interface("wg0".to_owned());
        let keys = |spec: PolicySpec, uplink| {
            spec.target(uplink).map_err(|conflicts| conflicts.iter().map(|it| it.key).collect::<Vec<_>>())
        };
        let weak = spec(&[("enforce", "steer"), ("ingress", "uplink")]);
        assert_eq!(keys(weak, uplink()), Err(vec!["ingress"]));
        let exempt =
            spec(&[("dns", "10.0.0.1"), ("existing", "rebind"), ("local", "lan"), ("except", "10.0.1.0/24=a")]);
        assert_eq!(keys(exempt.clone(), Uplink::Exempt), Err(vec!["dns", "existing", "local", "except"]));
        let target = exempt.target(uplink()).expect("fits");
        assert_eq!(target.enforcement.enforce, Enforce::Strict);
        assert_eq!(target.spec().target(uplink()), Ok(target));
    }
}
