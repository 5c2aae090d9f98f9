//! The record of the cgroup the running program is attached to.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::{bpf_map_def, bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED},
    helpers::generated::bpf_get_local_storage,
};
use steer_common::AttachmentRecord;

/// A map definition as the loader finds it in section `maps`. The cell puts it into the same writable section as the
/// definitions of `aya_ebpf`, not into a second section of that name.
#[repr(transparent)]
struct Definition(UnsafeCell<bpf_map_def>);

// SAFETY: the loader reads the definition; programs only take its address.
unsafe impl Sync for Definition {}

/// Defined here because the wrapper of `aya_ebpf` has only the key type with one storage per attach type. With a plain
/// `u64` key (Linux 5.9) all programs on a cgroup share one record.
#[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes")]
#[unsafe(link_section = "maps")]
#[unsafe(export_name = "ATTACHMENTS")]
static ATTACHMENTS: Definition = Definition(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED,
    key_size: size_of::<u64>() as u32,
    value_size: size_of::<AttachmentRecord>() as u32,
    max_entries: 0,
    map_flags: 0,
    id: 0,
    pinning: 0,
}));

/// The record of the attachment that this program runs for. The agent may change it at any time, in whole words.
#[inline(always)]
pub(crate) fn current() -> AttachmentRecord {
    // SAFETY: the flags are reserved and zero; the helper cannot fail, the storage is allocated before the attachment.
    let record = unsafe { bpf_get_local_storage((&raw const ATTACHMENTS).cast_mut().cast(), 0) };
    // SAFETY: the kernel allocated `value_size` bytes, zeroed, aligned to 8.
    unsafe { record.cast::<AttachmentRecord>().read_volatile() }
}
