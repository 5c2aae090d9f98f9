//! One event, as text and as JSON.
//!
//! **Invariant:** pure. Any record becomes an event: values that this version does not know are shown as unknown. A name that a
//! process chose cannot break a line or look like another field.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use steer_common::{Counter, EventRecord, LimitKey, Peer, address::ip_address, option};

use super::Reason;
use crate::{
    host::link::Near,
    kernel::text,
    model::{cgroup_path::CgroupPath, uplink::news::UplinkChange},
    observe::hints,
};

/// One attempt that was stopped, was observed or cannot work, a summary of attempts beyond the rate limit, or a change of a group of
/// uplinks. A summary has only the cgroup, the policy and the reason. The field names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Event {
    /// When it was stopped. For a summary: when the summary was made.
    #[serde(serialize_with = "microseconds")]
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Why it was stopped: the name of the counter in `steer status --json`. Or `uplink_state` or `uplink_switch`.
    pub reason: Cow<'static, str>,
    /// The policy observes: the attempt passed, and `strict` would have stopped it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub observed: bool,
    /// Whether this is a summary.
    pub summary: bool,
    /// The number of attempts. It is 1 unless this is a summary.
    pub count: u64,
    /// The policy that stopped it.
    pub policy: Option<String>,
    /// The cgroup of the calling process, or of a packet's socket. Absent once it has been removed.
    pub cgroup: Option<CgroupPath>,
    /// The cgroup's id.
    pub cgroup_id: u64,
    /// The process id, if the kernel reports it.
    pub pid: Option<u32>,
    /// The process's name.
    pub comm: Option<String>,
    /// The interface of the packet, the interface that the call requested, or the one that the socket is bound to.
    pub interface: Option<String>,
    /// The interface's index, in the network namespace of the socket.
    pub ifindex: Option<i32>,
    /// The remote address.
    #[schema(value_type = Option<String>)]
    pub peer: Option<IpAddr>,
    /// The remote port.
    pub port: Option<u16>,
    /// The transport protocol.
    pub protocol: Option<String>,
    /// The socket option that was refused.
    pub option: Option<String>,
    /// Why it cannot work, and what to do.
    #[schema(value_type = Option<String>)]
    pub hint: Option<Cow<'static, str>>,
    /// The change of a group of uplinks. Only events with the reasons `uplink_state` and `uplink_switch` have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkChange>,
}

impl Event {
    /// The event of a record, without the names that must be looked up.
    pub(super) fn of(record: &EventRecord, time: Timestamp) -> Self {
        let Peer { address, port, protocol } = record.peer;
        Self {
            pid: (record.pid != 0).then_some(record.pid),
            comm: named(&record.comm),
            interface: named(&record.interface),
            ifindex: (record.ifindex > 0).then_some(record.ifindex),
            peer: (address != [0; 4] || port != 0).then(|| ip_address(address)),
            port: u16::try_from(port).ok().filter(|port| *port != 0),
            protocol: (protocol != 0).then(|| protocol_name(protocol)),
            option: (record.option_level != 0 || record.option != 0)
                .then(|| option_name(record.option_level, record.option)),
            hint: hints::of(record).map(Cow::Borrowed),
            summary: false,
            ..Self::summary(&LimitKey::of(record), 1, named(&record.policy_name), time)
        }
    }

    /// A change of a group of uplinks.
    pub(super) fn of_uplink(change: UplinkChange, time: Timestamp) -> Self {
        let reason = if change.state.is_some() { Reason::UplinkState } else { Reason::UplinkSwitch };
        let nothing = Self::summary(&LimitKey::default(), 1, None, time);
        Self { reason: reason.name().into(), summary: false, uplink: Some(change), ..nothing }
    }

    /// The remote address, with the port if it is known.
    pub(super) fn destination(&self) -> Option<String> {
        Some(match (self.peer?, self.port) {
            (peer, Some(port)) => SocketAddr::new(peer, port).to_string(),
            (peer, None) => peer.to_string(),
        })
    }

    /// The line of the event, with the time of a time zone. [`fmt::Display`] has it in UTC.
    pub fn line(&self, zone: &TimeZone) -> String {
        let time = self.time.to_zoned_datetime(zone.clone());
        format!("{} {}", time.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z"), Described(self))
    }

    /// Adds a hint to a packet that was stopped on its way into a network of the link.
    pub(super) fn with_hint_for(self, near: Near) -> Self {
        let hint = match near {
            Near::Host => hints::LAN,
            Near::Broadcast => hints::DISCOVERY,
        };
        Self { hint: Some(Cow::Borrowed(hint)), ..self }
    }

    /// A summary of `count` attempts of one kind.
    pub(super) fn summary(kind: &LimitKey, count: u64, policy: Option<String>, time: Timestamp) -> Self {
        Self {
            time,
            reason: Counter::of_index(kind.counter()).map_or("unknown", Counter::name).into(),
            observed: kind.is_observed(),
            summary: true,
            count,
            policy,
            cgroup: None,
            cgroup_id: kind.cgroup_id,
            pid: None,
            comm: None,
            interface: None,
            ifindex: None,
            peer: None,
            port: None,
            protocol: None,
            option: None,
            hint: None,
            uplink: None,
        }
    }
}

/// One line of `key=value` pairs, names in quotes, with the time in UTC.
impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.6} {}", self.time, Described(self))
    }
}

/// An event without its time.
struct Described<'e>(&'e Event);

impl fmt::Display for Described<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        formatter.write_str(&event.reason)?;
        formatter.write_str(if event.observed { " observed" } else { "" })?;
        if let Some(change) = &event.uplink {
            return describe(change, formatter);
        }
        if let Some(policy) = &event.policy {
            write!(formatter, " policy={policy:?}")?;
        }
        match &event.cgroup {
            Some(cgroup) => write!(formatter, " cgroup={:?}", cgroup.as_str())?,
            None => write!(formatter, " cgroup_id={}", event.cgroup_id)?,
        }
        if let Some(pid) = event.pid {
            write!(formatter, " pid={pid}")?;
        }
        if let Some(comm) = &event.comm {
            write!(formatter, " comm={comm:?}")?;
        }
        if let Some(option) = &event.option {
            write!(formatter, " option={option}")?;
        }
        match (&event.interface, event.ifindex) {
            (Some(interface), _) => write!(formatter, " interface={interface:?}")?,
            (None, Some(ifindex)) => write!(formatter, " ifindex={ifindex}")?,
            (None, None) => {}
        }
        if let Some(peer) = event.destination() {
            write!(formatter, " peer={peer}")?;
        }
        if let Some(protocol) = &event.protocol {
            write!(formatter, " protocol={protocol}")?;
        }
        if let Some(hint) = &event.hint {
            // So that what it quotes can be copied.
            let quote = if hint.contains('\'') { '"' } else { '\'' };
            write!(formatter, " hint={quote}{hint}{quote}")?;
        }
        if event.summary {
            write!(formatter, " and {} more like it", event.count)?;
        }
        Ok(())
    }
}

/// A change of a group of uplinks.
fn describe(change: &UplinkChange, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(formatter, " uplink={:?}", change.group)?;
    if let Some(member) = &change.member {
        write!(formatter, " member={member:?}")?;
    }
    let words = [("state", &change.state), ("family", &change.family)];
    for (key, word) in words.into_iter().filter_map(|(key, word)| Some((key, word.as_ref()?))) {
        write!(formatter, " {key}={word:?}")?;
    }
    let choices = [("ipv4", &change.ipv4), ("ipv6", &change.ipv6)];
    for (family, choice) in choices.into_iter().filter_map(|(family, choice)| Some((family, choice.as_ref()?))) {
        let named = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join("+") };
        write!(formatter, " {family}={:?}", format!("{} -> {}", named(&choice.from), named(&choice.to)))?;
    }
    if let Some(why) = &change.why {
        write!(formatter, " why={why:?}")?;
    }
    let counts = [("ended", change.ended), ("moved", change.moved)];
    for (key, count) in counts.into_iter().filter_map(|(key, count)| Some((key, count?))) {
        write!(formatter, " {key}={count}")?;
    }
    Ok(())
}

fn microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

fn named(field: &[u8]) -> Option<String> {
    Some(text(field)).filter(|name| !name.is_empty())
}

fn protocol_name(protocol: u32) -> String {
    match i32::try_from(protocol) {
        Ok(libc::IPPROTO_TCP) => "tcp".to_owned(),
        Ok(libc::IPPROTO_UDP) => "udp".to_owned(),
        Ok(libc::IPPROTO_UDPLITE) => "udplite".to_owned(),
        Ok(libc::IPPROTO_ICMP) => "icmp".to_owned(),
        Ok(libc::IPPROTO_ICMPV6) => "icmpv6".to_owned(),
        Ok(libc::IPPROTO_SCTP) => "sctp".to_owned(),
        Ok(libc::IPPROTO_MPTCP) => "mptcp".to_owned(),
        _ => protocol.to_string(),
    }
}

fn option_name(level: i32, option: i32) -> String {
    option::name(level, option).map_or_else(|| format!("{level}/{option}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steer_common::{Counter, EventRecord, LimitKey, Peer, event, event::KERNEL_NAME_BYTES};

    use super::Event;
    use crate::model::uplink::news::{Choice, UplinkChange};

    const TIME: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn the_time_is_local() {
        let event = Event::of(&egress(), TIME);
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(1));
        assert!(
            event.line(&zone).starts_with("1970-01-01T01:00:00.000000+01:00 stopped_egress "),
            "{}",
            event.line(&zone)
        );
    }

    #[test]
    fn a_switch_has_a_line() {
        let change = UplinkChange {
            group: "lines".to_owned(),
            ipv4: Some(Choice { from: vec!["a1".to_owned()], to: vec!["a0".to_owned()] }),
            why: Some("a1 is down: its link is down or has no carrier".to_owned()),
            ended: Some(2),
            ..UplinkChange::default()
        };
        let event = Event::of_uplink(change, TIME);
        assert_eq!(
            event.to_string(),
            "1970-01-01T00:00:00.000000Z uplink_switch uplink=\"lines\" ipv4=\"a1 -> a0\" why=\"a1 is down: its link is down or has no carrier\" ended=2"
        );
        let json = serde_json::to_string(&event).expect("JSON");
        assert_eq!(serde_json::from_str::<Event>(&json).expect("an event"), event);
    }

    fn name<const N: usize>(name: &str) -> [u8; N] {
        let mut field = [0; N];
        field[..name.len()].copy_from_slice(name.as_bytes());
        field
    }

    fn egress() -> EventRecord {
        EventRecord {
            reason: Counter::StoppedEgress as u32,
            cgroup_id: 7,
            pid: 42,
            ifindex: 3,
            comm: name("curl"),
            policy_name: name("vpn"),
            peer: Peer { address: steer_common::mapped(u32::from_ne_bytes([192, 0, 2, 1])), port: 443, protocol: 6 },
            ..EventRecord::EMPTY
        }
    }

    #[test]
    fn a_record_has_its_fields() {
        let event = Event::of(&egress(), TIME);
        assert_eq!(
            event.to_string(),
            "1970-01-01T00:00:00.000000Z stopped_egress policy=\"vpn\" cgroup_id=7 pid=42 comm=\"curl\" ifindex=3 \
             peer=192.0.2.1:443 protocol=tcp"
        );
        let observed = Event::of(&EventRecord { reason: egress().reason | event::OBSERVED, ..egress() }, TIME);
        assert!(observed.to_string().contains(" stopped_egress observed policy="), "{observed}");
        assert_eq!(Event { observed: false, ..observed }, event);
        let words = [0x2001_0db8_u32.to_be(), 0, 0, 1_u32.to_be()];
        let six = EventRecord { peer: Peer { address: words, ..egress().peer }, ..egress() };
        assert!(Event::of(&six, TIME).to_string().contains(" peer=[2001:db8::1]:443 "));
        let option = EventRecord {
            reason: Counter::StoppedSetsockopt as u32,
            option_level: 1,
            option: 25,
            interface: name("eth0"),
            ..EventRecord::EMPTY
        };
        let event = Event::of(&option, TIME);
        assert_eq!((event.option.as_deref(), event.interface.as_deref()), (Some("SO_BINDTODEVICE"), Some("eth0")));
        assert_eq!((event.policy, event.pid, event.peer, event.port), (None, None, None, None));
    }

    #[test]
    fn this_host_has_a_hint() {
        let local = |port| EventRecord {
            reason: Counter::StoppedLocal as u32,
            peer: Peer { address: steer_common::mapped(u32::from_ne_bytes([127, 0, 0, 53])), port, protocol: 17 },
            ..EventRecord::EMPTY
        };
        let line = Event::of(&local(53), TIME).to_string();
        assert!(
            line.contains(" stopped_local ") && line.contains("peer=127.0.0.53:53") && line.contains("`dns`"),
            "{line}"
        );
        let line = Event::of(&local(5432), TIME).to_string();
        assert!(!line.contains("dns") && line.contains(r#"hint='`local = ["host"]` in the policy"#), "{line}");
    }

    #[test]
    fn discovery_has_a_hint() {
        let to = |address: [u8; 4]| {
            let peer = Peer { address: steer_common::mapped(u32::from_ne_bytes(address)), port: 5353, protocol: 17 };
            Event::of(&EventRecord { peer, ..egress() }, TIME).hint
        };
        assert!(to([224, 0, 0, 251]).is_some_and(|hint| hint.contains("discovery")));
        assert_eq!(to([224, 0, 0, 250]), None);
    }

    #[test]
    fn a_summary_has_a_count() {
        let event = Event::summary(&LimitKey::of(&egress()), 1234, Some("vpn".to_owned()), TIME);
        assert!(event.to_string().ends_with(" stopped_egress policy=\"vpn\" cgroup_id=7 and 1234 more like it"));
    }

    #[test]
    fn any_record_becomes_one_line() {
        let full = EventRecord {
            boottime_ns: u64::MAX,
            unreported: u64::MAX,
            cgroup_id: u64::MAX,
            netns_cookie: u64::MAX,
            policy: u32::MAX,
            reason: u32::MAX,
            pid: u32::MAX,
            ifindex: i32::MAX,
            option_level: i32::MIN,
            option: i32::MAX,
            peer: Peer { address: [u32::MAX; 4], port: u32::MAX, protocol: u32::MAX },
            comm: [0xff; KERNEL_NAME_BYTES],
            interface: *b"\n pid=12 \"\x1b[2J\\x",
            policy_name: [b'\n'; 64],
        };
        for record in
            [full, EventRecord::EMPTY, EventRecord { ifindex: -1, comm: *b"\r\n\x00\xf0\x9f           ", ..full }]
        {
            let event = Event::of(&record, TIME);
            let line = event.to_string();
            assert!(!line.contains(char::is_control), "{line:?}");
            assert!(serde_json::to_string(&event).is_ok_and(|json| !json.contains('\n')));
        }
        assert_eq!(Event::of(&full, TIME).reason, "unknown");
        assert_eq!(Event::of(&full, TIME).port, None);
    }
}
