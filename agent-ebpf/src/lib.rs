//! Nothing: this library exists so that `agent` can name this package as a build dependency, which makes Cargo
//! rebuild the agent when the kernel side changes. The objects are `main.rs` and `netns_cookie.rs`, built for `bpfel-unknown-none`.
#![no_std]
