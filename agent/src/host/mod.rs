//! This machine: links, network namespaces, cgroups, sockets, files. No BPF.
//!
//! **Invariant:** this layer decides no policy.

pub mod account;
pub mod capability;
pub mod cgroup;
pub mod container;
pub(crate) mod file;
pub mod link;
pub mod meant;
pub(crate) mod mount;
pub mod netns;
pub mod peer;
pub mod pidfd;
pub mod policy_files;
pub mod probe;
pub mod process;
pub mod resolved;
pub mod resolver;
pub mod route;
pub mod seccomp;
pub mod sockets;
pub(crate) mod tun;
pub mod units;
