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

// SAFETY: `repr(C)`, `Copy`, only integers of one size, so no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Offsets {}
