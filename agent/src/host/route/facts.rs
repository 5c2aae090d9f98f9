//! What a link offers in each family: carrier, address, and default route.
//!
//! **Invariant:** only reads.

use std::io;

use super::{
    entry::{IPV4, IPV6},
    lookup::gateways_in,
    netlink::{Attribute, Connection, Raw},
    state::State,
};
use crate::model::uplink::{Family, PerFamily, health::Facts};

/// Length of `struct ifaddrmsg`, and the offsets of its flags, scope and index.
const HEADER: usize = 8;
const FLAGS: usize = 2;
const SCOPE: usize = 3;
const INDEX: std::ops::Range<usize> = 4..8;
/// All flags of an address.
const IFA_FLAGS: u16 = 8;
/// Addresses with this scope, or a wider one, reach farther than the link.
const SITE: u8 = 200;

/// What the link with this index offers, in the calling thread's network namespace. A link that needs no gateway, such as a tunnel, has
/// a default route of the families it has addresses of.
pub fn facts(link: u32) -> io::Result<PerFamily<Facts>> {
    let mut connection = Connection::open()?;
    let mut state = State::read_link(&mut connection, link)?;
    let missing = Facts { interface: false, ..Facts::ALL };
    let Some(flags) = state.links.get(&link).map(|link| link.flags) else {
        return Ok(PerFamily { v4: missing, v6: missing });
    };
    let carrier = flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0;
    let mut facts = PerFamily::from_fn(|_| Facts { interface: true, carrier, address: false, route: false });
    for family in Family::ALL {
        let number = match family {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        };
        let address = has_address(&mut connection, link, number)?;
        if address {
            match state.read_routes(&mut connection, number, Some(link)) {
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                read => read?,
            }
        }
        let route = address && gateways_in(&state, link, family == Family::V4).is_some();
        let found = facts.get_mut(family);
        (found.address, found.route) = (address, route);
    }
    Ok(facts)
}

/// Whether a link has an address that packets to other networks can be sent from.
pub(super) fn has_address(connection: &mut Connection, link: u32, family: u8) -> io::Result<bool> {
    let mut body = vec![family, 0, 0, 0];
    body.extend(link.to_ne_bytes());
    connection.filter();
    match connection.list(&Raw { kind: libc::RTM_GETADDR, body }, libc::RTM_NEWADDR) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::ENODEV)) => Ok(false),
        addresses => Ok(addresses?.iter().any(|address| is_usable(address, link, family))),
    }
}

fn is_usable(address: &[u8], link: u32, family: u8) -> bool {
    let Some((header, attributes)) = address.split_at_checked(HEADER) else { return false };
    let all = Attribute::all(attributes).unwrap_or_default();
    let flags = all.iter().find(|one| one.kind == IFA_FLAGS).and_then(Attribute::as_number);
    let flags = flags.unwrap_or(header[FLAGS].into());
    header[0] == family
        && header[INDEX] == link.to_ne_bytes()
        && header[SCOPE] <= SITE
        && flags & (libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED) == 0
}

#[cfg(test)]
mod tests {
    use super::{IPV4, is_usable};

    #[test]
    fn addresses_that_packets_can_be_sent_from() {
        let address = |flags: u8, scope: u8| vec![IPV4, 24, flags, scope, 7, 0, 0, 0];
        assert!(is_usable(&address(0x80, 0), 7, IPV4));
        assert!(!is_usable(&address(0x80, 0), 8, IPV4), "another link");
        assert!(!is_usable(&address(0x80, 253), 7, IPV4), "of the link only");
        assert!(!is_usable(&address(0x40, 0), 7, IPV4), "tentative");
        assert!(!is_usable(&[IPV4], 7, IPV4));
    }
}
