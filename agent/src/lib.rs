//! steer: every socket of a cgroup leaves by its uplink, or not at all.
//!
//! Seven layers. A layer imports only from the layers below it in this list; the test `layers` reads the `use` lines and fails
//! otherwise. ARCHITECTURE.md gives the reasons.
//!
//! - [`cli`]: arguments and printing.
//! - [`run`]: processes that last, and container runtimes.
//! - [`observe`]: what is in force, read only.
//! - [`apply`]: where the model meets the host and the kernel, under one lock.
//! - [`kernel`]: programs, maps, links and pins. The only layer with aya and bpf(2).
//! - [`host`]: this machine, without BPF.
//! - [`model`]: configuration and policy, pure.

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic where the output is full; see cli::output")]

pub mod apply;
pub mod cli;
pub mod host;
pub mod kernel;
pub mod model;
pub mod observe;
pub mod run;
