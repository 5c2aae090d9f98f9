//! Containers, by the runtimes that people have.

pub(crate) mod nri;
