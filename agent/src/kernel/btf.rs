//! Finds fields of kernel structures in the kernel's BTF. aya relocates C programs only, and the `btf-rs` crate has a licence
//! that this project does not accept.
//!
//! **Invariant:** any bytes are read without a panic. A field that is not found is an error.

use std::{fs, io};

use steer_common::Offsets;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Bytes of a type and of a member of a structure.
const TYPE_BYTES: usize = 12;

/// The offsets that the program `moved` needs, in the running kernel.
pub(super) fn offsets() -> io::Result<Offsets> {
    find(&fs::read(VMLINUX)?).ok_or_else(|| io::Error::other(format!("{VMLINUX} does not have the structures of cgroups")))
}

fn find(btf: &[u8]) -> Option<Offsets> {
    let btf = Btf::parse(btf)?;
    let [task_cgroups, task_tgid, task_comm] = btf.offsets("task_struct", [&["cgroups"], &["tgid"], &["comm"]])?;
    let [css_set_cgroup] = btf.offsets("css_set", [&["dfl_cgrp"]])?;
    let [cgroup_root, cgroup_node] = btf.offsets("cgroup", [&["root"], &["kn"]])?;
    let [node_id, node_parent] = btf.offsets("kernfs_node", [&["id"], &["__parent", "parent"]])?;
    Some(Offsets {
        task_cgroups,
        task_tgid,
        task_comm,
        css_set_cgroup,
        cgroup_root,
        cgroup_node,
        node_id,
        node_parent,
    })
}

/// The sections of a BTF file (Documentation/bpf/btf.rst).
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(file: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(file.get(..2)?.try_into().ok()?);
        let body = file.get(word(file, 4)?..)?;
        let section = |at: usize| body.get(word(file, at)?..)?.get(..word(file, at + 4)?);
        (magic == MAGIC).then_some(())?;
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    /// The offsets of fields of the structure `name` that has all of them. Each field has one of several names.
    fn offsets<const N: usize>(&self, name: &str, fields: [&[&str]; N]) -> Option<[u32; N]> {
        const STRUCT: usize = 4;
        let mut rest = self.types;
        while let (Some(name_at), Some(info)) = (word(rest, 0), word(rest, 4)) {
            let (kind, length) = (info >> 24 & 0x1f, info & 0xffff);
            let details = rest.get(TYPE_BYTES..TYPE_BYTES + details_bytes(kind, length))?;
            if kind == STRUCT && self.is(name_at, name) {
                let offset = |names: &&[&str]| {
                    let members = details.chunks_exact(TYPE_BYTES);
                    let mut named = members.filter(|member| {
                        names.iter().any(|name| word(member, 0).is_some_and(|at| self.is(at, name)))
                    });
                    // In bits; the upper byte is the size of a bit field.
                    u32::try_from((word(named.next()?, 8)? & 0xff_ffff) / 8).ok()
                };
                if let Some(found) = fields.iter().map(offset).collect::<Option<Vec<_>>>() {
                    return found.try_into().ok();
                }
            }
            rest = rest.get(TYPE_BYTES + details.len()..)?;
        }
        None
    }

    fn is(&self, at: usize, name: &str) -> bool {
        let string = self.strings.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
        string.is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes that follow a type, by its kind (`BTF_KIND_*`) and its number of elements.
fn details_bytes(kind: usize, length: usize) -> usize {
    match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, 64 bit enum.
        4 | 5 | 15 | 19 => 12 * length,
        // Enum, prototype.
        6 | 13 => 8 * length,
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

    use super::{Offsets, VMLINUX, find};

    #[test]
    fn this_kernel_has_all_of_them() {
        let Ok(btf) = fs::read(VMLINUX) else { return eprintln!("skipped: {VMLINUX} cannot be read") };
        let offsets = find(&btf).expect("the structures of cgroups");
        assert!(offsets.task_comm > offsets.task_tgid && offsets != Offsets::default(), "{offsets:?}");
        for length in [0, 1, 24, 1000, btf.len() / 2] {
            assert_eq!(find(&btf[..length]), None);
        }
    }
}
