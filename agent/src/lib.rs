//! steer: every socket of a cgroup leaves by its uplink, or not at all.
//!
//! Data flows one way through these rooms, and none imports a later one:
//! `config` -> `policy` -> `interface` + `cgroup` -> `plan` -> `datapath` == kernel == -> `stats` and `events` -> `cli`.
//! `sockets` carries over to existing sockets what the datapath does with new ones.
//! `doctor` and `explain` stand outside and look into all of them. `daemon` and `keeper` stand outside and re-enter the pipe when something changes. ARCHITECTURE.md tells why.

pub mod api;
pub mod cgroup;
pub mod cgroup_path;
pub mod cli;
pub mod config;
pub mod container;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod doctor;
pub mod drop_in;
pub mod events;
pub mod explain;
pub mod interface;
pub mod keeper;
pub mod log_lines;
pub mod metrics;
pub mod nri;
pub mod oci;
pub mod plan;
pub mod policy;
pub mod preflight;
mod private_mount;
pub mod resolver;
pub mod sockets;
pub mod stats;
pub mod store;
pub mod top;
