//! Policy rules, as the kernel lists them and takes them, and which of them are steer's.
//!
//! **Invariant:** a rule with any selector or action that steer does not write is not steer's.

use std::fmt;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{
    entry,
    netlink::{Attribute, Raw, Request},
    table,
};
use crate::model::mark::MarkMask;

/// The preference of the rules in front. The rule for the table `local` stands before them. The kernel gives a rule without
/// a preference, as of wg-quick, one below the lowest that is not 0, so only here nothing gets in front of them later.
pub(super) const FRONT: u32 = 0;
/// Where marked packets continue.
pub(super) const TARGET: u32 = 40_000;
/// The end for marked packets that no table has a route for.
pub(super) const END: u32 = 40_999;

/// Actions (`FR_ACT_*`).
pub(super) const LOOKUP: u8 = 1;
pub(super) const GOTO: u8 = 2;
pub(super) const NOP: u8 = 3;
pub(super) const UNREACHABLE: u8 = 7;

/// The origin `kernel`. networkd removes the rules of all other origins whenever it configures a link, but for the goto,
/// which would then pass all packets on.
pub(super) const KERNEL: u8 = 2;

const HEADER: usize = 12;
/// Flags that are a state, no selector: `FIB_RULE_PERMANENT`, `FIB_RULE_UNRESOLVED`, and the two for a name that no link has.
const STATE: u32 = 0x1 | 0x4 | 0x8 | 0x10;

const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Rule {
    pub(super) family: u8,
    pub(super) preference: u32,
    pub(super) action: u8,
    pub(super) table: u32,
    pub(super) mark: u32,
    pub(super) mask: u32,
    /// The preference of the rule that a goto continues at.
    pub(super) target: Option<u32>,
    /// The name of the link that the socket is bound to. Names may be any bytes.
    pub(super) bound_to: Option<Vec<u8>>,
    /// Whether there is anything else in it.
    pub(super) has_more: bool,
}

/// What a rule of steer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Sends packets with this flag to [`TARGET`].
    Goto(u32),
    Target,
    /// Sends packets with a mark to a table.
    Lookup,
    /// Refuses packets with this flag.
    End(u32),
    /// Sends packets of sockets that are bound to a link to a table.
    Bound,
}

impl Rule {
    fn new(family: u8, preference: u32, action: u8) -> Self {
        Self { family, preference, action, table: 0, mark: 0, mask: 0, target: None, bound_to: None, has_more: false }
    }

    pub(super) fn goto(family: u8, flag: u32) -> Self {
        Self { mark: flag, mask: flag, target: Some(TARGET), ..Self::new(family, FRONT, GOTO) }
    }

    /// The kernel's rule for addresses of this host may come later, as VRFs need it, so marked packets meet one here.
    pub(super) fn target(family: u8) -> Self {
        Self { table: entry::LOCAL, ..Self::new(family, TARGET, LOOKUP) }
    }

    pub(super) fn end(family: u8, flag: u32) -> Self {
        Self { mark: flag, mask: flag, ..Self::new(family, END, UNREACHABLE) }
    }

    pub(super) fn lookup(family: u8, mask: MarkMask, number: u8, table: u32) -> Self {
        Self {
            mark: mask.mark(number).unwrap_or(mask.flag()),
            mask: mask.bits(),
            table,
            ..Self::new(family, TARGET + u32::from(number), LOOKUP)
        }
    }

    pub(super) fn bound(family: u8, name: &[u8], table: u32) -> Self {
        Self { table, bound_to: Some(name.to_vec()), ..Self::new(family, FRONT, LOOKUP) }
    }

    /// Whether it is the kernel's first rule, for the table of addresses of this host.
    pub(super) fn is_local(&self) -> bool {
        *self == Self { table: entry::LOCAL, ..Self::new(self.family, FRONT, LOOKUP) }
    }

    /// What the rule is for, if it is one of steer's, of any instance.
    pub(super) fn role(&self) -> Option<Role> {
        let is_flag = self.mark.is_power_of_two() && self.mark == self.mask;
        match (self.preference, self.action) {
            _ if self.has_more => None,
            (FRONT, GOTO) if is_flag && self.target == Some(TARGET) => Some(Role::Goto(self.mark)),
            // That of an earlier version.
            (TARGET, NOP) if self.mask == 0 && self.bound_to.is_none() => Some(Role::Target),
            _ if *self == Self::target(self.family) => Some(Role::Target),
            (END, UNREACHABLE) if is_flag && self.bound_to.is_none() => Some(Role::End(self.mark)),
            (FRONT, LOOKUP) if self.bound_to.is_some() && table::is_bound(self.table) => Some(Role::Bound),
            (preference, LOOKUP) if (TARGET + 1..END).contains(&preference) => {
                (self.mask != 0 && self.bound_to.is_none() && table::is_marked(self.table)).then_some(Role::Lookup)
            }
            _ => None,
        }
    }

    /// The flag of the marks that a lookup selects.
    pub(super) fn flag(&self) -> u32 {
        self.mask.checked_ilog2().map_or(0, |bit| 1 << bit)
    }

    /// Whether the program of this rule, which is not steer's, uses bits of the mask. A program with a rule for one whole mark,
    /// as wg-quick, sets all bits. There it counts whether its mark looks like one of steer's.
    pub(super) fn clashes(&self, mask: MarkMask) -> bool {
        if self.mask == u32::MAX { self.mark & mask.flag() != 0 } else { self.mask & mask.bits() != 0 }
    }

    /// Decodes a listed rule; `None`: it cannot be decoded.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let header: [u8; HEADER] = body.get(..HEADER)?.try_into().ok()?;
        let [family, to, from, tos, table, _, _, action, flags @ ..] = header;
        let mut rule = Self { table: table.into(), ..Self::new(family, 0, action) };
        rule.has_more = [to, from, tos] != [0; 3] || u32::from_ne_bytes(flags) & !STATE != 0;
        for attribute in Attribute::all(&body[HEADER..])? {
            match attribute.kind {
                FRA_PRIORITY => rule.preference = attribute.as_number()?,
                FRA_TABLE => rule.table = attribute.as_number()?,
                FRA_FWMARK => rule.mark = attribute.as_number()?,
                FRA_FWMASK => rule.mask = attribute.as_number()?,
                FRA_GOTO => rule.target = Some(attribute.as_number()?),
                FRA_OIFNAME => rule.bound_to = Some(attribute.text().to_vec()),
                // A loop guard that the kernel lists for every rule: no length is too short.
                FRA_SUPPRESS_PREFIXLEN if attribute.as_number() == Some(u32::MAX) => {}
                FRA_PROTOCOL | FRA_PAD => {}
                _ => rule.has_more = true,
            }
        }
        Some(rule)
    }

    /// A request that adds the rule. The kernel answers EEXIST if there is one.
    pub(super) fn write(&self) -> Request {
        Request { message: self.message(libc::RTM_NEWRULE), flags: NLM_F_CREATE | NLM_F_EXCL }
    }

    /// A request that deletes one such rule.
    pub(super) fn delete(&self) -> Request {
        Request { message: self.message(libc::RTM_DELRULE), flags: 0 }
    }

    fn message(&self, kind: u16) -> Raw {
        let mut body = vec![self.family, 0, 0, 0, 0, 0, 0, self.action];
        body.extend(0_u32.to_ne_bytes());
        let mut attributes =
            vec![Attribute::number(FRA_PRIORITY, self.preference), Attribute::new(FRA_PROTOCOL, [KERNEL])];
        if self.mask != 0 {
            attributes.push(Attribute::number(FRA_FWMARK, self.mark));
            attributes.push(Attribute::number(FRA_FWMASK, self.mask));
        }
        if self.table != 0 {
            attributes.push(Attribute::number(FRA_TABLE, self.table));
        }
        attributes.extend(self.target.map(|target| Attribute::number(FRA_GOTO, target)));
        let name = self.bound_to.as_ref().map(|name| [name, &b"\0"[..]].concat());
        attributes.extend(name.map(|name| Attribute::new(FRA_OIFNAME, name)));
        Attribute::emit_all(&attributes, &mut body);
        Raw { kind, body }
    }
}

impl fmt::Display for Rule {
    /// As `ip rule` would show it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = if self.family == entry::IPV4 { 4 } else { 6 };
        write!(formatter, "IPv{version} rule {}:", self.preference)?;
        if self.mask != 0 {
            write!(formatter, " fwmark {:#x}/{:#x}", self.mark, self.mask)?;
        }
        if let Some(name) = &self.bound_to {
            write!(formatter, " oif {}", name.escape_ascii())?;
        }
        if self.has_more {
            write!(formatter, " ...")?;
        }
        match (self.action, self.target) {
            (LOOKUP, _) if table::is_ours(self.table) => write!(formatter, " lookup {:#x}", self.table),
            (LOOKUP, _) => write!(formatter, " lookup {}", self.table),
            (GOTO, Some(target)) => write!(formatter, " goto {target}"),
            (NOP, _) => write!(formatter, " nop"),
            (UNREACHABLE, _) => write!(formatter, " unreachable"),
            (action, _) => write!(formatter, " action {action}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Instance, MarkMask, Role, Rule, entry::IPV6};

    #[test]
    fn roles() {
        let mask = MarkMask::new(0xff00_0000);
        let instance = Instance::new(5);
        let rules = [
            (Rule::goto(IPV6, mask.flag()), Role::Goto(1 << 31)),
            (Rule::target(IPV6), Role::Target),
            (Rule::lookup(IPV6, mask, 7, instance.marked(7)), Role::Lookup),
            (Rule::end(IPV6, mask.flag()), Role::End(1 << 31)),
            (Rule::bound(IPV6, b"w\xff", instance.bound(0)), Role::Bound),
        ];
        for (rule, role) in &rules {
            assert_eq!(rule.role(), Some(*role), "{rule}");
            let body = rule.write().message.body;
            assert_eq!(Rule::decode(&body).as_ref(), Some(rule), "{rule}");
            (0..body.len()).for_each(|length| drop(Rule::decode(&body[..length])));
            let mut others = [rule.clone(), rule.clone(), rule.clone()];
            others[0].has_more = true;
            others[1].preference = 1000;
            others[2].action = 6;
            assert!(others.iter().all(|other| other.role().is_none()), "{others:?}");
        }
        let lookup = &rules[2].0;
        assert_eq!((lookup.flag(), lookup.preference), (1 << 31, 40_007));
        let foreign = [Rule { table: 51820, ..lookup.clone() }, Rule { table: 51820, ..rules[4].0.clone() }];
        assert!(foreign.iter().all(|rule| rule.role().is_none()), "another table: {foreign:?}");
        assert_eq!(rules[4].0.to_string(), "IPv6 rule 0: oif w\\xff lookup 0x73005800");
    }
}
