//! Checks the capabilities that a command needs, before it changes anything in the kernel.

use caps::{CapSet, Capability};
use thiserror::Error;

/// A missing privilege.
#[derive(Debug, Error)]
#[error("`steer {command}` needs {}: run it as root, for example with sudo", .missing.join(", "))]
pub struct Unprivileged {
    command: &'static str,
    missing: Vec<&'static str>,
}

/// Fails if the process lacks capabilities to load and attach programs.
pub fn require_privilege(command: &'static str) -> Result<(), Unprivileged> {
    let missing = missing_capabilities();
    if missing.is_empty() { Ok(()) } else { Err(Unprivileged { command, missing }) }
}

/// The capabilities to load and attach programs that this process lacks. As in the kernel, CAP_SYS_ADMIN includes CAP_BPF
/// and CAP_PERFMON.
pub fn missing_capabilities() -> Vec<&'static str> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let admin = has(Capability::CAP_SYS_ADMIN);
    let mut missing = Vec::new();
    if !admin && !has(Capability::CAP_BPF) {
        missing.push("CAP_BPF");
    }
    // Without it the verifier refuses arithmetic on pointers into maps.
    if !admin && !has(Capability::CAP_PERFMON) {
        missing.push("CAP_PERFMON");
    }
    if !has(Capability::CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    missing
}
