//! Next hops of routes.
//!
//! **Invariant:** a hop has its link, so a part of a route can be told by its link.

use super::netlink::Attribute;

/// `struct rtnexthop`.
const HEADER: usize = 8;

pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_FLOW: u16 = 11;
pub(super) const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
pub(super) const RTA_ENCAP: u16 = 22;

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hop {
    pub(super) link: u32,
    /// The weight, less one.
    pub(super) weight: u8,
    /// Gateway, realm and encapsulation.
    pub(super) attributes: Vec<Attribute>,
}

impl Hop {
    pub(super) fn has_gateway(&self) -> bool {
        self.attributes.iter().any(|attribute| matches!(attribute.kind, RTA_GATEWAY | RTA_VIA))
    }

    /// Whether destinations are on the link: packets go to them without a gateway or encapsulation.
    pub(super) fn is_direct(&self) -> bool {
        !self.attributes.iter().any(|one| matches!(one.kind, RTA_GATEWAY | RTA_VIA | RTA_ENCAP))
    }

    /// Those that belong to a hop.
    pub(super) fn attributes(mut all: Vec<Attribute>) -> Vec<Attribute> {
        all.retain(|one| matches!(one.kind, RTA_GATEWAY | RTA_VIA | RTA_FLOW | RTA_ENCAP_TYPE | RTA_ENCAP));
        all.sort();
        all
    }

    /// The hops of a route that has several.
    pub(super) fn decode_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut hops = Vec::new();
        while !bytes.is_empty() {
            let header: [u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
            let [length @ .., _, _, _, _, _, _] = header;
            let [_, _, _flags, weight, link @ ..] = header;
            let length = usize::from(u16::from_ne_bytes(length));
            let attributes = Self::attributes(Attribute::all(bytes.get(HEADER..length)?)?);
            hops.push(Self { link: u32::from_ne_bytes(link), weight, attributes });
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(hops)
    }

    /// The hop as one of several.
    pub(super) fn encode(&self, flags: u8) -> Vec<u8> {
        let mut attributes = Vec::new();
        Attribute::emit_all(&self.attributes, &mut attributes);
        let length = u16::try_from(HEADER + attributes.len()).unwrap_or_default();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([flags, self.weight]);
        bytes.extend(self.link.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }
}
