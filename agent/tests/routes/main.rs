//! The rules and routes of the route method in the real kernel, in namespaces of their own. Needs root: without it, these
//! tests do nothing.

mod bed;
mod bound;
mod contents;
mod marked;
mod steps;
mod watch;
