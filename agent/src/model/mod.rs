//! What is configured and what it means.
//!
//! **Invariant:** pure. No I/O, and no state of this host.

pub mod cgroup_path;
pub mod config;
pub mod drop_in;
pub mod error_text;
pub mod fingerprint;
pub mod lines;
pub mod mark;
pub mod plan;
pub mod policy;
pub mod prefix;
pub mod quote;
pub mod similar;
pub mod spec;
pub mod unit_name;
pub mod uplink;
