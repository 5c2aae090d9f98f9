//! The current members of a group: those of the configuration, or the lines that `auto` finds.
//!
//! **Invariant:** a member of `auto` keeps its position as long as it is one, so its mark and its sockets stay its own.

use steer_common::{
    CLOSED_IFINDEX, UplinkRecord,
    record::INTERFACE_BYTES,
    uplink::{HealthRecord, MEMBERS, MemberRecord, uplink_flags},
};

use crate::{
    apply::resolve::{Namespace, index, padded},
    host::route,
    kernel::{self, Error, text},
    model::uplink::{
        Family, PerFamily,
        auto::{Link, Selector},
        group::Group,
    },
};

/// The members of a group as they are now.
pub(super) struct Current {
    /// The record with their names and indexes.
    pub(super) record: UplinkRecord,
    /// The tier of each position.
    pub(super) tiers: [PerFamily<u8>; MEMBERS],
    /// The positions that belong to another interface than before.
    pub(super) replaced: Vec<usize>,
}

/// Reads them. A group of `auto` whose configuration is not known here keeps its members.
pub(super) fn members(
    before: &UplinkRecord,
    group: Option<&Group>,
    namespace: Namespace<'_>,
) -> Result<Current, Error> {
    let mut record = *before;
    let tier = |position: usize| u8::try_from(before.member[position].tier).unwrap_or(u8::MAX);
    let mut tiers = std::array::from_fn(|position| PerFamily::from_fn(|_| tier(position)));
    let mut replaced = Vec::new();
    let auto = group.and_then(|group| group.auto.as_ref()).filter(|_| before.flags & uplink_flags::AUTO != 0);
    if let Some(selector) = auto.and_then(|auto| Selector::new(auto).ok()) {
        let read = || route::lines(&|name, kind| selector.includes(name, kind));
        let links = namespace.run(read).flatten();
        let links = links.map_err(|source| Error::Route { action: "read the lines of this host", source })?;
        let orders = PerFamily::from_fn(|family| selector.candidates(&links, family, in_use(before, family)));
        replaced = assign(&mut record, &links, &orders);
        for (position, tier) in tiers.iter_mut().enumerate() {
            let rank = |family| {
                let known = links.iter().find(|link| is_member(&record, position, &link.name))?;
                orders.get(family).iter().position(|index| *index == known.index)
            };
            *tier = PerFamily::from_fn(|family| {
                rank(family).and_then(|rank| u8::try_from(rank + 1).ok()).unwrap_or(u8::MAX)
            });
            record.member[position].tier = tier.v4.min(tier.v6).into();
        }
    }
    for position in 0..MEMBERS {
        record.ifindex[position] = index(&text(&record.member[position].interface), namespace.links);
    }
    Ok(Current { record, tiers, replaced })
}

/// The index of the member that the first bucket has.
fn in_use(record: &UplinkRecord, family: Family) -> Option<u32> {
    let ifindex = record.ifindex.get(usize::from(record.pick[family as usize][0]))?;
    u32::try_from(*ifindex).ok()
}

fn is_member(record: &UplinkRecord, position: usize, name: &str) -> bool {
    text(&record.member[position].interface) == name
}

/// Gives the candidates positions. Returns the positions that belong to another interface now.
fn assign(record: &mut UplinkRecord, links: &[Link], orders: &PerFamily<Vec<u32>>) -> Vec<usize> {
    let mut wanted: Vec<&Link> = Vec::new();
    for rank in 0..links.len() {
        for family in Family::ALL {
            let link = orders.get(family).get(rank).and_then(|index| links.iter().find(|link| link.index == *index));
            wanted
                .extend(link.filter(|link| wanted.len() < MEMBERS && !wanted.iter().any(|it| it.index == link.index)));
        }
    }
    let mut replaced = Vec::new();
    // A mark that sockets may have leads them to the new link, so unused positions come first.
    let used = record.live[0] | record.live[1] | record.holding[0] | record.holding[1];
    for (position, _) in kernel::members(record).map(|(at, member)| (at, *member)).collect::<Vec<_>>() {
        let ifindex = record.ifindex[position];
        let by_index = wanted.iter().position(|link| i32::try_from(link.index) == Ok(ifindex));
        let kept = by_index.or_else(|| wanted.iter().position(|link| is_member(record, position, &link.name)));
        if let Some(at) = kept {
            let link = wanted.swap_remove(at);
            record.member[position].interface = padded::<INTERFACE_BYTES>(&link.name);
        } else {
            record.member[position] = MemberRecord::EMPTY;
            record.ifindex[position] = CLOSED_IFINDEX;
        }
    }
    for link in wanted {
        let free = (0..MEMBERS).filter(|at| record.member[*at].interface[0] == 0);
        let Some(position) = free.min_by_key(|at| used >> at & 1) else { break };
        let interface = padded::<INTERFACE_BYTES>(&link.name);
        record.member[position] = MemberRecord { interface, tier: u16::MAX, weight: 1, metered: 0 };
        for health in &mut record.health {
            health[position] = HealthRecord::NEW;
        }
        replaced.push(position);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use steer_common::{UplinkRecord, uplink::MEMBERS};

    use super::{assign, is_member};
    use crate::model::uplink::{PerFamily, auto::Link};

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: None,
            arphrd: 1,
            is_up: true,
            has_carrier: true,
            has_bus_device_below: true,
            is_wireless: false,
            is_mobile: false,
            default_route: PerFamily { v4: Some(0), v6: Some(0) },
            has_address: PerFamily { v4: true, v6: true },
        }
    }

    fn assigned(record: &mut UplinkRecord, links: &[Link]) -> Vec<usize> {
        let order: Vec<u32> = links.iter().map(|link| link.index).collect();
        let replaced = assign(record, links, &PerFamily { v4: order.clone(), v6: order });
        for link in links {
            if let Some(position) = (0..MEMBERS).find(|at| is_member(record, *at, &link.name)) {
                record.ifindex[position] = i32::try_from(link.index).expect("an index");
            }
        }
        replaced
    }

    #[test]
    fn members_keep_their_positions() {
        let mut record = UplinkRecord { members: 8, ..UplinkRecord::EMPTY };
        assert_eq!(assigned(&mut record, &[link(2, "eth0"), link(3, "wlan0")]), [0, 1]);
        assert_eq!(assigned(&mut record, &[link(3, "wlan0"), link(2, "eth0")]), [0_usize; 0], "another order");
        assert_eq!(assigned(&mut record, &[link(3, "wlan7"), link(2, "eth0")]), [0_usize; 0], "renamed");
        assert!(is_member(&record, 1, "wlan7"));
        assert_eq!(assigned(&mut record, &[link(3, "wlan7"), link(9, "eth0")]), [0_usize; 0], "made again");
        assert_eq!(assigned(&mut record, &[link(3, "wlan7"), link(4, "usb0")]), [0], "another link");
        assert!(is_member(&record, 0, "usb0"));
        let many: Vec<Link> = (10..20).map(|index| link(index, &format!("eth{index}"))).collect();
        assigned(&mut record, &many);
        assert!((0..MEMBERS).all(|at| record.member[at].interface[0] != 0), "as many as fit");
    }
}
