//! Empty. With this library, `agent` can name this package as a build dependency, so Cargo rebuilds the agent when the
//! kernel side changes. The objects are `main.rs`, `netns_cookie.rs` and `meter.rs`, built for `bpfel-unknown-none`.
#![no_std]
