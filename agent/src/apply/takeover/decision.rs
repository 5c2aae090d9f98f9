//! Decides about a socket that is older than its policy. Pure.
//!
//! **Invariant:** a socket that reaches this host only is left alone. So is a socket that is bound or marked for its uplink.

use steer_common::{Line, Mark};

use crate::{
    host::sockets::{
        Host,
        diag::{Protocol, Socket},
    },
    model::{mark::MarkMask, prefix::Prefix, spec::Existing},
};

/// What to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Bind or mark it for the uplink. It stays in use.
    Steer,
    /// Destroy it. A UDP socket survives this, and is then bound or marked for the uplink.
    Destroy,
}

/// How a policy steers sockets.
#[derive(Clone, Debug)]
pub(super) struct Method {
    /// The uplink's index; not positive while it is missing.
    pub(super) uplink: i32,
    /// The other members of its group, where sockets may stay.
    pub(super) others: Vec<Line>,
    /// The mark of its sockets; with value 0, they are bound, and have none.
    pub(super) mark: Mark,
    /// What it reaches by other links.
    pub(super) passes: Vec<Prefix>,
}

impl Method {
    /// Whether its sockets are marked, not bound.
    pub(super) fn is_marking(&self) -> bool {
        self.mark.value != 0
    }

    /// Whether a socket's mark is right. One of an earlier policy would lead a bound socket by rules of others.
    pub(super) fn has_mark(&self, mark: u32) -> bool {
        if self.is_marking() { self.mark.is_in(mark) } else { mark & MarkMask::new(self.mark.mask).flag() == 0 }
    }

    /// Whether a socket is as the policy requires.
    fn has_settled(&self, socket: &Socket) -> bool {
        let is_on = |line: &Line| {
            if self.is_marking() {
                socket.bound() == 0 && Mark { value: line.mark, ..self.mark }.is_in(socket.mark)
            } else {
                line.ifindex > 0 && socket.bound() == line.ifindex && self.has_mark(socket.mark)
            }
        };
        self.has_mark(socket.mark) && (self.is_marking() && socket.bound() == 0 || socket.bound() == self.uplink)
            || self.others.iter().any(is_on)
    }

    /// Whether a connection can continue.
    fn goes_on(&self, socket: &Socket, host: &Host) -> bool {
        host.goes_on(socket, self.uplink)
            || socket.peer().is_some_and(|peer| self.passes.iter().any(|prefix| prefix.contains(peer.ip())))
    }
}

/// Decides about a socket. `existing` is the setting of its policy.
pub(super) fn decide(socket: &Socket, existing: Existing, method: &Method, host: &Host) -> Option<Action> {
    if existing == Existing::Keep || method.has_settled(socket) || host.is_all_of(socket) {
        return None;
    }
    let is_connected = socket.peer().is_some();
    if !host.links.contains(&method.uplink) {
        // No socket can be bound to a missing uplink. A TCP connection is destroyed, so that the program does not wait in vain.
        // A UDP socket is not: this would unbind it.
        let waits = is_connected && host.is_orphan(socket) && socket.protocol == Protocol::Tcp;
        return (existing == Existing::Destroy && waits).then_some(Action::Destroy);
    }
    // A destroyed listener would end its service. A socket without a peer has no connection to make again.
    let ends = is_connected && (existing == Existing::Destroy || !method.goes_on(socket, host));
    Some(if ends { Action::Destroy } else { Action::Steer })
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::{
        AF_INET, AF_INET6, TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN,
        inet::{InetResponseHeader, SocketId},
    };

    use steer_common::Mark;

    use super::{Action, Host, Method, Protocol, Socket, decide};
    use crate::model::spec::Existing;

    const MASK: u32 = 0xff00_0000;
    const OTHER: i32 = 2;
    const UPLINK: i32 = 3;
    const GONE: i32 = 9;
    const MISSING: i32 = -1;

    fn host() -> Host {
        let address = |text: &str| text.parse().expect("an address");
        let addresses = vec![
            (1, address("127.0.0.1")),
            (OTHER, address("10.0.0.2")),
            (UPLINK, address("10.0.1.2")),
            (UPLINK, address("fe80::1")),
        ];
        Host { links: [1, OTHER, UPLINK].into(), addresses }
    }

    fn socket(protocol: Protocol, state: u8, local: &str, peer: &str, bound: i32) -> Socket {
        let (source_address, destination_address) =
            (local.parse().expect("an address"), peer.parse().expect("an address"));
        let socket_id =
            SocketId { source_address, destination_address, interface_id: bound.cast_unsigned(), ..SocketId::new_v4() };
        let family = if source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let header = InetResponseHeader {
            family,
            state,
            timer: None,
            socket_id,
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 1,
        };
        Socket { protocol, cgroup_id: 1, mark: 0, is_mptcp: false, header }
    }

    fn tcp(local: &str, bound: i32) -> Socket {
        socket(
            Protocol::Tcp,
            TCP_ESTABLISHED,
            local,
            if local.contains(':') { "2001:db8::1" } else { "192.0.2.1" },
            bound,
        )
    }

    fn bound(uplink: i32) -> Method {
        Method { uplink, others: Vec::new(), mark: Mark { value: 0, mask: MASK }, passes: Vec::new() }
    }

    #[test]
    fn marks() {
        const MARK: Mark = Mark { value: 0x8100_0000, mask: MASK };
        let lan = vec!["192.0.2.0/24".parse().expect("a prefix")];
        let method = |passes| Method { uplink: UPLINK, others: Vec::new(), mark: MARK, passes };
        let marked = |mark, bound| Socket { mark, ..tcp("10.0.0.2", bound) };
        let decided =
            |socket: &Socket, passes: &[_]| decide(socket, Existing::Rebind, &method(passes.to_vec()), &host());
        assert_eq!(decided(&marked(MARK.value | 7, 0), &[]), None);
        assert_eq!(decided(&marked(MARK.value, UPLINK), &[]), None);
        assert_eq!(decided(&marked(MARK.value, OTHER), &[]), Some(Action::Destroy));
        assert_eq!(decided(&marked(0, 0), &[]), Some(Action::Destroy));
        assert_eq!(decided(&marked(0, 0), &lan), Some(Action::Steer), "an exception");
        let of_before = Socket { mark: MARK.value | 7, ..tcp("10.0.1.2", UPLINK) };
        assert_eq!(decide(&of_before, Existing::Rebind, &bound(UPLINK), &host()), Some(Action::Steer));
    }

    #[test]
    fn decisions() {
        use Action::{Destroy, Steer as Bind};
        let udp = |local, bound| socket(Protocol::Udp, TCP_ESTABLISHED, local, "192.0.2.1", bound);
        let listener = |local, bound| socket(Protocol::Tcp, TCP_LISTEN, local, "0.0.0.0", bound);
        let unconnected = |local, bound| socket(Protocol::Udp, TCP_CLOSE, local, "::", bound);
        // The socket; then the action with `rebind`, with `destroy`, and with `destroy` while the uplink is missing.
        let cases = [
            ("on its uplink", tcp("10.0.1.2", UPLINK), None, None, None),
            ("the other link's address", tcp("10.0.0.2", 0), Some(Destroy), Some(Destroy), None),
            ("the uplink's address", tcp("10.0.1.2", 0), Some(Bind), Some(Destroy), None),
            ("the uplink's address, IPv4-mapped", tcp("::ffff:10.0.1.2", 0), Some(Bind), Some(Destroy), None),
            ("of a link that is gone", tcp("10.0.1.2", GONE), Some(Bind), Some(Destroy), Some(Destroy)),
            ("another address", tcp("10.0.7.7", GONE), Some(Destroy), Some(Destroy), Some(Destroy)),
            ("before the new link has one", tcp("fd00:1::2", GONE), Some(Bind), Some(Destroy), Some(Destroy)),
            ("of a link that exists", tcp("fd00:1::2", OTHER), Some(Destroy), Some(Destroy), None),
            ("connected UDP", udp("10.0.0.2", 0), Some(Destroy), Some(Destroy), None),
            ("connected UDP of a link that is gone", udp("10.0.1.2", GONE), Some(Bind), Some(Destroy), None),
            ("unconnected UDP", unconnected("::", 0), Some(Bind), Some(Bind), None),
            ("made while the uplink was missing", unconnected("::", MISSING), Some(Bind), Some(Bind), None),
            ("a listener", listener("0.0.0.0", OTHER), Some(Bind), Some(Bind), None),
            ("a listener on loopback", listener("127.0.0.1", 0), None, None, None),
            ("a listener bound to loopback", listener("0.0.0.0", 1), None, None, None),
        ];
        for (name, socket, rebind, destroy, destroy_missing) in cases {
            let decided = |existing, uplink| decide(&socket, existing, &bound(uplink), &host());
            assert_eq!(decided(Existing::Keep, UPLINK), None, "{name}, keep");
            assert_eq!(decided(Existing::Rebind, UPLINK), rebind, "{name}, rebind");
            assert_eq!(decided(Existing::Destroy, UPLINK), destroy, "{name}, destroy");
            // An index that no link has any more, as after a late report, also counts as missing.
            for missing in [MISSING, 8] {
                assert_eq!(decided(Existing::Rebind, missing), None, "{name}, rebind, {missing}");
                assert_eq!(decided(Existing::Destroy, missing), destroy_missing, "{name}, destroy, {missing}");
            }
        }
    }

    #[test]
    fn sockets_to_this_host_are_left_alone() {
        for (local, peer) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
            ("10.0.0.2", "10.0.1.2"),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for uplink in [UPLINK, MISSING] {
                    let socket = socket(protocol, TCP_ESTABLISHED, local, peer, 0);
                    assert_eq!(decide(&socket, Existing::Destroy, &bound(uplink), &host()), None, "{socket}");
                }
            }
        }
    }
}
