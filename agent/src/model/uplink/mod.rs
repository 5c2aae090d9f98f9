//! Uplink groups: several links for one policy.
//!
//! **Invariant:** pure, as all of the model.

pub mod probe;
