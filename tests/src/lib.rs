//! Shared code of the integration tests: a bed with its own lab, cgroups and pins, the daemon, and the two main checks:
//! traffic leaves by its uplink only, or does not leave.
//!
//! **Invariant:** every test owns everything that it uses, under names that no other test has, so all tests can run at
//! once. Everything is removed when the test ends, also when it fails.

mod api;
mod bed;
pub mod beside;
mod cgroup;
mod check;
pub mod container;
pub mod containerd;
mod daemon;
mod debian;
mod doctor;
mod escape;
mod fault;
mod foreign;
mod held;
mod linux;
mod machine;
mod means;
mod nri;
mod pinned_map;
mod private_file;
mod prober;
mod resolved;
mod strayed;
mod vrf;
mod wireguard;

pub use api::Answer;
pub use bed::{Bed, NOBODY, Output};
pub use bed::{binary, copy_program, output};
pub use cgroup::Cgroup;
pub use check::{Load, Spy, USERS, User, check_outcomes, check_uninterrupted};
pub use daemon::{Daemon, read_all};
pub use debian::Debian;
pub use doctor::{Examination, Finding};
pub use escape::{Level, Scene, Seen, Try};
pub use fault::{CHANGES, Fault, count, count_of_one_thread, strace, stride};
pub use foreign::{exclusive_program, overridable_filter, program_beside};
pub use held::{Held, Served};
pub use linux::linux_is_at_least;
pub use machine::Machine;
pub use means::{Confined, MEANS, Means};
pub use pinned_map::{PinnedMap, RingPosition};
pub use private_file::{replace_file, replace_files};
pub use prober::Prober;
pub use resolved::{Bus, RealResolved, Resolved};
pub use strayed::Strayed;
pub use vrf::VRF;
pub use wireguard::{TUNNEL, Tunnel};

use std::time::Duration;

/// Longer than any wait of a test takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Why a test cannot run on this machine. A test that returns it as its error counts as skipped.
#[derive(Debug)]
pub struct NotHere(pub String);

impl std::fmt::Display for NotHere {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// What a test returns.
pub type Outcome = anyhow::Result<()>;
