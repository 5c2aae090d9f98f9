//! The policy slots: finds, fills and frees them.
//!
//! **Invariant:** the policy in a slot does not change while an attachment names the slot. Only the uplink's index, one
//! word, may change, and the resolvers where they are those of its link. A changed policy gets another slot, and attachments are pointed to it one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd as _,
};

use steer_common::{
    AddressWords, COUNTERS, CounterRecord, Kind, Owner, POLICY_SLOTS, PolicyRecord, UplinkRecord, address::ip_address,
    attachment_flags, map, policy_flags,
};

use super::{
    Datapath, Error, Lock, Placement, bpf, map_error,
    placement::{closed_for_good, is_same_policy, place},
};
use crate::model::{config::UNCLASSIFIED, spec::Exceptions};

/// A filled slot.
#[derive(Clone, Debug)]
pub struct PolicyEntry {
    /// Its number, as in attachment records.
    pub slot: u32,
    /// Its content.
    pub record: PolicyRecord,
    /// Its exceptions as written.
    pub exceptions: Exceptions,
    /// Its uplinks, if it has a group.
    pub group: Option<Box<UplinkRecord>>,
}

/// A policy to be put in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its record, without a mark.
    pub record: PolicyRecord,
    /// Its exceptions, of which the record has the fingerprint.
    pub exceptions: Exceptions,
    /// Its group of uplinks, if it has one. The record does not name its slot yet.
    pub group: Option<Box<UplinkRecord>>,
}

/// The text in a NUL-padded field.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The resolvers of queries for which the link of the uplink has none. Redirected, a query goes to 0.0.0.1, also from an IPv6 socket. As no
/// packet to that address is one to the IPv4 resolver of a record, it is stopped.
pub const NOWHERE: [AddressWords; 2] = [[u32::MAX, 0, 0, 1_u32.to_be()], steer_common::mapped(1_u32.to_be())];

/// The resolvers of a policy itself; at most one for each family. Members of a group may have others.
pub fn own_resolvers(record: &PolicyRecord) -> impl Iterator<Item = IpAddr> {
    let families = [(policy_flags::DNS4, record.dns4), (policy_flags::DNS6, record.dns6)];
    let asked = families.into_iter().filter(|(flag, words)| record.flags & flag != 0 && *words != [0; 4]);
    asked.filter(|(_, words)| !NOWHERE.contains(words)).map(|(_, words)| ip_address(words))
}

impl PolicyEntry {
    /// Its name.
    pub fn name(&self) -> String {
        text(&self.record.name)
    }

    /// Its uplink's configured name, or that of its group; empty for an exemption.
    pub fn interface(&self) -> String {
        text(&self.record.interface)
    }

    /// The resolvers that replace the servers a program asks, by any uplink: at most one for each family and uplink.
    pub fn resolvers(&self) -> Vec<IpAddr> {
        if self.group.is_none() {
            return own_resolvers(&self.record).collect();
        }
        let mut resolvers: Vec<IpAddr> = Vec::new();
        for resolver in self.uplinks().into_iter().flat_map(|uplink| uplink.resolvers) {
            if !resolvers.contains(&resolver) {
                resolvers.push(resolver);
            }
        }
        resolvers
    }

    /// Whether it belongs to `owner`.
    pub fn is_owned_by(&self, owner: Owner) -> bool {
        self.record.owner == owner as u32
    }

    /// Whether it is closed and waits only for its last attachment to end; see [`Datapath::retire_policies`].
    pub fn is_retired(&self) -> bool {
        let is_closed = self.record.kind == Kind::Steer as u32 && self.interface().is_empty();
        self.is_owned_by(Owner::Config) && is_closed && self.name() != UNCLASSIFIED
    }

    /// Whether it exempts.
    pub fn exempts(&self) -> bool {
        self.record.kind == Kind::Exempt as u32
    }
}

impl Datapath {
    /// All filled slots, by number.
    pub fn policies(&self) -> Result<Vec<PolicyEntry>, Error> {
        let records = bpf::array_get_all::<PolicyRecord>(self.all_policies.fd().as_fd(), POLICY_SLOTS);
        let records =
            records.map_err(|source| Error::Map { action: "read the policies", name: map::POLICIES, source })?;
        let entries = (0..).zip(records).map(|(slot, record)| PolicyEntry {
            slot,
            record,
            exceptions: Exceptions::NONE,
            group: None,
        });
        let mut entries: Vec<_> = entries.filter(|entry| entry.slot != 0 && entry.record.kind != 0).collect();
        if entries.iter().any(|entry| entry.record.flags & policy_flags::EXCEPT != 0) {
            let mut exceptions = self.exceptions()?;
            for entry in &mut entries {
                entry.exceptions = exceptions.remove(&entry.slot).unwrap_or_default();
            }
        }
        if entries.iter().any(|entry| entry.record.uplink != 0) {
            let groups = self.groups_of(entries.iter().map(|entry| &entry.record))?;
            for entry in &mut entries {
                entry.group = groups.get(&entry.record.uplink).map(|group| Box::new(*group));
            }
        }
        Ok(entries)
    }

    /// One slot.
    pub fn policy(&self, slot: u32) -> Result<PolicyRecord, Error> {
        self.policies.get(&slot, 0).map_err(|error| map_error("read a policy", map::POLICIES, error))
    }

    /// The policy that a cgroup is attached to.
    pub fn policy_of(&self, cgroup_id: u64) -> Result<Option<PolicyRecord>, Error> {
        match self.record(cgroup_id)? {
            Some(attachment) if attachment.policy < POLICY_SLOTS => self.policy(attachment.policy).map(Some),
            _ => Ok(None),
        }
    }

    /// The slot of the configured policy in force that equals this one, apart from the owner.
    pub fn configured_as(&self, record: &PolicyRecord) -> Result<Option<u32>, Error> {
        let configured = PolicyRecord { owner: Owner::Config as u32, ..*record };
        let found = self.policies()?.into_iter().find(|entry| {
            // A policy that is not in a slot yet names none for its group.
            is_same_policy(&PolicyRecord { uplink: configured.uplink, ..entry.record }, &configured)
        });
        Ok(found.map(|entry| entry.slot))
    }

    /// Where policies go; see `place`. `pinned`: without it, nothing is there yet.
    pub fn place(pinned: Option<&Self>, policies: &[Policy], taken: &BTreeSet<u8>) -> Result<Placement, Error> {
        let entries = pinned.map_or_else(|| Ok(Vec::new()), Self::policies)?;
        let records: BTreeMap<u32, PolicyRecord> =
            entries.into_iter().map(|entry| (entry.slot, entry.record)).collect();
        let groups = pinned.map_or_else(|| Ok(BTreeMap::new()), |pinned| pinned.groups_of(records.values()))?;
        place(records, groups, policies, taken)
    }

    /// Puts each policy in its slot. Returns the slot numbers. Changes nothing if there are not enough slots or marks.
    /// `taken`: numbers of marks that others use.
    pub fn put_policies(&mut self, lock: &Lock, policies: &[Policy], taken: &BTreeSet<u8>) -> Result<Vec<u32>, Error> {
        let mut placement = Self::place(Some(self), policies, taken)?;
        match placement.without_mark.take() {
            Some(error) => Err(error),
            None => self.put(lock, placement),
        }
    }

    /// As [`Self::put_policies`], but closes the policies for which there is no mark. The second value is the error of the last one.
    pub fn put_or_close(
        &mut self,
        lock: &Lock,
        policies: &[Policy],
        taken: &BTreeSet<u8>,
    ) -> Result<(Vec<u32>, Result<(), Error>), Error> {
        let mut placement = Self::place(Some(self), policies, taken)?;
        let without_mark = placement.without_mark.take();
        Ok((self.put(lock, placement)?, without_mark.map_or(Ok(()), Err)))
    }

    fn put(&mut self, lock: &Lock, placement: Placement) -> Result<Vec<u32>, Error> {
        let Placement { slots, records, fresh, groups, .. } = placement;
        let former = if fresh.is_empty() { BTreeMap::new() } else { self.policy_records()? };
        for (slot, group) in groups {
            self.set_group(lock, slot, &group)?;
        }
        let begin_anew: BTreeSet<u32> = fresh.iter().map(|(slot, _)| *slot).collect();
        self.clear_accounts(|slot| begin_anew.contains(&slot))?;
        for (slot, exceptions) in fresh {
            self.zero_counters(slot)?;
            // A process that was killed may have left some.
            self.clear_reach(slot, records[&slot].flags)?;
            self.put_exceptions(slot, &exceptions)?;
        }
        // Counts are no reason to leave a policy unchanged.
        if let Err(error) = self.inherit(&former, (&slots, &begin_anew), &records) {
            log::warn!("changed policies begin their counters anew: {error}");
        }
        for slot in &slots {
            self.set_policy(*slot, &records[slot])?;
        }
        Ok(slots)
    }

    /// Changes the resolvers of a policy that has those of its link.
    pub fn set_resolvers(&mut self, _lock: &Lock, slot: u32, record: &PolicyRecord) -> Result<(), Error> {
        self.set_policy(slot, record)
    }

    /// Changes the uplink's index in a policy. Returns the changed entry.
    pub fn set_uplink(&mut self, _lock: &Lock, entry: &PolicyEntry, ifindex: i32) -> Result<PolicyEntry, Error> {
        let record = PolicyRecord { ifindex, ..entry.record };
        self.set_policy(entry.slot, &record)?;
        Ok(PolicyEntry { record, ..entry.clone() })
    }

    /// The attachments to configured policies that are not in `keep`, each with the slot in `keep` of the policy of the same name: ids of
    /// cgroups, whether the attachment is manual, and slots. `records`: the policies by slot.
    pub fn heirs(&self, records: &BTreeMap<u32, PolicyRecord>, keep: &[u32]) -> Result<Vec<(u64, bool, u32)>, Error> {
        let configured = records.iter().filter(|(_, record)| record.owner == Owner::Config as u32);
        let (kept, retired): (BTreeMap<u32, &PolicyRecord>, BTreeMap<u32, &PolicyRecord>) =
            configured.map(|(slot, record)| (*slot, record)).partition(|(slot, _)| keep.contains(slot));
        if retired.is_empty() {
            return Ok(Vec::new());
        }
        let heirs: BTreeMap<_, u32> = kept.iter().map(|(slot, record)| (record.name, *slot)).collect();
        let heir_of = |slot: u32| heirs.get(&retired.get(&slot)?.name).copied();
        let records = self.records()?.into_iter().filter_map(|(id, record)| Some((id, record?)));
        let heirs = records.filter_map(|(id, record)| {
            let is_manual = record.flags & attachment_flags::MANUAL != 0;
            Some((id, is_manual, heir_of(record.policy)?))
        });
        Ok(heirs.collect())
    }

    /// The records of the policies, by slot.
    pub fn policy_records(&self) -> Result<BTreeMap<u32, PolicyRecord>, Error> {
        Ok(self.policies()?.into_iter().map(|entry| (entry.slot, entry.record)).collect())
    }

    /// Frees the configured policies that are not in `keep`. One that an attachment still names is closed, and its slot is kept until the
    /// cgroup is detached. `netns_cookie`: the network namespace in which a policy is closed that exempted in all of them.
    pub fn retire_policies(&mut self, _lock: &Lock, keep: &[u32], netns_cookie: u64) -> Result<(), Error> {
        let retired = |entry: &PolicyEntry| entry.is_owned_by(Owner::Config) && !keep.contains(&entry.slot);
        let retired: Vec<PolicyEntry> = self.policies()?.into_iter().filter(retired).collect();
        if retired.is_empty() {
            return Ok(());
        }
        let named: BTreeSet<u32> = self.records()?.into_iter().filter_map(|(_, record)| Some(record?.policy)).collect();
        for PolicyEntry { slot, record, .. } in retired {
            if let Err(error) = self.settle(slot) {
                log::warn!("what policy {} counted last is lost: {error}", text(&record.name));
            }
            if named.contains(&slot) {
                let netns_cookie = if record.kind == Kind::Exempt as u32 { netns_cookie } else { record.netns_cookie };
                self.set_policy(slot, &record.closed())?;
                self.set_policy(slot, &closed_for_good(&PolicyRecord { netns_cookie, ..record }))?;
                self.clear_reach(slot, record.flags)?;
                self.free_group(record.uplink)?;
            } else {
                self.free_policy(slot)?;
            }
        }
        Ok(())
    }

    /// Empties a slot that no attachment names.
    pub(super) fn free_policy(&mut self, slot: u32) -> Result<(), Error> {
        let PolicyRecord { flags, uplink, .. } = self.policy(slot)?;
        self.set_policy(slot, &PolicyRecord::EMPTY)?;
        self.clear_reach(slot, flags)?;
        if flags & policy_flags::ACCOUNT != 0 {
            self.clear_accounts(|of| of == slot)?;
        }
        self.free_group(uplink)
    }

    fn set_policy(&mut self, slot: u32, record: &PolicyRecord) -> Result<(), Error> {
        self.policies.set(slot, record, 0).map_err(|error| map_error("write a policy", map::POLICIES, error))
    }

    fn zero_counters(&mut self, slot: u32) -> Result<(), Error> {
        let now = self.counters.get(&slot, 0);
        let cpus = now.map_err(|error| map_error("reset the counters", map::COUNTERS, error))?.len();
        self.set_counters(slot, vec![CounterRecord::default(); cpus])
    }

    /// The counters of a slot, summed over all CPUs, in the order of [`COUNTERS`].
    pub fn counters(&self, slot: u32) -> Result<[u64; COUNTERS.len()], Error> {
        let per_cpu =
            self.counters.get(&slot, 0).map_err(|error| map_error("read the counters", map::COUNTERS, error))?;
        let mut sums = [0_u64; COUNTERS.len()];
        for record in per_cpu.iter() {
            for (sum, count) in sums.iter_mut().zip(record.counts) {
                *sum = sum.wrapping_add(count);
            }
        }
        Ok(sums)
    }
}
