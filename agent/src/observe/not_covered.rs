//! What strict policies do not cover on this kernel.

use crate::kernel::{self, Pins};

/// What only an LSM program can refuse, or a filter of the command.
const NOT_COVERED: &str = "sockets past the IP stack (AF_PACKET, AF_XDP and others), and socket options set by 32 bit system calls, except in `steer exec`";

/// Traffic that strict enforcement does not stop, and why.
pub(crate) fn traffic(pins: &Pins) -> Option<String> {
    kernel::unguarded(pins).map(|why| format!("{NOT_COVERED}: {why}"))
}

/// What happens without a report.
pub(crate) fn reports(pins: &Pins) -> Option<String> {
    (!kernel::is_watched(pins)).then(|| {
        "processes that are moved out of a policy's cgroups are not reported: the kernel accepts no tracing program"
            .to_owned()
    })
}
