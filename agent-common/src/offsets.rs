//! Where the fields of kernel structures are that a program reads. The agent finds them in the kernel's own BTF.

/// Offsets in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `css_set.dfl_cgrp`: the cgroup in the cgroup2 hierarchy.
    pub css_set_cgroup: u32,
    /// `cgroup.root`: the hierarchy.
    pub cgroup_root: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `kernfs_node.id`: the id of the cgroup.
    pub node_id: u32,
    /// `kernfs_node.parent`, since Linux 6.15 `__parent`.
    pub node_parent: u32,
}

/// Where the kernel notes that a call is a 32 bit one: offsets in bytes, and bits there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CompatOffsets {
    /// A word in `task_struct.thread_info`: `status` on x86-64, `flags` on arm64.
    pub task: u32,
    /// `TS_COMPAT` or `TIF_32BIT` in it.
    pub task_mask: u32,
    /// `io_kiocb.ctx`
    pub request_ring: u32,
    /// The byte of `io_ring_ctx.compat`.
    pub ring: u32,
    /// The bit in that byte.
    pub ring_mask: u32,
}

// SAFETY: as below.
#[cfg(feature = "user")]
unsafe impl aya::Pod for CompatOffsets {}
// SAFETY: `repr(C)`, `Copy`, only integers of one size, so no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Offsets {}
