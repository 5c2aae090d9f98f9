//! Long-running processes, and what container runtimes call.

pub mod admission;
pub mod api;
pub(crate) mod command;
pub mod container;
pub mod daemon;
pub mod instance;
pub mod keeper;
pub mod plan;
