//! Finds fields of kernel structures in the kernel's BTF. aya relocates C programs only, and the `btf-rs` crate has a licence
//! that this project does not accept.
//!
//! **Invariant:** any bytes are read without a panic. A field that is not found is an error.

use std::{fs, io};

use steer_common::{CompatOffsets, Offsets};
use thiserror::Error;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Bytes of a type and of a member of a structure.
const TYPE_BYTES: usize = 12;

/// What the programs need to know of the running kernel.
pub(super) struct Found {
    pub(super) moved: Result<Offsets, Missing>,
    /// Where a 32 bit system call is noted, in tasks.
    pub(super) task: Result<CompatOffsets, Missing>,
    /// As `task`, and in rings of io_uring.
    pub(super) ring: Result<CompatOffsets, Missing>,
}

/// The kernel has no such field or constant, or this architecture is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this kernel has no {0}")]
pub(super) struct Missing(&'static str);

/// The offsets of the running kernel.
pub(super) fn offsets() -> io::Result<Found> {
    let file = fs::read(VMLINUX)?;
    let btf = Btf::parse(&file).ok_or_else(|| io::Error::other(format!("{VMLINUX} is not BTF")))?;
    Ok(Found { moved: moved(&btf), task: task(&btf), ring: ring(&btf) })
}

fn moved(btf: &Btf<'_>) -> Result<Offsets, Missing> {
    let offset = |field| Ok(btf.field(field)? / 8);
    Ok(Offsets {
        task_cgroups: offset("task_struct.cgroups")?,
        task_tgid: offset("task_struct.tgid")?,
        task_comm: offset("task_struct.comm")?,
        css_set_cgroup: offset("css_set.dfl_cgrp")?,
        cgroup_root: offset("cgroup.root")?,
        cgroup_node: offset("cgroup.kn")?,
        node_id: offset("kernfs_node.id")?,
        node_parent: offset("kernfs_node.__parent").or_else(|_| offset("kernfs_node.parent"))?,
    })
}

fn task(btf: &Btf<'_>) -> Result<CompatOffsets, Missing> {
    // TS_COMPAT, TIF_32BIT.
    let (field, task_mask) = if cfg!(target_arch = "x86_64") {
        ("thread_info.status", 1 << 1)
    } else if cfg!(target_arch = "aarch64") {
        ("thread_info.flags", 1 << 22)
    } else {
        return Err(Missing("known note of 32 bit system calls"));
    };
    let task = (btf.field("task_struct.thread_info")? + btf.field(field)?) / 8;
    Ok(CompatOffsets { task, task_mask, ..CompatOffsets::default() })
}

fn ring(btf: &Btf<'_>) -> Result<CompatOffsets, Missing> {
    // A field of one bit; in Linux 7.3 a bit of a field.
    let flag = || Ok(btf.field("io_ring_ctx.int_flags")? + btf.constant("IO_RING_F_COMPAT")?.trailing_zeros());
    let bit = btf.field("io_ring_ctx.compat").or_else(|_| flag())?;
    let request_ring = btf.field("io_kiocb.ctx")? / 8;
    Ok(CompatOffsets { request_ring, ring: bit / 8, ring_mask: 1 << (bit % 8), ..task(btf)? })
}

/// The sections of a BTF file (Documentation/bpf/btf.rst).
struct Btf<'a> {
    /// Each type with what follows it. The id of a type is its position and one.
    types: Vec<&'a [u8]>,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(file: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(file.get(..2)?.try_into().ok()?);
        let body = file.get(word(file, 4)?..)?;
        let section = |at: usize| body.get(word(file, at)?..)?.get(..word(file, at + 4)?);
        (magic == MAGIC).then_some(())?;
        let (mut rest, mut types) = (section(8)?, Vec::new());
        while !rest.is_empty() {
            let (kind, length) = shape(rest)?;
            let (this, behind) = rest.split_at_checked(TYPE_BYTES + details_bytes(kind, length))?;
            types.push(this);
            rest = behind;
        }
        Some(Self { types, strings: section(16)? })
    }

    /// Where a field, as in `structure.field`, begins in its structure, in bits.
    fn field(&self, name: &'static str) -> Result<u32, Missing> {
        let found = name.split_once('.').and_then(|(structure, field)| self.bit(structure, field));
        found.ok_or(Missing(name))
    }

    /// The lower 32 bits of a constant of an enumeration.
    fn constant(&self, name: &'static str) -> Result<u32, Missing> {
        let values = self.types.iter().filter_map(|this| {
            let bytes = match shape(this)?.0 {
                ENUM => 8,
                ENUM64 => 12,
                _ => return None,
            };
            this.get(TYPE_BYTES..)?.chunks_exact(bytes).find(|value| word(value, 0).is_some_and(|at| self.is(at, name)))
        });
        let value = values.into_iter().find_map(|value| u32::try_from(word(value, 4)?).ok());
        value.ok_or(Missing(name))
    }

    /// Where a field of a structure begins, in bits.
    fn bit(&self, structure: &str, field: &str) -> Option<u32> {
        let named = self.types.iter().filter(|this| {
            shape(this).is_some_and(|(kind, _)| kind == STRUCT)
                && word(this, 0).is_some_and(|at| self.is(at, structure))
        });
        named.into_iter().find_map(|this| self.bit_in(this, field, 0))
    }

    /// The same, also of structures without a name in this one.
    fn bit_in(&self, this: &[u8], field: &str, depth: u32) -> Option<u32> {
        const DEEPEST: u32 = 8;
        let (kind, _) = shape(this).filter(|_| depth < DEEPEST)?;
        let members = this.get(TYPE_BYTES..).filter(|_| kind == STRUCT || kind == UNION)?;
        members.chunks_exact(TYPE_BYTES).find_map(|member| {
            // The upper byte is the size of a bit field.
            let begins = u32::try_from(word(member, 8)? & 0xff_ffff).ok()?;
            let name = word(member, 0)?;
            if self.is(name, field) {
                return Some(begins);
            }
            let inner = self.types.get(word(member, 4)?.checked_sub(1)?).filter(|_| self.is(name, ""))?;
            Some(begins + self.bit_in(inner, field, depth + 1)?)
        })
    }

    fn is(&self, at: usize, name: &str) -> bool {
        let string = self.strings.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
        string.is_some_and(|rest| rest.first() == Some(&0))
    }
}

const STRUCT: usize = 4;
const UNION: usize = 5;
const ENUM: usize = 6;
const ENUM64: usize = 19;

/// The kind of a type (`BTF_KIND_*`), and its number of elements.
fn shape(this: &[u8]) -> Option<(usize, usize)> {
    let info = word(this, 4)?;
    Some((info >> 24 & 0x1f, info & 0xffff))
}

/// Bytes that follow a type.
fn details_bytes(kind: usize, length: usize) -> usize {
    match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Data section, 64 bit enum.
        STRUCT | UNION | 15 | ENUM64 => 12 * length,
        // Enum, prototype.
        ENUM | 13 => 8 * length,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(word)).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Btf, Missing, VMLINUX, moved, ring};

    #[test]
    fn this_kernel_has_all_of_them() {
        // The product needs BTF, too.
        let file = fs::read(VMLINUX).expect("BTF of this kernel");
        let btf = Btf::parse(&file).expect("BTF");
        let offsets = moved(&btf).expect("the structures of cgroups");
        assert!(offsets.task_comm > offsets.task_tgid, "{offsets:?}");
        let ring = ring(&btf).expect("the note of 32 bit system calls");
        assert!(ring.request_ring > 0 && ring.ring_mask.is_power_of_two() && ring.task_mask != 0, "{ring:?}");
        assert_eq!(btf.constant("BPF_PROG_TYPE_CGROUP_SOCK"), Ok(9));
        assert_eq!(btf.constant("IO_RING_F_NONE"), Err(Missing("IO_RING_F_NONE")));
        for length in [0, 1, 24, 1000, file.len() / 2] {
            assert!(Btf::parse(&file[..length]).is_none());
        }
    }
}
