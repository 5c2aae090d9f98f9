//! Probes by a member of a group, in namespaces of their own. Needs root: without it, these tests do nothing.

mod bed;
mod failures;
mod members;
mod portals;
mod rounds;
mod servers;
