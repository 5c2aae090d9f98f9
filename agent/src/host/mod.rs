//! This machine: links, network namespaces, cgroups, sockets, files. Nothing of BPF.
//!
//! **Invariant:** no policy is decided here.

pub mod capability;
pub mod cgroup;
pub mod link;
pub(crate) mod mount;
pub mod netns;
pub mod policy_files;
pub mod resolver;
pub mod sockets;
