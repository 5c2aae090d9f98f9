//! The links of this host as `auto` sees them.
//!
//! **Invariant:** only reads. A link that cannot be read is one without a device below it.

use std::{fs, io, path::Path};

use super::{
    entry::{IPV4, IPV6},
    facts::has_address,
    netlink::{Attribute, Connection, Raw},
    state::State,
};
use crate::model::{
    prefix::Prefix,
    uplink::{
        Family, PerFamily,
        auto::{ARPHRD_PPP, Link},
    },
};

/// Length of `struct ifinfomsg`, and the offsets of the kind of hardware, the index and the flags.
const HEADER: usize = 16;
const ARPHRD: usize = 2;
const INDEX: usize = 4;
const FLAGS: usize = 8;
/// The name of the device below, on a bus (Linux 5.14).
const IFLA_PARENT_DEV_NAME: u16 = 56;
/// Leaves counters out of the answer (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_STATISTICS: u32 = 1 << 3;
/// How many links may be above each other.
const DEPTH: usize = 8;

/// A link with what it is made of.
struct Raised {
    link: Link,
    /// The link below (`IFLA_LINK`), in the same network namespace.
    below: Option<u32>,
    /// The bond, bridge or team that it is a port of.
    master: Option<u32>,
    has_device: bool,
}

/// Reads the links of the calling thread's network namespace. `includes`: whether a link counts as a device on a bus, by its name and
/// kind.
pub fn lines(includes: &dyn Fn(&str, &str) -> bool) -> io::Result<Vec<Link>> {
    let mut connection = Connection::open()?;
    let mut body = vec![0; HEADER];
    Attribute::emit_all(&[Attribute::number(libc::IFLA_EXT_MASK, SKIP_STATISTICS)], &mut body);
    let answers = connection.list(&Raw { kind: libc::RTM_GETLINK, body }, libc::RTM_NEWLINK)?;
    let all: Vec<Raised> = answers.iter().filter_map(|body| decode(body, includes)).collect();
    let has_pppoe = has_pppoe(&all);
    let mut lines = Vec::new();
    for raised in &all {
        let mut link = raised.link.clone();
        let is_pppoe = link.arphrd == ARPHRD_PPP && (has_pppoe || raised.has_device);
        link.has_bus_device_below = is_pppoe || reaches_device(&all, raised, DEPTH);
        link.is_wireless |= is_below(&all, raised, DEPTH, &|it| it.link.is_wireless);
        link.is_mobile |= is_below(&all, raised, DEPTH, &|it| it.link.is_mobile);
        if link.has_bus_device_below {
            for family in Family::ALL {
                let number = if family == Family::V4 { IPV4 } else { IPV6 };
                *link.has_address.get_mut(family) = has_address(&mut connection, link.index, number)?;
                *link.default_route.get_mut(family) = metric(&mut connection, link.index, number)?;
            }
        }
        lines.push(link);
    }
    Ok(lines)
}

fn decode(body: &[u8], includes: &dyn Fn(&str, &str) -> bool) -> Option<Raised> {
    let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let attributes = Attribute::all(body.get(HEADER..)?)?;
    let of = |kind| attributes.iter().find(|one| one.kind == kind);
    let flags = word(FLAGS)?.cast_signed();
    let info = of(libc::IFLA_LINKINFO).and_then(|info| Attribute::all(&info.value)).unwrap_or_default();
    let kind = info.iter().find(|one| one.kind == libc::IFLA_INFO_KIND);
    let name = String::from_utf8_lossy(of(libc::IFLA_IFNAME)?.text()).into_owned();
    let sysfs = sysfs(&name, word(INDEX)?);
    let is_in_sysfs = |file: &str| sysfs.as_ref().is_some_and(|path| path.join(file).exists());
    let uevent = sysfs.as_ref().and_then(|path| fs::read_to_string(path.join("uevent")).ok()).unwrap_or_default();
    let link = Link {
        index: word(INDEX)?,
        kind: kind.map(|kind| String::from_utf8_lossy(kind.text()).into_owned()),
        arphrd: u16::from_ne_bytes(body.get(ARPHRD..ARPHRD + 2)?.try_into().ok()?),
        is_up: flags & libc::IFF_UP != 0,
        has_carrier: flags & libc::IFF_RUNNING != 0,
        has_bus_device_below: false,
        is_wireless: is_in_sysfs("phy80211"),
        is_mobile: uevent.lines().any(|line| line == "DEVTYPE=wwan"),
        default_route: PerFamily::default(),
        has_address: PerFamily::default(),
        name,
    };
    // A link below that is in another network namespace says nothing here.
    let below = of(libc::IFLA_LINK).filter(|_| of(libc::IFLA_LINK_NETNSID).is_none()).and_then(Attribute::as_number);
    Some(Raised {
        below: below.filter(|below| *below != 0 && *below != link.index),
        master: of(libc::IFLA_MASTER).and_then(Attribute::as_number),
        has_device: of(IFLA_PARENT_DEV_NAME).is_some()
            || is_in_sysfs("device")
            || link.kind.as_ref().is_some_and(|kind| includes(&link.name, kind)),
        link,
    })
    // Bridges describe their ports in another family.
    .filter(|_| body.first() == Some(&0))
}

/// The directory of a link in sysfs, if sysfs shows this network namespace.
fn sysfs(name: &str, index: u32) -> Option<std::path::PathBuf> {
    let path = Path::new("/sys/class/net").join(name);
    let shown = fs::read_to_string(path.join("ifindex")).ok()?;
    (shown.trim().parse() == Ok(index)).then_some(path)
}

fn reaches_device(all: &[Raised], from: &Raised, depth: usize) -> bool {
    is_below(all, from, depth, &|link| link.has_device)
}

/// Whether something is so for a link, or for one below it. Of the ports of a bond, bridge or team, those with a carrier count.
fn is_below(all: &[Raised], from: &Raised, depth: usize, is_so: &dyn Fn(&Raised) -> bool) -> bool {
    let is_port = |it: &&Raised| it.master == Some(from.link.index) && it.link.has_carrier;
    let mut below = all.iter().filter(|it| from.below == Some(it.link.index) || is_port(it));
    is_so(from) || depth > 0 && below.any(|it| is_below(all, it, depth - 1, is_so))
}

/// Whether a PPPoE session uses a link with a device below. The kernel does not tell which PPP link a session belongs to.
fn has_pppoe(all: &[Raised]) -> bool {
    let sessions = fs::read_to_string("/proc/thread-self/net/pppoe").unwrap_or_default();
    let mut devices = sessions.lines().skip(1).filter_map(|session| session.split_whitespace().last());
    devices.any(|device| all.iter().any(|it| it.link.name == device && reaches_device(all, it, DEPTH)))
}

/// The lowest metric of a link's default routes in all tables but steer's.
fn metric(connection: &mut Connection, link: u32, family: u8) -> io::Result<Option<u32>> {
    let mut state = State::read_link(connection, link)?;
    match state.read_routes(connection, family, Some(link)) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok(None),
        read => read?,
    }
    let all = if family == IPV4 { Prefix::ALL_IPV4 } else { Prefix::ALL_IPV6 };
    let routes = state.mirror(link, family == IPV4);
    let defaults = routes.iter().filter(|route| route.prefix == all && route.source.is_none());
    Ok(defaults.map(|route| route.metric).min())
}
