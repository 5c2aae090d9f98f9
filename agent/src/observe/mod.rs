//! Reports what is in force, and what is wrong with it.
//!
//! **Invariant:** this layer only reads, except for the fixes of `steer doctor --fix`.

pub mod doctor;
pub mod doubts;
pub mod elsewhere;
pub mod events;
pub mod explain;
mod hints;
pub(crate) mod link_resolver;
pub(crate) mod loose;
pub mod metrics;
pub(crate) mod not_covered;
mod schema;
pub mod state;
pub mod status;
pub mod top;
pub mod unsteered;
pub mod uplinks;
mod verdict;
