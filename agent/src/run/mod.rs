//! Long-running processes, and what container runtimes call.

pub mod api;
pub mod container;
pub mod daemon;
pub mod instance;
pub mod keeper;
