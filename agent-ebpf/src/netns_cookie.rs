//! A separate object for kernels without `SO_NETNS_COOKIE` (before Linux 5.14). It writes the network namespace of a
//! socket to a map for the agent.
//!
//! **Invariant:** the program only reads. It never changes or refuses a socket.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the entry point that the attribute macro makes"
)]

mod runtime;

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::Array,
    helpers::generated::bpf_get_netns_cookie,
    macros::{btf_map, cgroup_sock},
    programs::SockContext,
};

#[btf_map]
static NETNS_COOKIE: Array<u64, 1> = Array::new();

/// `socket()` continues.
const ALLOW: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn netns_cookie(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the program's own context (Linux 5.8 for sock_create).
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if let Some(element) = NETNS_COOKIE.get_ptr_mut(0) {
        // SAFETY: the element exists while the map does. The agent reads it after the one socket is made.
        unsafe { element.write(cookie) };
    }
    ALLOW
}
