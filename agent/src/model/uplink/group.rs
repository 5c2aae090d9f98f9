//! A group of uplinks as configured: `[[uplink]]`.
//!
//! **Invariant:** a group has between one and [`MEMBERS`] members, each with another interface.

use std::{borrow::Cow, fmt, time::Duration};

use steer_common::{record::NAME_BYTES, uplink::MEMBERS};

use super::{auto::Auto, probe::Probe};
use crate::model::spec::{AllDown, Balance, Exception, OnFail, OnReturn, Resolvers, Uplink};

/// For how long a member is healthy before it is preferred again, unless `hold` says otherwise.
pub const HOLD: Duration = Duration::from_secs(30);

/// A group of uplinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `name`: unique.
    pub name: GroupName,
    /// `members`, in their order. Empty: `auto` finds them.
    pub members: Vec<Member>,
    /// `auto`: the lines of this host that are no tunnels, the best first.
    pub auto: Option<Auto>,
    /// `balance`: what decides about the member of a socket.
    pub balance: Balance,
    /// `probe`: how the health of its members is probed. Absent: carrier, addresses, routes and connections decide.
    pub probe: Option<Probe>,
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
    /// How many members it can have.
    pub fn most_members(&self) -> usize {
        if self.auto.is_some() { MEMBERS } else { self.members.len() }
    }

    /// A group of these members, with the defaults.
    pub fn new(name: GroupName, members: Vec<Member>) -> Self {
        Self {
            name,
            members,
            auto: None,
            balance: Balance::default(),
            probe: None,
            hold: HOLD,
            on_fail: OnFail::default(),
            on_return: None,
            all_down: AllDown::default(),
        }
    }

    /// Checks the members. The error says what is expected.
    pub fn check(&self) -> Result<(), String> {
        if self.auto.is_some() && self.members.is_empty() {
            return Ok(());
        }
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

/// The group with a name: a configured one, or the one that the name lists.
pub fn named<'g>(groups: &'g [Group], name: &GroupName) -> Option<Cow<'g, Group>> {
    let configured = groups.iter().find(|group| group.name == *name).map(Cow::Borrowed);
    let auto =
        || (name.0 == AUTO).then(|| Group { auto: Some(Auto::default()), ..Group::new(name.clone(), Vec::new()) });
    configured.or_else(|| name.listed().or_else(auto).map(Cow::Owned))
}

/// What is wrong with an exception that goes by a group, which is not possible: its routes are those of one interface. A member can have the
/// name of its group.
pub fn mistaken(groups: &[Group], exception: &Exception) -> Option<String> {
    let by = exception.by.interface()?;
    let group = groups.iter().find(|group| group.name.as_str() == by)?;
    let is_member = |group: &Group| group.members.iter().any(|member| member.interface == by);
    if groups.iter().any(is_member) {
        return None;
    }
    let member =
        group.members.first().map_or_else(String::new, |member| format!(", as its member {:?}", member.interface));
    let to = exception.to;
    Some(format!(
        "{to} is to go by {by:?}, which is an [[uplink]]; expected one interface{member}, \"main\" or \"refuse\""
    ))
}

/// The name of the group of all lines that are no tunnels. It needs no configuration.
pub const AUTO: &str = "auto";

/// What is between the interfaces of a list.
const AND_THEN: char = '+';

/// The name of a group. One that lists interfaces, as `eth0+wwan0`, needs no configuration: each is a tier of its own, in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName(String);

impl GroupName {
    /// Reads a name. The error says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains([',', '!']) {
            return Err("`,` and `!` are not part of a name; write a list as [\"eth0\", \"wwan0\"]".to_owned());
        }
        if text.contains(AND_THEN) {
            let name = Self(text.to_owned());
            let group = name.listed().filter(|_| text.len() < NAME_BYTES);
            let group = group.ok_or_else(|| "expected the names of interfaces with `+` in between".to_owned())?;
            return group.check().map(|()| name);
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = !text.is_empty() && text.len() < NAME_BYTES && text.chars().all(is_allowed);
        if is_name { Ok(Self(text.to_owned())) } else { Err(Self::expected()) }
    }

    /// The name of the group that a list of interfaces makes. The error says what is expected.
    pub fn of_list(interfaces: &[&str]) -> Result<Self, String> {
        match interfaces {
            [] => Err("expected at least one interface".to_owned()),
            // A list of one has a tier, too.
            [one] => Self::parse(&format!("{one}{AND_THEN}")),
            several => Self::parse(&several.join(&AND_THEN.to_string())),
        }
    }

    /// The group of a name that lists interfaces.
    fn listed(&self) -> Option<Group> {
        let interfaces: Vec<&str> = self.0.split(AND_THEN).collect();
        let interfaces = match interfaces.as_slice() {
            [_] => return None,
            [one, ""] => &[*one],
            several => several,
        };
        let is_name = |name: &&str| matches!(Uplink::parse(name), Ok(Uplink::Interface(_)));
        let member =
            |(tier, name): (u8, &&str)| is_name(name).then(|| Member { tier, ..Member::new((*name).to_owned()) });
        let members: Option<Vec<_>> = (1..).zip(interfaces).map(member).collect();
        Some(Group::new(self.clone(), members?))
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
        let list = name("eth0+wwan0").expect("a list");
        let group = super::named(&[], &list).expect("a group");
        let members: Vec<_> = group.members.iter().map(|member| (member.interface.as_str(), member.tier)).collect();
        assert_eq!(members, [("eth0", 1), ("wwan0", 2)]);
        assert_eq!(GroupName::of_list(&["eth0", "wwan0"]), Ok(list));
        assert!(["eth0+eth0", "eth0++a", "none+a"].iter().all(|text| name(text).is_err()));
        assert!(name("eth0,wwan0").expect_err("a list").contains("write a list"));
        assert!(["", "a b", "a/b", &"x".repeat(64)].iter().all(|text| name(text).is_err()));
        let member = |interface: &str| Member::new(interface.to_owned());
        let check = |members| Group::new(name("a").expect("a name"), members).check();
        assert_eq!(check(vec![member("eth0"), member("eth1")]), Ok(()));
        assert!(check(vec![member("eth0"), member("eth0")]).expect_err("twice").contains("eth0 is a member twice"));
        assert!(check(Vec::new()).is_err());
    }
}
