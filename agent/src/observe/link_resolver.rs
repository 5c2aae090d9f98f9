//! What is said of `dns = "link"` where the link has no resolver.

use super::status::PolicyStatus;
use crate::{host::resolved, model::quote::quoted};

/// The warning about a policy.
pub(crate) fn warning(policy: &PolicyStatus) -> Option<String> {
    let interface = policy.interface.as_ref().filter(|_| policy.dns_of_link && policy.dns.is_empty())?;
    Some(format!("{}: {}", policy.name, missing(interface)))
}

/// What it means, and what to do.
pub(crate) fn missing(interface: &str) -> String {
    format!("DNS queries are stopped, because {}: {}", why(interface), command(interface))
}

/// Why a link has no resolver.
pub(crate) fn why(interface: &str) -> String {
    if resolved::runs() {
        format!("systemd-resolved has no resolver for {interface}")
    } else {
        "systemd-resolved does not run".to_owned()
    }
}

/// The command that gives it one.
pub(crate) fn command(interface: &str) -> String {
    if resolved::runs() {
        format!("resolvectl dns {} ADDRESS", quoted(interface))
    } else {
        "systemctl enable --now systemd-resolved".to_owned()
    }
}
