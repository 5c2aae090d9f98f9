//! What may pass on links other than the uplink: directly connected networks and exceptions. And what none may.
//!
//! **Invariant:** the programs ask only after the uplink's index did not match, so nobody pays for it who does not use it.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{HashMap, LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use steer_common::{
    AddressWords, EXCEPTIONS as WRITTEN, ExceptionKey, ExceptionRecord, PASSES as ENTRIES, PassKey,
    reach::{ADDRESS_BITS, OWN, PASS_KEY_BITS, REFUSED, UNSPECIFIED, namespace},
};

#[btf_map]
static PASSES: LpmTrie<PassKey, u32, { ENTRIES as usize }> = LpmTrie::new();

/// For the agent only.
#[btf_map]
static EXCEPTIONS: HashMap<ExceptionKey, ExceptionRecord, { WRITTEN as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Whether packets to or from this address pass on this link. The longest prefix for the link decides, and if there is none, the
/// longest for any link.
#[inline(always)]
pub(crate) fn passes(slot: u32, ifindex: u32, address: &AddressWords) -> bool {
    let on = |ifindex: u32| entry(slot, ifindex, address);
    // A value in any case keeps the compiler from reading a register that the verifier does not let it read.
    let mut passes = 0;
    if let Some(on_link) = on(ifindex) {
        passes = *on_link;
    } else if let Some(on_any) = on(0) {
        passes = *on_any;
    }
    passes != 0
}

/// Whether an exception refuses this destination.
#[inline(always)]
pub(crate) fn refuses(slot: u32, address: &AddressWords) -> bool {
    let mut refuses = 0;
    if let Some(longest) = entry(slot, REFUSED, address) {
        refuses = *longest;
    }
    refuses != 0
}

/// The index of the link that has this address; 0: no link is known to have it.
#[inline(always)]
pub(crate) fn link_of(netns_cookie: u64, address: &AddressWords) -> u32 {
    let mut link = 0;
    if let Some(own) = entry(OWN, namespace(netns_cookie), address) {
        link = *own;
    }
    link
}

/// Whether an address is certainly of another host: the addresses of this one are known for the namespace, and it is none of them.
#[inline(always)]
pub(crate) fn is_foreign(netns_cookie: u64, address: &AddressWords) -> bool {
    let namespace = namespace(netns_cookie);
    entry(OWN, namespace, address).is_none() && entry(OWN, namespace, &UNSPECIFIED).is_some()
}

/// The entry of the longest prefix.
#[inline(always)]
fn entry(slot: u32, ifindex: u32, address: &AddressWords) -> Option<&'static u32> {
    let key = PassKey::new(slot, ifindex, *address);
    PASSES.get(&Key::new(PASS_KEY_BITS + ADDRESS_BITS, key))
}
