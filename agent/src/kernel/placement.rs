//! Decides which slot, mark and group of uplinks each policy gets. Pure.
//!
//! **Invariant:** a policy that is in a slot keeps it, with its mark and the resolvers of its link. Nothing is written here, so a plan and a change decide the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use steer_common::{
    Kind, POLICY_SLOTS, PolicyRecord, UplinkRecord, policy_flags,
    record::{INTERFACE_BYTES, NAME_BYTES},
};

use super::{Error, Policy, text, uplinks};
use crate::model::{mark::MarkMask, spec::Exceptions};

/// Where policies go.
#[derive(Debug, Default)]
pub struct Placement {
    /// The slot of each policy, in their order.
    pub slots: Vec<u32>,
    /// All filled slots as they are then.
    pub records: BTreeMap<u32, PolicyRecord>,
    /// The slots that were free, with the exceptions that go there.
    pub fresh: Vec<(u32, Exceptions)>,
    /// The groups that the policies name, by slot.
    pub(super) groups: BTreeMap<u32, UplinkRecord>,
    /// Why a policy is closed: it has no mark. The last, if there are several.
    pub without_mark: Option<Error>,
}

/// Places each policy in the slot that holds the same one, or else in a free slot. `records` and `groups`: what is there.
/// `taken`: numbers of marks that others use.
pub(super) fn place(
    mut records: BTreeMap<u32, PolicyRecord>,
    mut groups: BTreeMap<u32, UplinkRecord>,
    policies: &[Policy],
    taken: &BTreeSet<u8>,
) -> Result<Placement, Error> {
    let mut placement = Placement::default();
    // There may be thousands.
    let mut by_name: HashMap<[u8; NAME_BYTES], Vec<u32>> = HashMap::new();
    for (slot, record) in &records {
        by_name.entry(record.name).or_default().push(*slot);
    }
    let mut next = 1;
    for Policy { record, exceptions, group } in policies {
        let uplink = match group {
            Some(group) => {
                let (slot, group) = uplinks::place(group, &groups)?;
                groups.insert(slot, group);
                placement.groups.insert(slot, group);
                slot
            }
            None => 0,
        };
        let record = &PolicyRecord { uplink, ..*record };
        let find = |wanted: &PolicyRecord| {
            let mut slots = by_name.get(&wanted.name).into_iter().flatten();
            slots.find(|slot| is_same_policy(&records[slot], wanted)).map(|slot| (*slot, &records[slot]))
        };
        let (same, placed, exceptions) = match find(record) {
            Some((slot, PolicyRecord { mark, dns4, dns6, .. })) => {
                (Some(slot), PolicyRecord { mark: *mark, dns4: *dns4, dns6: *dns6, ..*record }, exceptions)
            }
            None => match free_mark(record, records.values(), taken) {
                Ok(mark) => (None, PolicyRecord { mark, ..*record }, exceptions),
                Err(error) => {
                    placement.without_mark = Some(error);
                    let closed =
                        closed_for_good(&PolicyRecord { flags: record.flags & !policy_flags::ROUTE, ..*record });
                    (find(&closed).map(|(slot, _)| slot), closed, &Exceptions::NONE)
                }
            },
        };
        let slot = if let Some(slot) = same {
            slot
        } else {
            let Some(slot) = (next..POLICY_SLOTS).find(|slot| !records.contains_key(slot)) else {
                return Err(Error::Full { name: text(&record.name), slots: POLICY_SLOTS - 1 });
            };
            next = slot + 1;
            by_name.entry(placed.name).or_default().push(slot);
            placement.fresh.push((slot, exceptions.clone()));
            slot
        };
        records.insert(slot, placed);
        placement.slots.push(slot);
    }
    Ok(Placement { records, ..placement })
}

/// A policy that no interface opens any more: it has no name of one.
pub(super) fn closed_for_good(record: &PolicyRecord) -> PolicyRecord {
    let closed = PolicyRecord {
        kind: Kind::Steer as u32,
        interface: [0; INTERFACE_BYTES],
        flags: record.flags & !(policy_flags::LOCAL_HOST | policy_flags::PASSES),
        uplink: 0,
        ..*record
    };
    closed.closed()
}

/// Whether two records are the same policy, apart from the current index of the uplink, the resolvers of its link, and the mark.
pub(super) fn is_same_policy(old: &PolicyRecord, new: &PolicyRecord) -> bool {
    let of_link = new.flags & policy_flags::DNS_LINK != 0;
    let (dns4, dns6) = if of_link { (new.dns4, new.dns6) } else { (old.dns4, old.dns6) };
    PolicyRecord { ifindex: new.ifindex, mark: new.mark, dns4, dns6, ..*old } == *new
}

/// The lowest mark that no policy and nobody else has, with those that follow for the members of a group; 0 for a policy without a mark.
fn free_mark<'e>(
    record: &PolicyRecord,
    entries: impl Iterator<Item = &'e PolicyRecord>,
    taken: &BTreeSet<u8>,
) -> Result<u32, Error> {
    if record.flags & policy_flags::ROUTE == 0 {
        return Ok(0);
    }
    let mask = MarkMask::new(record.mark_mask);
    let used: BTreeSet<u8> = entries.flat_map(|entry| numbers(mask, entry)).chain(taken.iter().copied()).collect();
    let wanted = |first: u8| (first..=u8::MAX).take(members(record));
    let fits = |first: &u8| {
        wanted(*first).count() == members(record)
            && wanted(*first).all(|number| mask.mark(number).is_some() && !used.contains(&number))
    };
    let free = mask.numbers().find(fits).and_then(|number| mask.mark(number));
    free.ok_or_else(|| Error::NoMark { name: text(&record.name), marks: mask.numbers().count() })
}

/// How many marks a policy needs.
fn members(record: &PolicyRecord) -> usize {
    usize::try_from(record.members).map_or(1, |members| members.max(1))
}

/// The numbers of the marks of a policy.
pub fn numbers(mask: MarkMask, record: &PolicyRecord) -> impl Iterator<Item = u8> {
    let first = mask.number(record.mark).filter(|_| record.mark != 0);
    first.into_iter().flat_map(move |first| (first..=u8::MAX).take(members(record)))
}
