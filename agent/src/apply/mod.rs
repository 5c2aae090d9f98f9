//! Where the model meets the host and the kernel, under one lock.
//!
//! **Invariant:** nothing is changed without the lock, and no step leaves a steered cgroup unsteered.

pub mod converge;
pub mod follow;
pub mod manual;
pub mod permit;
pub mod resolve;
pub mod takeover;
