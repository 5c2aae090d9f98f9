//! What the cgroups of policies have sent and received, by link.
//!
//! **Invariant:** a slot that is filled anew begins with no counts.

use std::collections::BTreeMap;

use steer_common::{
    account::{AccountKey, AccountRecord},
    map,
};

use super::{Datapath, Error, map_error};

impl Datapath {
    /// The counts of all policies since their slots were filled, summed over all CPUs: by slot, and by index of the link.
    pub fn accounts(&self) -> Result<BTreeMap<u32, BTreeMap<u32, AccountRecord>>, Error> {
        let mut found: BTreeMap<u32, BTreeMap<u32, AccountRecord>> = BTreeMap::new();
        for entry in &self.account {
            let (AccountKey { slot, ifindex }, per_cpu) =
                entry.map_err(|error| map_error("read what policies have sent", map::ACCOUNT, error))?;
            let sum = found.entry(slot).or_default().entry(ifindex).or_default();
            for record in per_cpu.iter() {
                sum.sent_bytes = sum.sent_bytes.wrapping_add(record.sent_bytes);
                sum.sent_packets = sum.sent_packets.wrapping_add(record.sent_packets);
                sum.received_bytes = sum.received_bytes.wrapping_add(record.received_bytes);
                sum.received_packets = sum.received_packets.wrapping_add(record.received_packets);
            }
        }
        Ok(found)
    }

    /// Removes the counts of slots.
    pub(super) fn clear_accounts(&mut self, is_cleared: impl Fn(u32) -> bool) -> Result<(), Error> {
        let failed = |error| map_error("remove what a policy has sent", map::ACCOUNT, error);
        let keys: Vec<AccountKey> = self.account.keys().collect::<Result<_, _>>().map_err(failed)?;
        let mut cleared = keys.iter().filter(|key| is_cleared(key.slot));
        cleared.try_for_each(|key| self.account.remove(key)).map_err(failed)
    }
}
