//! What `steer top` shows: what steered cgroups make and send, and by which link, from one look to the next.
//!
//! It counts with programs of its own (`kernel::Meter`), which are there only as long as it looks, so nobody pays for what nobody
//! reads; sockets of a policy and what was stopped come from the counters that are always there.

mod frame;
mod sample;
mod screen;

pub use frame::{CgroupFrame, Frame, LinkFrame, PolicyFrame};
pub use sample::{Sample, Watcher};
pub use screen::{Screen, Sort, text};
