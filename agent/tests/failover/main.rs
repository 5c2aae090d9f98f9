//! Failover of sockets from one line to another in the real kernel, in namespaces and cgroups of their own, judged by captures.
//! Needs root: without it, these tests do nothing.

mod bed;
mod clients;
mod edges;
mod kinds;
