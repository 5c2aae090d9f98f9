//! The resolvers of a policy, and of the members of its group of uplinks.
//!
//! **Invariant:** a query leaves by a member only to the resolver of that member, or of the policy where the member has none. No query
//! leaves by a member to a resolver that only another one has.

use core::hint::black_box;

use crate::{
    address::AddressWords,
    record::{PolicyRecord, policy_flags},
    uplink::{Family, MEMBERS, UplinkRecord, position},
};

const NONE: AddressWords = [0; 4];

/// Whether the policy, or a member of its group, has a resolver of a family.
#[inline]
pub const fn has_resolver(policy: &PolicyRecord, family: Family) -> bool {
    let flag = match family {
        Family::V4 => policy_flags::DNS4,
        Family::V6 => policy_flags::DNS6,
    };
    policy.flags & flag != 0
}

/// The resolver for queries that leave by a member of the group; [`MEMBERS`]: by none of them. `None`: they go to the server that the
/// program asks.
#[inline]
pub fn resolver(
    policy: &PolicyRecord,
    group: Option<&UplinkRecord>,
    member: usize,
    family: Family,
) -> Option<AddressWords> {
    if !has_resolver(policy, family) {
        return None;
    }
    // The verifier lets no program compute with a pointer that may be null, so the group is asked for first.
    let Some(group) = group else { return Some(*policy.resolver(family)) };
    let own = &group.resolvers(family)[position(member)];
    let resolver = if member < MEMBERS && *own != NONE { own } else { policy.resolver(family) };
    (*resolver != NONE).then_some(*resolver)
}

/// Whether an address is the resolver of the policy, or of any member of its group.
#[inline]
pub fn is_resolver(
    policy: &PolicyRecord,
    group: Option<&UplinkRecord>,
    family: Family,
    address: &AddressWords,
) -> bool {
    if !has_resolver(policy, family) {
        return false;
    }
    // Without a branch for each resolver, of which the verifier would follow both ways through the rest of the program. The compiler may
    // not know that the last word has only 32 bits: it would make branches of this.
    let &[a, b, c, d] = address;
    let d = black_box(u64::from(d));
    let is_same = |own: &AddressWords| {
        let differs = u64::from(own[0] ^ a | own[1] ^ b | own[2] ^ c) | u64::from(own[3]) ^ d;
        differs.wrapping_sub(1) >> 63
    };
    let mut found = is_same(policy.resolver(family));
    if let Some(group) = group {
        for resolver in group.resolvers(family) {
            found |= is_same(resolver);
        }
    }
    found != 0
}

impl PolicyRecord {
    #[inline]
    const fn resolver(&self, family: Family) -> &AddressWords {
        match family {
            Family::V4 => &self.dns4,
            Family::V6 => &self.dns6,
        }
    }
}

impl UplinkRecord {
    #[inline]
    const fn resolvers(&self, family: Family) -> &[AddressWords; MEMBERS] {
        match family {
            Family::V4 => &self.dns4,
            Family::V6 => &self.dns6,
        }
    }
}

/// Whether a query may leave to a server by a member of the group; [`MEMBERS`]: by a link that is none of them.
#[inline]
pub fn may_ask(
    policy: &PolicyRecord,
    group: Option<&UplinkRecord>,
    member: usize,
    family: Family,
    server: &AddressWords,
) -> bool {
    match resolver(policy, group, member, family) {
        Some(resolver) => resolver == *server,
        None => !has_resolver(policy, family) || is_resolver(policy, group, family, server) != (member < MEMBERS),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_resolver, may_ask, resolver};
    use crate::{
        mapped,
        record::{PolicyRecord, policy_flags},
        uplink::{Family, MEMBERS, UplinkRecord},
    };

    #[test]
    fn each_member_asks_its_own() {
        let [own, first, other] = [1, 2, 3].map(mapped);
        let policy = PolicyRecord { flags: policy_flags::DNS4, dns4: own, ..PolicyRecord::EMPTY };
        let mut group = UplinkRecord { members: 3, ..UplinkRecord::EMPTY };
        group.dns4[0] = first;
        let with = |policy: &PolicyRecord, member| resolver(policy, Some(&group), member, Family::V4);
        assert_eq!([0, 1, MEMBERS].map(|member| with(&policy, member)), [first, own, own].map(Some));
        assert_eq!(resolver(&policy, None, MEMBERS, Family::V4), Some(own));
        assert_eq!(resolver(&policy, Some(&group), 0, Family::V6), None);
        let asks = |policy: &PolicyRecord, member| {
            [own, first, other].map(|server| may_ask(policy, Some(&group), member, Family::V4, &server))
        };
        assert_eq!(asks(&policy, 0), [false, true, false]);
        assert_eq!(asks(&policy, 1), [true, false, false]);
        assert!([own, first].iter().all(|address| is_resolver(&policy, Some(&group), Family::V4, address)));
        assert!(!is_resolver(&policy, Some(&group), Family::V4, &other));
        // Without a resolver of the policy, a member that has none asks any server but those of the others.
        let bare = PolicyRecord { dns4: [0; 4], ..policy };
        assert_eq!([0, 1, MEMBERS].map(|member| with(&bare, member)), [Some(first), None, None]);
        assert_eq!(asks(&bare, 1), [true, false, true]);
        assert_eq!(asks(&bare, MEMBERS), [false, true, false], "by a link that is no member");
        let without = PolicyRecord { flags: 0, ..policy };
        assert_eq!(asks(&without, 1), [true; 3]);
    }
}
