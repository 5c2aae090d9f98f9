//! Encodes and decodes rtnetlink messages about links. Pure.
//!
//! This module does not use a library, because a library decodes all attributes, fails on a name that is not UTF-8, and
//! then loses the rest of the datagram.
//!
//! **Invariant:** a datagram is decoded completely or not at all.

use std::mem::size_of;

use super::{Change, Names};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// The two highest bits of an attribute's type are flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
/// Leaves counters out of the answer (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_STATISTICS: u32 = 1 << 3;

/// A message of interest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A link exists, or is gone.
    Link(Change),
    /// The end of a full reading.
    Done,
    /// The request failed with this errno.
    Failed(i32),
    /// Anything else.
    Other,
}

/// What a link is, apart from its names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    /// `IFF_*`.
    pub(super) flags: u32,
    /// Its kind, such as `veth`; empty for hardware and loopback.
    pub(super) kind: Vec<u8>,
}

/// A message, with values of its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) sequence: u32,
    /// Whether links changed during the full reading, so that it may be inconsistent.
    pub(super) interrupted: bool,
    pub(super) message: Message,
    pub(super) device: Device,
}

/// The messages of a datagram; `None`: it cannot be decoded.
pub(super) fn decode(mut datagram: &[u8]) -> Option<Vec<Received>> {
    let mut received = Vec::new();
    while !datagram.is_empty() {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let (message, body) = (datagram.get(..length)?, datagram.get(HEADER..length)?);
        let (kind, flags) = (u16_at(message, 4)?, u16_at(message, 6)?);
        received.push(Received {
            sequence: u32_at(message, 8)?,
            interrupted: i32::from(flags) & libc::NLM_F_DUMP_INTR != 0,
            message: decode_one(kind, body)?,
            device: if kind == libc::RTM_NEWLINK { device(body)? } else { Device::default() },
        });
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    Some(received)
}

/// A request for all links.
pub(super) fn full_reading(sequence: u32) -> Vec<u8> {
    request(sequence, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, 0)
}

/// A request for one link.
pub(super) fn one_link(sequence: u32, index: u32) -> Vec<u8> {
    request(sequence, libc::NLM_F_REQUEST, index)
}

fn request(sequence: u32, flags: i32, index: u32) -> Vec<u8> {
    let attribute =
        [&8_u16.to_ne_bytes()[..], &libc::IFLA_EXT_MASK.to_ne_bytes(), &SKIP_STATISTICS.to_ne_bytes()].concat();
    let length = u32::try_from(HEADER + LINK_HEADER + attribute.len()).unwrap_or_default();
    let flags = u16::try_from(flags).unwrap_or_default();
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(libc::RTM_GETLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    // The port, and family and type of the link.
    request.extend([0; 2 * size_of::<u32>()]);
    request.extend(index.to_ne_bytes());
    request.extend([0; LINK_HEADER - 2 * size_of::<u32>()]);
    request.extend(attribute);
    request
}

fn decode_one(kind: u16, body: &[u8]) -> Option<Message> {
    if i32::from(kind) == libc::NLMSG_DONE {
        return Some(Message::Done);
    }
    if i32::from(kind) == libc::NLMSG_ERROR {
        return Some(Message::Failed(i32_at(body, 0)?.wrapping_neg()));
    }
    if kind != libc::RTM_NEWLINK && kind != libc::RTM_DELLINK {
        return Some(Message::Other);
    }
    // A bridge reports its ports in its own address family without names, even if they only leave the bridge.
    if i32::from(*body.first()?) != libc::AF_UNSPEC {
        return Some(Message::Other);
    }
    let index = u32_at(body, 4)?;
    let attributes = body.get(LINK_HEADER..)?;
    Some(Message::Link(if kind == libc::RTM_DELLINK {
        Change::Gone(index)
    } else {
        Change::Present(index, names(attributes)?)
    }))
}

fn device(body: &[u8]) -> Option<Device> {
    let mut device = Device { flags: u32_at(body, 8)?, kind: Vec::new() };
    for attribute in Attributes(body.get(LINK_HEADER..)?) {
        let (libc::IFLA_LINKINFO, info) = attribute? else { continue };
        for attribute in Attributes(info) {
            if let (libc::IFLA_INFO_KIND, kind) = attribute? {
                kind.split(|&byte| byte == 0).next().unwrap_or_default().clone_into(&mut device.kind);
            }
        }
    }
    Some(device)
}

/// The names of a link; `None` if there is no name, which is invalid.
fn names(attributes: &[u8]) -> Option<Names> {
    let mut found = Names::default();
    for attribute in Attributes(attributes) {
        match attribute? {
            (libc::IFLA_IFNAME, value) => found.name = text(value),
            (libc::IFLA_PROP_LIST, properties) => {
                for property in Attributes(properties) {
                    if let (libc::IFLA_ALT_IFNAME, value) = property? {
                        found.alternative.push(text(value));
                    }
                }
            }
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

/// A name as text. The kernel allows any bytes except a slash, a colon and white space. A name that is not UTF-8 is escaped
/// and gets a slash, so that it cannot equal another link's name.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    match std::str::from_utf8(&value[..end]) {
        Ok(name) => name.to_owned(),
        Err(_not_utf8) => format!("{}/", value[..end].escape_ascii()),
    }
}

/// Attributes by type; `None` for one that exceeds the message.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = || {
            let length = usize::from(u16_at(self.0, 0)?);
            Some((u16_at(self.0, 2)? & ATTRIBUTE_TYPE, self.0.get(4..length)?, length))
        };
        let Some((kind, value, length)) = attribute() else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(Some((kind, value)))
    }
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    u32_at(bytes, offset).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::{Change, HEADER, Message, Names, decode, full_reading, one_link};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).expect("short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat()
    }

    fn link(kind: u16, family: u8, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let header = [&[family, 0, 0, 0][..], &index.to_ne_bytes(), &[0; 8]].concat();
        message(kind, &[header, attributes.concat()].concat())
    }

    fn decoded(datagram: &[u8]) -> Option<Vec<Message>> {
        decode(datagram).map(|received| received.into_iter().map(|received| received.message).collect())
    }

    #[test]
    fn links_and_their_names() {
        let properties = [attribute(53, b"tunnel\0"), attribute(53, b"vpn\0")].concat();
        let attributes = [attribute(4, &[0; 4]), attribute(3, b"wg0\0"), attribute(0x8034, &properties)];
        let names = Names { name: "wg0".to_owned(), alternative: vec!["tunnel".to_owned(), "vpn".to_owned()] };
        let datagram =
            [link(16, 0, 7, &attributes), link(17, 0, 8, &[]), link(16, 7, 9, &[]), message(3, &[0; 4])].concat();
        let present = Message::Link(Change::Present(7, names));
        assert_eq!(
            decoded(&datagram),
            Some(vec![present, Message::Link(Change::Gone(8)), Message::Other, Message::Done])
        );
        assert_eq!(decoded(&message(2, &(-16_i32).to_ne_bytes())), Some(vec![Message::Failed(16)]));
    }

    #[test]
    fn a_name_that_is_not_utf8_equals_no_other_name() {
        let messages = decoded(&link(16, 0, 1, &[attribute(3, b"w\xff\0")]));
        let Some([Message::Link(Change::Present(1, names))]) = messages.as_deref() else { panic!("{messages:?}") };
        assert!(names.name.contains('/'), "{names:?}");
    }

    #[test]
    fn invalid_messages_are_not_decoded() {
        let whole = link(16, 0, 7, &[attribute(3, b"wg0\0")]);
        assert!((1..whole.len()).all(|length| decode(&whole[..length]).is_none()), "cut");
        assert_eq!(decode(&link(16, 0, 7, &[])), None, "without a name");
        assert_eq!(decode(&[0; 16]), None, "a length of nothing");
        let mut too_long = whole;
        too_long[32] = 200;
        assert_eq!(decode(&too_long), None, "an attribute that is longer than the message");
    }

    #[test]
    fn a_request_has_its_length() {
        for request in [full_reading(3), one_link(3, 7)] {
            assert_eq!(
                usize::try_from(u32::from_ne_bytes(request[..4].try_into().expect("four"))).ok(),
                Some(request.len())
            );
        }
        assert_eq!(one_link(3, 7)[HEADER + 4..HEADER + 8], 7_u32.to_ne_bytes());
    }
}
