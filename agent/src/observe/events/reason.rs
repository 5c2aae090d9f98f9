//! Why something is an event: what each reason means, and what to change. The manual page, `--explain` and docs/troubleshooting.md have
//! these texts.
//!
//! **Invariant:** each counter of something that was stopped or cannot work is a reason of the same name.

use strum::{EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

/// A reason. Its name is the counter's in `steer status --json`, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the texts below")]
pub enum Reason {
    ClosedMissing,
    ClosedUnknown,
    StoppedEgress,
    StoppedLocal,
    StoppedDns,
    StoppedExcept,
    StoppedSetsockopt,
    StoppedFamily,
    StoppedMptcp,
    StoppedConnect,
    StoppedBind,
    StoppedSendmsg,
    StoppedIngress,
    RefusedNetns,
    ForeignSource,
    UnreachableBind,
    MovedOut,
    UplinkState,
    UplinkSwitch,
}

impl Reason {
    /// All reasons, in the order of the documents.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::iter()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// What has happened.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::ClosedMissing => {
                "A new socket was closed: the policy's uplink is missing, or no member of its group works."
            }
            Self::ClosedUnknown => "A new socket was closed: the policy is not complete yet, or was removed.",
            Self::StoppedEgress => "A packet on its way out by another link than the uplink was stopped.",
            Self::StoppedLocal => {
                "A call to this host was refused, or one to another host by a socket with a loopback address."
            }
            Self::StoppedDns => "A packet to another name server than the policy's resolver was stopped.",
            Self::StoppedExcept => "A call was refused: an exception of the policy refuses its destination.",
            Self::StoppedSetsockopt => {
                "A socket option was refused: it would have let traffic out by another link, or from a source that this host does not have."
            }
            Self::StoppedFamily => "A socket past the IP stack was refused, such as a packet socket.",
            Self::StoppedMptcp => "An MPTCP socket was refused: a peer could join the connection by another link.",
            Self::StoppedConnect => "`connect` was refused: the socket's lost binding could not be restored.",
            Self::StoppedBind => "`bind` was refused: the socket's lost binding could not be restored.",
            Self::StoppedSendmsg => {
                "A datagram was stopped: its socket had lost its binding. The next one is sent by the uplink."
            }
            Self::StoppedIngress => "A packet that came in by another link was dropped.",
            Self::RefusedNetns => "A socket of another network namespace was refused.",
            Self::ForeignSource => {
                "The program bound its socket to an address of another link. Packets leave by the uplink with that address, and answers do not come back there."
            }
            Self::UnreachableBind => {
                "The program bound its socket to a loopback address, where nothing reaches a steered socket. For ::1, `bind` fails."
            }
            Self::MovedOut => "A process was moved out of the policy's cgroups. Its new sockets are not steered.",
            Self::UplinkState => "The state of a member of a group of uplinks has changed.",
            Self::UplinkSwitch => {
                "New sockets of a group of uplinks get another member. Sockets on the one that was left were ended or moved."
            }
        }
    }

    /// What to change if it should not happen.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::ClosedMissing => {
                "Bring the uplink up; steer follows it. `steer status` and `steer uplinks` show its state."
            }
            Self::ClosedUnknown => "`steer reload`, and `steer doctor` if it goes on.",
            Self::StoppedEgress => {
                "Nothing, if the program should not reach that link. For this host's networks: `local = [\"lan\"]`, and \
                 `\"discovery\"` to find devices there. For one destination: `except`."
            }
            Self::StoppedLocal => {
                "`local = [\"host\"]` in the policy. For a name server on this host: `dns`. A program that sends from a \
                 loopback address has to use another."
            }
            Self::StoppedDns => {
                "A resolver of the same family in `dns`, if the server is on another link or on this host. Otherwise restart the program: its \
                 socket is older than the policy, or it uses a raw socket or a source route."
            }
            Self::StoppedExcept => "Remove the exception with `by = \"refuse\"` from the policy.",
            Self::StoppedSetsockopt => {
                "Take the interface, the mark or the group of another link out of the program's settings, or name the uplink there."
            }
            Self::StoppedFamily => {
                "For a program that needs it, such as tcpdump: a policy of its own with `interface = \"none\"`."
            }
            Self::StoppedMptcp => {
                "Nothing, if the program goes on with TCP, as all Go programs do. Otherwise turn MPTCP off in its settings."
            }
            Self::StoppedConnect | Self::StoppedBind => {
                "`steer explain PID`, and `existing = \"rebind\"` if the socket is older than the policy."
            }
            Self::StoppedSendmsg => {
                "Nothing, if it happens once for each socket; the program has called `connect` with AF_UNSPEC."
            }
            Self::StoppedIngress => {
                "`ingress = \"any\"` in the policy, if others should reach the program by all links."
            }
            Self::RefusedNetns => "`other_netns = \"leave\"` in the policy lets them pass, unsteered.",
            Self::ForeignSource => {
                "Take the address out of the program's settings (`--bind-address` of wget, `--interface` of curl), or use one of the uplink."
            }
            Self::UnreachableBind => "`local = [\"host\"]` in the policy: this host then reaches the socket.",
            Self::MovedOut => "The user had systemd move it: docs/guarantees.md has a D-Bus policy that prevents that.",
            Self::UplinkState => "`steer uplinks` shows why. `steer uplink down` and `up` decide by hand.",
            Self::UplinkSwitch => {
                "Nothing, if the member that was left had failed. `hold`, `on_fail` and `on_return` in `[[uplink]]` decide when, and what \
                 becomes of sockets."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use steer_common::{COUNTERS, Counter};

    use super::Reason;

    const DOCUMENT: &str = include_str!("../../../../docs/troubleshooting.md");

    #[test]
    fn what_is_stopped_is_a_reason() {
        use Counter::{Bound, LeftExempt, LeftNested, LeftNetns, Observed, Restored};
        let stopped = COUNTERS
            .iter()
            .filter(|counter| !matches!(counter, Bound | LeftExempt | LeftNested | LeftNetns | Observed | Restored));
        for counter in stopped {
            assert!(Reason::from_str(counter.name()).is_ok(), "{}", counter.name());
        }
    }

    #[test]
    fn the_document_has_each_reason() {
        let rows =
            Reason::all().map(|reason| format!("| `{}` | {} | {} |\n", reason.name(), reason.meaning(), reason.cure()));
        let table: String = rows.collect();
        assert!(DOCUMENT.contains(&table), "docs/troubleshooting.md does not have this table:\n{table}");
    }
}
