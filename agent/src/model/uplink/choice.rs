//! Which member of a group gets which of the 64 buckets: weighted rendezvous hashing with exact shares.
//!
//! Every bucket has an order of the members. It belongs to the first member in its order that is usable. So the loss of
//! a member moves its buckets and no others, and its return gives it the same buckets back. The orders are such that the
//! shares follow the weights (by the method of Webster and Sainte-Laguë). While at most one member of a tier is lost, a
//! share is less than (n - 1) / 2 buckets from the ideal, with n members left: one bucket for three. The worst case is one
//! heavy member beside many that each have little more than half a bucket. One order cannot be exact for every set of many
//! lost members: with six of eight lost, a share was up to 7.2 buckets off. Where shares allow it, a bucket prefers the
//! member with the lowest `-log2(hash) / weight`.
//!
//! **Invariant:** integers only, so that every machine makes the same choice. The order in which members are written does
//! not matter.

/// The number of buckets of a group.
pub const BUCKETS: usize = 64;

/// How many members a group has at most.
pub const MOST_MEMBERS: usize = 8;

/// The bucket of no member. What falls into it is closed.
pub const CLOSED: u8 = u8::MAX;

/// For each bucket, the position of its member in the group, or [`CLOSED`].
pub type Pick = [u8; BUCKETS];

/// A member of a group that may get buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Hash of the member's name. It never changes.
    pub key: u64,
    /// The lowest tier with a usable member gets all buckets.
    pub tier: u8,
    /// Its share of its tier, relative to the other weights. A member with less than half a bucket (1/128) gets none until
    /// others are lost; so does one with 0.
    pub weight: u16,
    /// Whether it can carry traffic.
    pub usable: bool,
}

/// Fills the buckets. All are [`CLOSED`] if no member is usable. Members after the first [`MOST_MEMBERS`] get none.
pub fn pick(members: &[Candidate]) -> Pick {
    let members = &members[..members.len().min(MOST_MEMBERS)];
    let Some(tier) = members.iter().filter(|member| member.usable).map(|member| member.tier).min() else {
        return [CLOSED; BUCKETS];
    };
    let mut tier: Vec<_> = (0..).zip(members).filter(|(_, member)| member.tier == tier).collect();
    tier.sort_by_key(|(_, member)| member.key);
    let candidates: Vec<_> = tier.iter().map(|(_, member)| **member).collect();
    owners(&candidates).map(|owner| tier.get(owner).map_or(CLOSED, |(position, _)| *position))
}

/// The owner of each bucket in one tier.
fn owners(tier: &[Candidate]) -> [usize; BUCKETS] {
    let lost = set((0..tier.len()).filter(|member| !tier[*member].usable));
    let mut orders = [const { Vec::<usize>::new() }; BUCKETS];
    // A set has a higher number than its subsets. So with `gone` lost, just the orders that consist of `gone` are too short.
    for gone in (0..=lost).filter(|gone| gone & !lost == 0) {
        let left: Vec<_> = (0..tier.len()).filter(|member| gone & (1 << member) == 0).collect();
        let mut shares = [0; MOST_MEMBERS];
        let mut open = Vec::new();
        for (bucket, order) in orders.iter().enumerate() {
            match order.iter().find(|member| gone & (1 << **member) == 0) {
                Some(owner) => shares[*owner] += 1,
                None => open.push(bucket),
            }
        }
        for (bucket, owner) in share_out(tier, &left, shares, &open) {
            orders[bucket].push(owner);
        }
    }
    orders.map(|order| order.into_iter().find(|member| tier[*member].usable).unwrap_or(usize::MAX))
}

fn set(members: impl Iterator<Item = usize>) -> u32 {
    members.fold(0, |set, member| set | 1 << member)
}

/// Gives each open bucket to a member that is left. `shares` are the buckets that they have already.
fn share_out(
    tier: &[Candidate],
    left: &[usize],
    mut shares: [u32; MOST_MEMBERS],
    open: &[usize],
) -> Vec<(usize, usize)> {
    let all_zero = left.iter().all(|member| tier[*member].weight == 0);
    let weight = |member: usize| if all_zero { 1 } else { u64::from(tier[member].weight) };
    let mut due = [0; MOST_MEMBERS];
    for _ in open {
        // Webster: the highest weight / (2 * share + 1) is next.
        let next = left.iter().copied().reduce(|best, other| {
            let of = |member: usize, divisor: usize| weight(member) * u64::from(2 * shares[divisor] + 1);
            if of(other, best) > of(best, other) { other } else { best }
        });
        let Some(next) = next else { break };
        shares[next] += 1;
        due[next] += 1;
    }
    let mut pairs: Vec<_> = open
        .iter()
        .flat_map(|bucket| left.iter().map(|member| (*bucket, *member)))
        .filter(|(_, member)| due[*member] > 0)
        .map(|(bucket, member)| (cost(tier[member].key, bucket), bucket, member))
        .collect();
    pairs.sort_by(|a, b| {
        let by_cost = (a.0 * weight(b.2)).cmp(&(b.0 * weight(a.2)));
        by_cost.then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    let mut given = Vec::with_capacity(open.len());
    let mut is_given = [false; BUCKETS];
    for (_, bucket, member) in pairs {
        if due[member] > 0 && !is_given[bucket] {
            due[member] -= 1;
            is_given[bucket] = true;
            given.push((bucket, member));
        }
    }
    given
}

/// `-log2(hash / 2^64)` of a bucket and a member, in units of 2^-32: 1 to 2^38.
fn cost(key: u64, bucket: usize) -> u64 {
    let hash = mix(key ^ mix(bucket as u64 + 1)) | 1;
    let zeros = hash.leading_zeros();
    let mut mantissa = hash << zeros;
    let mut logarithm = u64::from(63 - zeros);
    for _ in 0..32 {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let is_two = square >> 127 == 1;
        mantissa = u64::try_from(square >> (63 + u32::from(is_two))).unwrap_or(u64::MAX);
        logarithm = logarithm << 1 | u64::from(is_two);
    }
    (64 << 32) - logarithm
}

/// The finalizer of SplitMix64.
const fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, CLOSED, Candidate, MOST_MEMBERS, Pick, cost, mix, pick};

    fn group(weights: &[u16]) -> Vec<Candidate> {
        let member = |(at, weight): (u64, &u16)| Candidate { key: mix(at), tier: 1, weight: *weight, usable: true };
        (0..).zip(weights).map(member).collect()
    }

    fn shares(pick: &Pick) -> [usize; MOST_MEMBERS] {
        std::array::from_fn(|member| pick.iter().filter(|owner| usize::from(**owner) == member).count())
    }

    /// Numbers of a seed.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_add(1);
            mix(mix(state)) % below
        }
    }

    #[test]
    fn shares_are_the_weights() {
        for (weights, want) in [
            (&[1][..], &[64][..]),
            (&[3, 1], &[48, 16]),
            (&[1, 1], &[32, 32]),
            (&[2, 1, 1], &[32, 16, 16]),
            (&[65535, 1], &[64, 0]),
            (&[1, 0], &[64, 0]),
            (&[0, 0], &[32, 32]),
            (&[1; 8], &[8; 8]),
        ] {
            assert_eq!(&shares(&pick(&group(weights)))[..want.len()], want, "{weights:?}");
        }
        let mut thirds = shares(&pick(&group(&[1, 1, 1])));
        thirds.sort_unstable();
        assert_eq!(&thirds[5..], [21, 21, 22]);
    }

    /// By sockets that take a random bucket, as the kernel does.
    #[test]
    fn three_to_one_over_400_sockets() {
        let pick = pick(&group(&[3, 1]));
        // The deviation of 400 draws from 48 of 64 buckets is 8.7; the share of the buckets is exact.
        let mut number = numbers(7);
        let first = (0..400).filter(|_| pick[usize::try_from(number(64)).expect("a bucket")] == 0).count();
        assert!((285..=315).contains(&first), "{first}");
    }

    #[test]
    fn the_lowest_tier_with_a_usable_member_gets_all() {
        let mut group = group(&[1, 1, 5, 1]);
        group[2].tier = 2;
        group[3].tier = 3;
        assert_eq!(shares(&pick(&group))[..4], [32, 32, 0, 0]);
        group[0].usable = false;
        assert_eq!(shares(&pick(&group))[..4], [0, 64, 0, 0]);
        group[1].usable = false;
        assert_eq!(shares(&pick(&group))[..4], [0, 0, 64, 0]);
        group[2].usable = false;
        assert_eq!(shares(&pick(&group))[..4], [0, 0, 0, 64]);
        group[3].usable = false;
        assert_eq!(pick(&group), [CLOSED; BUCKETS]);
        assert_eq!(pick(&[]), [CLOSED; BUCKETS]);
    }

    /// Of every set of usable members: the loss of one moves its buckets and no others, and shares follow the weights.
    #[test]
    fn a_loss_moves_only_the_lost_buckets() {
        let mut number = numbers(1);
        for round in 0..60 {
            let count = 2 + number(7);
            let most = [4, 10, 1000][usize::try_from(number(3)).expect("small")];
            let mut group: Vec<_> = (0..count)
                .map(|_| Candidate {
                    key: number(u64::MAX),
                    tier: 0,
                    weight: u16::try_from(1 + number(most)).expect("small"),
                    usable: true,
                })
                .collect();
            if round % 4 == 0 {
                // A heavy member beside others with little more than half a bucket: the worst case for Webster.
                for member in &mut group {
                    member.weight = 100;
                }
                group[0].weight = 12000;
            }
            let mut picks = Vec::new();
            for usable in 0..1_u32 << count {
                for (at, member) in group.iter_mut().enumerate() {
                    member.usable = usable & (1 << at) != 0;
                }
                picks.push(pick(&group));
                // Proved for at most one lost: each share is a quotient rounded by at most a half, and the sum is 64.
                // With more lost, 7.2 buckets were observed in 1,500 groups.
                let left = usable.count_ones();
                let bound = if u64::from(left) + 1 < count { 8.0 } else { f64::from(left.saturating_sub(1)) / 2.0 };
                let sum: u32 = group.iter().filter(|one| one.usable).map(|one| u32::from(one.weight)).sum();
                for (member, share) in group.iter().zip(shares(&picks[picks.len() - 1])) {
                    assert!(member.usable || share == 0, "round {round}");
                    if member.usable {
                        let ideal = 64.0 * f64::from(member.weight) / f64::from(sum);
                        let share = f64::from(u32::try_from(share).expect("at most 64"));
                        assert!(
                            (share - ideal).abs() <= bound + 1e-9,
                            "round {round}, {usable:b}: {share}, not {ideal}"
                        );
                    }
                }
            }
            for (usable, before) in picks.iter().enumerate().skip(1) {
                for lost in (0..count).filter(|lost| usable & (1 << lost) != 0) {
                    let after = &picks[usable & !(1 << lost)];
                    let moved = before.iter().zip(after).filter(|(old, new)| old != new);
                    assert!(
                        moved.clone().all(|(old, _)| u64::from(*old) == lost),
                        "round {round}: {usable:b} - {lost}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let group = group(&[5, 3, 2, 7]);
        let reversed: Vec<_> = group.iter().rev().copied().collect();
        assert_eq!(pick(&reversed).map(|owner| 3 - owner), pick(&group));
    }

    /// A changed configuration moves little more than it must.
    #[test]
    fn a_new_member_takes_few_buckets_from_others() {
        let mut most = 0;
        for seed in 0..100 {
            let mut number = numbers(seed * 1000);
            let mut group = group(&[3, 2, 1]);
            for member in &mut group {
                member.key = number(u64::MAX);
            }
            let before = pick(&group);
            group.push(Candidate { key: number(u64::MAX), tier: 1, weight: 2, usable: true });
            let after = pick(&group);
            most = most.max(before.iter().zip(after).filter(|(old, new)| *old != new && *new != 3).count());
        }
        assert!(most <= 6, "{most}");
    }

    #[test]
    fn costs_are_the_logarithm() {
        for bucket in 0..BUCKETS {
            let hash = mix(9 ^ mix(bucket as u64 + 1)) | 1;
            #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
            let (want, got) = (64.0 - (hash as f64).log2(), cost(9, bucket) as f64 / 4_294_967_296.0);
            assert!((want - got).abs() < 1e-6, "{want} {got}");
        }
    }

    /// Another version or machine must choose the same: sockets are not to move at an upgrade.
    #[test]
    fn the_choice_is_known() {
        let members = pick(&group(&[2, 1, 1])).map(|owner| char::from(b'0' + owner));
        assert_eq!(
            members.iter().collect::<String>(),
            "0022020100000200210010201221012201021022100010112011000102020010"
        );
    }
}
