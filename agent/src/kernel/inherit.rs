//! Counts that outlast a change of their policy: the changed policy has another slot, and goes on from the counts of the former one.
//!
//! **Invariant:** a count that was shown for a name never gets smaller because the policy of that name was changed. The former slot counts
//! until its last cgroup has moved; what it counts meanwhile is added when it is retired.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::PerCpuValues;
use steer_common::{
    COUNTERS, CounterRecord, Owner, PolicyRecord,
    account::{AccountKey, AccountRecord},
    map, policy_flags,
};

use super::{Datapath, Error, map_error};

/// What a new slot has got from a former one.
#[derive(Debug)]
pub(super) struct Inherited {
    heir: u32,
    counters: Vec<CounterRecord>,
    accounts: BTreeMap<u32, Vec<AccountRecord>>,
}

impl Datapath {
    /// Gives new slots the counts of the configured policies of the same names that are not kept. `former`: all policies before.
    pub(super) fn inherit(
        &mut self,
        former: &BTreeMap<u32, PolicyRecord>,
        (kept, fresh): (&[u32], &BTreeSet<u32>),
        records: &BTreeMap<u32, PolicyRecord>,
    ) -> Result<(), Error> {
        let is_configured = |record: &PolicyRecord| record.owner == Owner::Config as u32;
        for (&heir, record) in records.iter().filter(|(slot, record)| fresh.contains(slot) && is_configured(record)) {
            let is_its = |(slot, old): &(&u32, &PolicyRecord)| {
                is_configured(old) && old.name == record.name && !kept.contains(slot)
            };
            // One that is closed, and waits for its last cgroup, is older.
            let newest = |(slot, old): &(&u32, &PolicyRecord)| (old.interface[0] != 0, **slot);
            let Some((&slot, _)) = former.iter().filter(is_its).max_by_key(newest) else { continue };
            let counters = self.counters_per_cpu(slot)?;
            let accounts =
                if record.flags & policy_flags::ACCOUNT == 0 { BTreeMap::new() } else { self.accounts_per_cpu(slot)? };
            self.set_counters(heir, counters.clone())?;
            for (&ifindex, of_link) in &accounts {
                self.set_account(AccountKey { slot: heir, ifindex }, of_link.clone())?;
            }
            self.inherited.insert(slot, Inherited { heir, counters, accounts });
        }
        Ok(())
    }

    /// Gives the heir of a slot what the slot has counted since. The heir counts already, so one that counts at this moment may lose it.
    pub(super) fn settle(&mut self, slot: u32) -> Result<(), Error> {
        let Some(Inherited { heir, counters, accounts }) = self.inherited.remove(&slot) else { return Ok(()) };
        let now = self.counters_per_cpu(slot)?;
        if now != counters {
            let mut sums = self.counters_per_cpu(heir)?;
            for ((sum, now), before) in sums.iter_mut().zip(&now).zip(&counters) {
                for index in 0..COUNTERS.len() {
                    let since = now.counts[index].wrapping_sub(before.counts[index]);
                    sum.counts[index] = sum.counts[index].wrapping_add(since);
                }
            }
            self.set_counters(heir, sums)?;
        }
        let is_counted = self.policy(heir)?.flags & policy_flags::ACCOUNT != 0;
        for (ifindex, now) in self.accounts_per_cpu(slot)?.into_iter().filter(|_| is_counted) {
            let none = vec![AccountRecord::default(); now.len()];
            let before = accounts.get(&ifindex).unwrap_or(&none);
            if now == *before {
                continue;
            }
            let mut sums = self.accounts_per_cpu(heir)?.remove(&ifindex).unwrap_or_else(|| none.clone());
            for ((sum, now), before) in sums.iter_mut().zip(&now).zip(before) {
                let add = |sum: &mut u64, now: u64, before: u64| *sum = sum.wrapping_add(now.wrapping_sub(before));
                add(&mut sum.sent_bytes, now.sent_bytes, before.sent_bytes);
                add(&mut sum.sent_packets, now.sent_packets, before.sent_packets);
                add(&mut sum.received_bytes, now.received_bytes, before.received_bytes);
                add(&mut sum.received_packets, now.received_packets, before.received_packets);
            }
            self.set_account(AccountKey { slot: heir, ifindex }, sums)?;
        }
        Ok(())
    }

    fn counters_per_cpu(&self, slot: u32) -> Result<Vec<CounterRecord>, Error> {
        let counters = self.counters.get(&slot, 0);
        counters.map(|counters| counters.to_vec()).map_err(|error| map_error("read the counters", map::COUNTERS, error))
    }

    /// Sets the counters of a slot, for each CPU.
    pub(super) fn set_counters(&mut self, slot: u32, counters: Vec<CounterRecord>) -> Result<(), Error> {
        let action = "set the counters";
        let counters =
            PerCpuValues::try_from(counters).map_err(|source| Error::Map { action, name: map::COUNTERS, source })?;
        self.counters.set(slot, counters, 0).map_err(|error| map_error(action, map::COUNTERS, error))
    }

    fn accounts_per_cpu(&self, slot: u32) -> Result<BTreeMap<u32, Vec<AccountRecord>>, Error> {
        let mut found = BTreeMap::new();
        for entry in &self.account {
            let (key, per_cpu) =
                entry.map_err(|error| map_error("read what policies have sent", map::ACCOUNT, error))?;
            if key.slot == slot {
                found.insert(key.ifindex, per_cpu.to_vec());
            }
        }
        Ok(found)
    }

    fn set_account(&mut self, key: AccountKey, account: Vec<AccountRecord>) -> Result<(), Error> {
        let action = "set what a policy has sent";
        let account =
            PerCpuValues::try_from(account).map_err(|source| Error::Map { action, name: map::ACCOUNT, source })?;
        self.account.insert(key, account, 0).map_err(|error| map_error(action, map::ACCOUNT, error))
    }
}
