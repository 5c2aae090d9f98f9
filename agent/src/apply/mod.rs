//! Applies the model to the host and the kernel, under one lock.
//!
//! **Invariant:** every change needs the lock, and no step leaves a steered cgroup unsteered.

pub mod blind_spots;
pub mod converge;
pub mod failover;
pub mod follow;
pub mod manual;
pub mod permit;
pub mod plan;
pub mod released;
pub mod resolve;
pub mod resolvers;
pub mod routes;
pub mod takeover;
pub mod uplinks;
