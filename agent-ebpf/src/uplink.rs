//! The line of a socket: the policy's uplink, or a member of its group of uplinks.
//!
//! **Invariant:** a group without a member for a socket is closed. A socket that is on a member which others still get stays there.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_get_prandom_u32, macros::btf_map};
use steer_common::{
    AddressWords, AttachmentRecord, Line, PolicyRecord, UPLINK_SLOTS, UplinkRecord,
    event::KERNEL_NAME_BYTES,
    policy_flags,
    record::INTERFACE_BYTES,
    uplink::{Family, MEMBERS, balance, bucket, position},
};

#[btf_map]
static UPLINKS: Array<UplinkRecord, { UPLINK_SLOTS as usize }> = Array::new();

/// The group of a policy; `None`: it has one uplink. An empty slot has no members: closed.
#[inline(always)]
pub(crate) fn group(policy: Option<&PolicyRecord>) -> Option<&'static UplinkRecord> {
    match policy {
        Some(policy) if policy.uplink != 0 => UPLINKS.get(policy.uplink),
        _ => None,
    }
}

/// The line of a new socket.
#[inline(always)]
pub(crate) fn of_new(policy: Option<&PolicyRecord>, attachment: &AttachmentRecord, family: Family) -> Line {
    let Some(policy) = policy else { return Line::CLOSED };
    let Some(group) = group(Some(policy)) else { return Line::of(policy) };
    group.line_of_bucket(policy, family, own_bucket(group, attachment))
}

/// What decides about the line of a socket that exists.
pub(crate) struct Held {
    /// What it is bound to.
    pub(crate) bound: i32,
    /// Its mark.
    pub(crate) marked: u32,
    pub(crate) family: Family,
}

impl Held {
    #[inline(always)]
    fn line(&self) -> Line {
        Line { ifindex: self.bound, mark: self.marked }
    }
}

/// The line of a socket that exists, before a call. `to`: the destination that decides, if it may.
#[inline(always)]
pub(crate) fn of_held(
    policy: Option<&PolicyRecord>,
    attachment: &AttachmentRecord,
    held: &Held,
    to: Option<&AddressWords>,
) -> Line {
    of_held_or_kept(policy, attachment, held, to, false).0
}

/// The same, with the member that it is; [`MEMBERS`]: none. `keeps`: a socket that is on a member stays there in any case.
#[inline(always)]
pub(crate) fn of_held_or_kept(
    policy: Option<&PolicyRecord>,
    attachment: &AttachmentRecord,
    held: &Held,
    to: Option<&AddressWords>,
    keeps: bool,
) -> (Line, usize) {
    let Some(policy) = policy else { return (Line::CLOSED, MEMBERS) };
    let Some(group) = group(Some(policy)) else { return (Line::of(policy), MEMBERS) };
    let member = member(policy, group, held.line());
    let by_destination = match to {
        Some(to) if group.balance == balance::DESTINATION => Some(to),
        _ => None,
    };
    // A bound socket stays: without a capability, its binding cannot be changed.
    let may_stay = by_destination.is_none() || policy.flags & policy_flags::ROUTE == 0;
    if keeps && member < MEMBERS || may_stay && group.is_live(held.family, member) {
        return (group.line(policy, member), member);
    }
    let bucket = match by_destination {
        Some([a, b, c, d]) => bucket(u64::from(a ^ c) << 32 | u64::from(b ^ d)),
        None => own_bucket(group, attachment),
    };
    let member = group.picked(held.family, bucket);
    (group.line(policy, member), member)
}

/// The member that a line is; [`MEMBERS`] if it is none.
#[inline(always)]
pub(crate) fn member_of(policy: &PolicyRecord, line: Line) -> usize {
    group(Some(policy)).map_or(MEMBERS, |group| member(policy, group, line))
}

#[inline(always)]
fn member(policy: &PolicyRecord, group: &UplinkRecord, line: Line) -> usize {
    if policy.flags & policy_flags::ROUTE == 0 {
        group.member_of(line.ifindex)
    } else {
        policy.member_of_mark(line.mark)
    }
}

/// The index of the uplink that a socket is on, also if others do not get it any more; not positive if it is on none.
#[inline(always)]
pub(crate) fn current(policy: &PolicyRecord, attachment: &AttachmentRecord, held: &Held) -> i32 {
    let Some(group) = group(Some(policy)) else { return policy.ifindex };
    let member = member(policy, group, held.line());
    if member < MEMBERS {
        return group.line(policy, member).ifindex;
    }
    group.line(policy, group.picked(held.family, own_bucket(group, attachment))).ifindex
}

/// The name of the uplink with this index, as for `SO_BINDTODEVICE`.
#[inline(always)]
pub(crate) fn name(policy: &PolicyRecord, ifindex: i32) -> *const u8 {
    let Some(group) = group(Some(policy)) else { return (&raw const policy.interface).cast() };
    let member = group.member_of(ifindex);
    let name = (&raw const group.member[position(member)].interface).cast();
    if member < MEMBERS { name } else { (&raw const policy.interface).cast() }
}

/// The bucket where no destination decides.
#[inline(always)]
fn own_bucket(group: &UplinkRecord, attachment: &AttachmentRecord) -> usize {
    if group.balance == balance::SOCKET {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() as usize }
    } else {
        bucket(attachment.cgroup_id)
    }
}

/// Whether it is the name of the uplink, or of a member of the group.
#[inline(always)]
pub(crate) fn is_named(policy: &PolicyRecord, name: &Name) -> bool {
    if policy.uplink == 0 {
        return begins_with(&policy.interface, name);
    }
    let Some(group) = group(Some(policy)) else { return false };
    for member in &group.member {
        if begins_with(&member.interface, name) {
            return true;
        }
    }
    false
}

/// The name of an interface, padded with NUL, of which there is at least one.
#[repr(C, align(4))]
pub(crate) struct Name(pub(crate) [u8; KERNEL_NAME_BYTES]);

/// Whether a record, which holds a name padded with NUL, has this name.
///
/// It compares words, and has one branch: the verifier follows every way through all members.
#[inline(always)]
fn begins_with(interface: &[u8; INTERFACE_BYTES], name: &Name) -> bool {
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "both begin at a multiple of four: the records have words behind the name"
    )]
    let words = |bytes: *const u8| {
        let words = bytes.cast::<[u32; KERNEL_NAME_BYTES / 4]>();
        // SAFETY: both have so many bytes, and are aligned.
        unsafe { words.read() }
    };
    let (mine, other) = (words(interface.as_ptr()), words(name.0.as_ptr()));
    let differs = mine[0] ^ other[0] | mine[1] ^ other[1] | mine[2] ^ other[2] | mine[3] ^ other[3];
    core::hint::black_box(differs) == 0
}
