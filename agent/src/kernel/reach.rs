//! The exceptions of policies as written, and what their programs let pass on links other than the uplink.
//!
//! **Invariant:** while entries change, nothing passes that passes neither before nor after.

use std::{collections::BTreeMap, net::IpAddr};

use aya::maps::lpm_trie::Key;
use steer_common::{
    ExceptionKey, ExceptionRecord, PassKey,
    address::{address_words, ip_address},
    map, policy_flags,
    reach::{ADDRESS_BITS, OWN, PASS_KEY_BITS, UNSPECIFIED, namespace},
};

use super::{Datapath, Error, Lock, map_error, text};
use crate::model::{prefix::Prefix, spec::Exceptions};

/// What passes on one link, or on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pass {
    /// Index of the link; 0 is any.
    pub ifindex: u32,
    /// The addresses at the other end.
    pub prefix: Prefix,
}

/// Whether each of these passes; false where a shorter prefix would let it pass.
pub type Passes = BTreeMap<Pass, bool>;

/// Whether packets to or from this address pass on this link, as the programs decide.
pub fn passes(entries: &Passes, ifindex: u32, address: IpAddr) -> bool {
    let longest = |ifindex: u32| {
        let matching = entries.iter().filter(|(pass, _)| pass.ifindex == ifindex && pass.prefix.contains(address));
        matching.max_by_key(|(pass, _)| pass.prefix.len()).map(|(_, passes)| *passes)
    };
    longest(ifindex).or_else(|| longest(0)).unwrap_or(false)
}

/// Bits by which a mapped IPv4 prefix is longer.
const MAPPED_BITS: u32 = 96;

/// A prefix as the programs see it: its address, and its length in bits.
fn words(prefix: &Prefix) -> ([u32; 4], u32) {
    let len = u32::from(prefix.len());
    match prefix.address() {
        IpAddr::V4(address) => (address_words(address.to_ipv6_mapped()), len + MAPPED_BITS),
        IpAddr::V6(address) => (address_words(address), len),
    }
}

/// The opposite of [`words`]. `None`: no agent wrote this.
fn prefix(address: [u32; 4], bits: u32) -> Option<Prefix> {
    let address = ip_address(address);
    let bits = if address.is_ipv4() { bits.checked_sub(MAPPED_BITS)? } else { bits };
    Prefix::of(address, u8::try_from(bits).ok()?)
}

impl Datapath {
    /// The exceptions of all policies, by slot.
    pub(super) fn exceptions(&self) -> Result<BTreeMap<u32, Exceptions>, Error> {
        let mut found: BTreeMap<u32, Exceptions> = BTreeMap::new();
        for entry in &self.exceptions {
            let (key, record) = entry.map_err(|error| map_error("read the exceptions", map::EXCEPTIONS, error))?;
            let Some(to) = prefix(key.address, key.bits) else { continue };
            if let Err(error) = found.entry(key.slot).or_default().add(&format!("{to}={}", text(&record))) {
                log::warn!("policy slot {}: an exception in the kernel cannot be read: {error}", key.slot);
            }
        }
        Ok(found)
    }

    /// Writes the exceptions of a slot that has none.
    pub(super) fn put_exceptions(&mut self, slot: u32, exceptions: &Exceptions) -> Result<(), Error> {
        for exception in exceptions.iter() {
            let (address, bits) = words(&exception.to);
            let by = exception.by.to_string();
            let mut record: ExceptionRecord = [0; _];
            record[..by.len()].copy_from_slice(by.as_bytes());
            self.exceptions
                .insert(ExceptionKey { slot, bits, address }, record, 0)
                .map_err(|error| map_error("write an exception", map::EXCEPTIONS, error))?;
        }
        Ok(())
    }

    /// Removes what a policy with these flags has left in both maps.
    pub(super) fn clear_reach(&mut self, slot: u32, flags: u32) -> Result<(), Error> {
        if flags & policy_flags::PASSES == 0 {
            return Ok(());
        }
        let read = |error| map_error("read the exceptions", map::EXCEPTIONS, error);
        let keys = self.exceptions.keys().collect::<Result<Vec<_>, _>>().map_err(read)?;
        for key in keys.into_iter().filter(|key| key.slot == slot) {
            self.exceptions.remove(&key).map_err(|error| map_error("remove an exception", map::EXCEPTIONS, error))?;
        }
        let present = self.passes()?.remove(&slot).unwrap_or_default();
        self.write_passes(slot, &present, &Passes::new())
    }

    /// What passes on other links, by slot.
    pub fn passes(&self) -> Result<BTreeMap<u32, Passes>, Error> {
        let mut found: BTreeMap<u32, Passes> = BTreeMap::new();
        for entry in &self.passes {
            let (key, passes) = entry.map_err(|error| map_error("read what passes", map::PASSES, error))?;
            let (bits, PassKey { ifindex, address, .. }) = (key.prefix_len(), key.data());
            let slot = key.data().slot();
            if slot == OWN {
                continue;
            }
            if let Some(prefix) = bits.checked_sub(PASS_KEY_BITS).and_then(|bits| prefix(address, bits)) {
                found.entry(slot).or_default().insert(Pass { ifindex, prefix }, passes != 0);
            }
        }
        Ok(found)
    }

    /// Changes what passes on other links for a policy.
    pub fn set_passes(&mut self, _lock: &Lock, slot: u32, present: &Passes, wanted: &Passes) -> Result<(), Error> {
        self.write_passes(slot, present, wanted)
    }

    /// Writes which link, or loopback, has which addresses in a network namespace.
    pub fn set_own(&mut self, _lock: &Lock, netns_cookie: u64, own: &BTreeMap<Prefix, u32>) -> Result<(), Error> {
        let ifindex = namespace(netns_cookie);
        let of = |(address, bits)| (bits, PassKey::new(OWN, ifindex, address));
        let mut wanted: BTreeMap<(u32, PassKey), u32> =
            own.iter().map(|(prefix, link)| (of(words(prefix)), *link)).collect();
        wanted.insert(of((UNSPECIFIED, ADDRESS_BITS)), 0);
        let key = |(bits, key): &(u32, PassKey)| Key::new(PASS_KEY_BITS + bits, *key);
        let mut present = BTreeMap::new();
        for entry in &self.passes {
            let (key, link) = entry.map_err(|error| map_error("read the addresses of links", map::PASSES, error))?;
            let (bits, key) = (key.prefix_len().saturating_sub(PASS_KEY_BITS), key.data());
            if (key.slot(), key.ifindex) == (OWN, ifindex) {
                present.insert((bits, key), link);
            }
        }
        let written = |error| map_error("write the addresses of links", map::PASSES, error);
        for gone in present.keys().filter(|gone| !wanted.contains_key(gone)) {
            self.passes.remove(&key(gone)).map_err(written)?;
        }
        for (address, link) in wanted.iter().filter(|(address, link)| present.get(address) != Some(link)) {
            self.passes.insert(&key(address), link, 0).map_err(written)?;
        }
        Ok(())
    }

    /// Whether the programs know this address as one of this network namespace.
    pub fn is_own(&self, netns_cookie: u64, address: IpAddr) -> Result<bool, Error> {
        let (address, bits) = words(&Prefix::host(address));
        let key = PassKey::new(OWN, namespace(netns_cookie), address);
        match self.passes.get(&Key::new(PASS_KEY_BITS + bits, key), 0) {
            Ok(link) => Ok(link != 0),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(map_error("read the addresses of links", map::PASSES, error)),
        }
    }

    fn write_passes(&mut self, slot: u32, present: &Passes, wanted: &Passes) -> Result<(), Error> {
        let key = |pass: &Pass| {
            let (address, bits) = words(&pass.prefix);
            debug_assert!(bits <= ADDRESS_BITS);
            Key::new(PASS_KEY_BITS + bits, PassKey::new(slot, pass.ifindex, address))
        };
        let differs = |(pass, passes): &(&Pass, &bool)| present.get(pass) != Some(passes);
        let stale =
            |passes: bool| present.iter().filter(move |(pass, was)| **was == passes && !wanted.contains_key(pass));
        let write = |passes: bool| wanted.iter().filter(differs).filter(move |(_, is)| **is == passes);
        let written = |error| map_error("write what passes", map::PASSES, error);
        for (pass, _) in write(false) {
            self.passes.insert(&key(pass), 0, 0).map_err(written)?;
        }
        for (pass, _) in stale(true) {
            self.passes.remove(&key(pass)).map_err(written)?;
        }
        for (pass, _) in write(true) {
            self.passes.insert(&key(pass), 1, 0).map_err(written)?;
        }
        for (pass, _) in stale(false) {
            self.passes.remove(&key(pass)).map_err(written)?;
        }
        Ok(())
    }
}
