//! What a command needs before it touches the kernel, refused in words a user can act on.

use caps::{CapSet, Capability};
use thiserror::Error;

/// A missing privilege.
#[derive(Debug, Error)]
#[error("`steer {command}` needs {}: run it as root, for example with sudo", .missing.join(", "))]
pub struct Unprivileged {
    command: &'static str,
    missing: Vec<&'static str>,
}

/// Checks for the capabilities to load and attach programs.
pub fn require_privilege(command: &'static str) -> Result<(), Unprivileged> {
    let missing = missing_capabilities();
    if missing.is_empty() { Ok(()) } else { Err(Unprivileged { command, missing }) }
}

/// Those of the capabilities to load and attach programs that this process lacks. CAP_SYS_ADMIN stands in for CAP_BPF and
/// CAP_PERFMON, as in the kernel.
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
