//! `steer top`: the sockets and the traffic of steered cgroups by link, for each interval.
//!
//! It counts with its own programs (`kernel::Meter`), which are attached only while it runs, so there is no cost otherwise. The
//! sockets of a policy and the blocked attempts come from the permanent counters.

mod frame;
mod sample;
mod screen;

pub use frame::{CgroupFrame, Frame, LinkFrame, MemberFrame, PolicyFrame};
pub use sample::{Sample, Watcher};
pub use screen::{Screen, Sort, text};
