//! A group of uplinks as configured: `[[uplink]]`.
//!
//! **Invariant:** a group has between one and [`MEMBERS`] members, each with another interface.

use std::{fmt, time::Duration};

use steer_common::{record::NAME_BYTES, uplink::MEMBERS};

use crate::model::spec::{AllDown, Balance, OnFail, OnReturn, Resolvers};

/// For how long a member is healthy before it is preferred again, unless `hold` says otherwise.
pub const HOLD: Duration = Duration::from_secs(30);

/// A group of uplinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `name`: unique.
    pub name: GroupName,
    /// `members`, in their order.
    pub members: Vec<Member>,
    /// `balance`: what decides about the member of a socket.
    pub balance: Balance,
    /// `hold`.
    pub hold: Duration,
    /// `on_fail`: what happens to the sockets of a member that fails.
    pub on_fail: OnFail,
    /// `on_return`: what happens to sockets when a better member returns. Absent: it depends on whether the other is metered.
    pub on_return: Option<OnReturn>,
    /// `all_down`: what happens if every member is down.
    pub all_down: AllDown,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `interface`: its name or alternative name.
    pub interface: String,
    /// `tier`: lower ones are preferred.
    pub tier: u8,
    /// `weight`: its share within the tier.
    pub weight: u8,
    /// `metered`: whether its traffic costs money.
    pub metered: bool,
    /// `dns`: the resolvers behind it.
    pub dns: Resolvers,
}

impl Member {
    /// A member of the first tier, with an equal share.
    pub fn new(interface: String) -> Self {
        Self { interface, tier: 1, weight: 1, metered: false, dns: Resolvers::NONE }
    }
}

impl Group {
    /// A group of these members, with the defaults.
    pub fn new(name: GroupName, members: Vec<Member>) -> Self {
        Self {
            name,
            members,
            balance: Balance::default(),
            hold: HOLD,
            on_fail: OnFail::default(),
            on_return: None,
            all_down: AllDown::default(),
        }
    }

    /// Checks the members. The error says what is expected.
    pub fn check(&self) -> Result<(), String> {
        if self.members.is_empty() || self.members.len() > MEMBERS {
            return Err(format!("{} members; expected 1 to {MEMBERS}", self.members.len()));
        }
        for (index, member) in self.members.iter().enumerate() {
            if self.members[..index].iter().any(|other| other.interface == member.interface) {
                return Err(format!("{} is a member twice; expected each interface once", member.interface));
            }
        }
        Ok(())
    }
}

/// The name of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName(String);

impl GroupName {
    /// Reads a name. The error says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains([',', '!']) {
            return Err("`,` and `!` are not part of a name; write a list as [\"eth0\", \"wwan0\"]".to_owned());
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = !text.is_empty() && text.len() < NAME_BYTES && text.chars().all(is_allowed);
        if is_name { Ok(Self(text.to_owned())) } else { Err(Self::expected()) }
    }

    /// What is expected.
    pub fn expected() -> String {
        format!("expected the name of an [[uplink]]: 1 to {} letters, digits, `-`, `_` or `.`", NAME_BYTES - 1)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Group, GroupName, Member};

    #[test]
    fn names_and_members() {
        let name = |text: &str| GroupName::parse(text);
        assert_eq!(name("internet").expect("a name").as_str(), "internet");
        assert!(name("eth0,wwan0").expect_err("a list").contains("write a list"));
        assert!(["", "a b", "a/b", &"x".repeat(64)].iter().all(|text| name(text).is_err()));
        let member = |interface: &str| Member::new(interface.to_owned());
        let check = |members| Group::new(name("a").expect("a name"), members).check();
        assert_eq!(check(vec![member("eth0"), member("eth1")]), Ok(()));
        assert!(check(vec![member("eth0"), member("eth0")]).expect_err("twice").contains("eth0 is a member twice"));
        assert!(check(Vec::new()).is_err());
    }
}
