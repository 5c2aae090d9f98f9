//! The policy slots: finding, filling, changing and freeing them.
//!
//! **Invariant:** a reader in the kernel sees whole words, not whole records. So a change of anything but the uplink's
//! index goes through a closed policy, and no mixture of two neighbouring states is less strict than both.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::{CLOSED_IFINDEX, COUNTERS, CounterRecord, Kind, Owner, POLICY_SLOTS, PolicyRecord, map};

use super::{Datapath, Error, Lock, map_error};
use crate::interface::Table;

/// A filled slot.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Its number, as in attachment records.
    pub slot: u32,
    /// What is in it.
    pub record: PolicyRecord,
}

/// The text in a NUL-padded field.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl PolicyEntry {
    /// Its name.
    pub fn name(&self) -> String {
        text(&self.record.name)
    }

    /// Its uplink's configured name; empty for an exemption.
    pub fn interface(&self) -> String {
        text(&self.record.interface)
    }

    /// Whether it belongs to `owner`.
    pub fn is_owned_by(&self, owner: Owner) -> bool {
        self.record.owner == owner as u32
    }

    /// Whether it exempts.
    pub fn exempts(&self) -> bool {
        self.record.kind == Kind::Exempt as u32
    }
}

/// Whether two records are the same policy, perhaps changed. A configured policy is known by its name; one made by hand
/// is nothing but its content, so that all who ask for the same share a slot.
fn is_same_policy(old: &PolicyRecord, new: &PolicyRecord) -> bool {
    if old.owner != new.owner || old.name != new.name {
        return false;
    }
    new.owner == Owner::Config as u32
        || (old.kind, old.flags, old.netns_cookie, old.interface)
            == (new.kind, new.flags, new.netns_cookie, new.interface)
}

impl Datapath {
    /// All filled slots, by number.
    pub fn policies(&self) -> Result<Vec<PolicyEntry>, Error> {
        let mut entries = Vec::new();
        for slot in 1..POLICY_SLOTS {
            let record = self.policy(slot)?;
            if record.kind != 0 {
                entries.push(PolicyEntry { slot, record });
            }
        }
        Ok(entries)
    }

    /// One slot.
    pub fn policy(&self, slot: u32) -> Result<PolicyRecord, Error> {
        self.policies.get(&slot, 0).map_err(|error| map_error("read a policy", map::POLICIES, error))
    }

    /// Puts each record in the slot that holds the same policy, or else in a free one. Returns their numbers.
    pub fn put_policies(&mut self, _lock: &Lock, records: &[PolicyRecord]) -> Result<Vec<u32>, Error> {
        let mut entries: BTreeMap<u32, PolicyRecord> =
            self.policies()?.into_iter().map(|entry| (entry.slot, entry.record)).collect();
        let mut slots = Vec::with_capacity(records.len());
        for record in records {
            let same = entries.iter().find(|(_, old)| is_same_policy(old, record)).map(|(slot, old)| (*slot, *old));
            let slot = if let Some((slot, old)) = same {
                self.change_policy(slot, &old, record)?;
                slot
            } else {
                let slot = (1..POLICY_SLOTS)
                    .find(|slot| !entries.contains_key(slot))
                    .ok_or_else(|| Error::Full { name: text(&record.name), slots: POLICY_SLOTS - 1 })?;
                self.zero_counters(slot)?;
                self.set_policy(slot, record)?;
                slot
            };
            entries.insert(slot, *record);
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Changes what is in a slot.
    fn change_policy(&mut self, slot: u32, old: &PolicyRecord, new: &PolicyRecord) -> Result<(), Error> {
        if old == new {
            return Ok(());
        }
        let only_the_index = PolicyRecord { ifindex: new.ifindex, ..*old } == *new;
        if !only_the_index {
            self.set_policy(slot, &old.closed())?;
            self.set_policy(slot, &new.closed())?;
        }
        self.set_policy(slot, new)
    }

    /// Gives every policy of the network namespace `netns_cookie` its uplink's present index, one word each, or closes it
    /// while there is none. Returns those that changed, as they are now.
    pub fn follow_uplinks(
        &mut self,
        _lock: &Lock,
        table: &Table,
        netns_cookie: u64,
    ) -> Result<Vec<PolicyEntry>, Error> {
        let mut changed = Vec::new();
        for PolicyEntry { slot, record } in self.policies()? {
            if record.kind != Kind::Steer as u32 || record.netns_cookie != netns_cookie {
                continue;
            }
            let ifindex = table.resolve(&text(&record.interface)).unwrap_or(CLOSED_IFINDEX);
            if ifindex != record.ifindex {
                let followed = PolicyRecord { ifindex, ..record };
                self.change_policy(slot, &record, &followed)?;
                changed.push(PolicyEntry { slot, record: followed });
            }
        }
        Ok(changed)
    }

    /// Frees the configured policies that are not in `keep`. One that an attachment made by hand still names is closed
    /// instead, for its slot must not come to mean another policy.
    pub fn retire_policies(&mut self, _lock: &Lock, keep: &[u32]) -> Result<(), Error> {
        let named: BTreeSet<u32> = self.attachments()?.iter().map(|attachment| attachment.record.policy).collect();
        for PolicyEntry { slot, record } in self.policies()? {
            if record.owner != Owner::Config as u32 || keep.contains(&slot) {
                continue;
            }
            if named.contains(&slot) {
                let closed = PolicyRecord { kind: Kind::Steer as u32, ..record }.closed();
                self.change_policy(slot, &record, &closed)?;
            } else {
                self.free_policy(slot)?;
            }
        }
        Ok(())
    }

    /// Empties a slot that no attachment names any more.
    pub(super) fn free_policy(&mut self, slot: u32) -> Result<(), Error> {
        self.set_policy(slot, &PolicyRecord::EMPTY)
    }

    fn set_policy(&mut self, slot: u32, record: &PolicyRecord) -> Result<(), Error> {
        self.policies.set(slot, record, 0).map_err(|error| map_error("write a policy", map::POLICIES, error))
    }

    fn zero_counters(&mut self, slot: u32) -> Result<(), Error> {
        let failed = |error| map_error("reset the counters", map::COUNTERS, error);
        let now = self.counters.get(&slot, 0).map_err(failed)?;
        let zero = vec![CounterRecord::default(); now.len()];
        let zero = aya::maps::PerCpuValues::try_from(zero).map_err(|source| Error::Map {
            action: "reset the counters",
            name: map::COUNTERS,
            source,
        })?;
        self.counters.set(slot, zero, 0).map_err(failed)
    }

    /// The counters of a slot, summed over all CPUs, in the order of [`COUNTERS`].
    pub fn counters(&self, slot: u32) -> Result<[u64; COUNTERS.len()], Error> {
        let per_cpu =
            self.counters.get(&slot, 0).map_err(|error| map_error("read the counters", map::COUNTERS, error))?;
        let mut sums = [0_u64; COUNTERS.len()];
        for record in per_cpu.iter() {
            for (sum, count) in sums.iter_mut().zip(record.sockets) {
                *sum = sum.wrapping_add(count);
            }
        }
        Ok(sums)
    }
}
