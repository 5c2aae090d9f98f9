//! `interface = "auto"`: the best line that is not a tunnel, for each family.
//!
//! A candidate is up, with carrier, address and default route, and has a device on a bus below it, directly or through
//! VLANs, bonds, bridges and the like. The order of candidates is: `prefer`, metric, wired before wireless before
//! mobile, the current one, lowest index. Each is a tier of its own in the choice, which knows their health.
//!
//! **Invariant:** a kind of link that is not known is refused: it may be a tunnel. Names are only compared with the patterns of
//! the user.

#[cfg(test)]
mod tests;

use std::fmt;

use regex::Regex;

use super::{Family, PerFamily};
use crate::model::spec::glob;

/// `ARPHRD_PPP`: point-to-point protocol, over Ethernet, a serial line or a tunnel.
pub const ARPHRD_PPP: u16 = 512;
/// `ARPHRD_TUNNEL`, `ARPHRD_TUNNEL6`, `ARPHRD_SIT`, `ARPHRD_IPGRE`, `ARPHRD_IP6GRE`.
const ARPHRD_TUNNELS: [u16; 5] = [768, 769, 776, 778, 823];

/// The kinds of links that are lines, or that have one below (`IFLA_INFO_KIND`). A device of a driver has no kind, or one of the last
/// group.
const LINE_KINDS: [&str; 16] = [
    "vlan",
    "bond",
    "team",
    "bridge",
    "macvlan",
    "macvtap",
    "ipvlan",
    "macsec",
    "hsr", // over other links
    "ppp", // over Ethernet or a modem, see `Link::has_bus_device_below`
    "dsa",
    "ipoib",
    "rmnet",
    "wwan",
    "virt_wifi",
    "netdevsim", // of drivers
];

/// The kinds of virtual links that `include` makes lines: whether one leads to a line, only the user knows.
const INCLUDED_KINDS: [&str; 3] = ["veth", "netkit", "dummy"];

/// A link as the kernel describes it.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index. A link that is renamed keeps it; one that goes to another namespace and back may get another.
    pub index: u32,
    /// Its current name.
    pub name: String,
    /// `IFLA_INFO_KIND`. `None`: a device of a driver.
    pub kind: Option<String>,
    /// `ifi_type`, an `ARPHRD_*` value.
    pub arphrd: u16,
    /// `IFF_UP`.
    pub is_up: bool,
    /// `IFF_LOWER_UP`.
    pub has_carrier: bool,
    /// A device on a bus (`/sys/class/net/NAME/device`) is below it: itself, or through `IFLA_LINK` or the members of a bond, bridge or
    /// team that have a carrier. Of a PPP link, which names no link below: its session is in `/proc/net/pppoe` on such a device,
    /// or its channel is a modem. A PPP link over PPTP, L2TP or SSTP has none.
    pub has_bus_device_below: bool,
    /// It, or what is below it, is wireless (`/sys/class/net/NAME/phy80211`).
    pub is_wireless: bool,
    /// It is a mobile line (`DEVTYPE=wwan`).
    pub is_mobile: bool,
    /// The lowest metric of its default routes in any table.
    pub default_route: PerFamily<Option<u32>>,
    /// It has an address that packets can be sent from. Of IPv6, one that is not link-local.
    pub has_address: PerFamily<bool>,
}

/// Why a link is not a candidate. The text completes "NAME: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `exclude` has it.
    Excluded,
    /// It is a tunnel, or of a kind that may be one.
    Tunnel(String),
    /// It is virtual.
    NoDevice,
    /// It is not up.
    NotUp,
    /// It has no carrier.
    NoCarrier,
    /// It has no address of the family.
    NoAddress,
    /// It has no default route of the family.
    NoDefaultRoute,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Excluded => "in exclude",
            Self::Tunnel(kind) => return write!(formatter, "of kind {kind}, which is, or may be, a tunnel"),
            Self::NoDevice => "virtual, with no device below it",
            Self::NotUp => "not up",
            Self::NoCarrier => "no carrier",
            Self::NoAddress => "no address of this family",
            Self::NoDefaultRoute => "no default route of this family in any table",
        })
    }
}

/// What the user asks for: globs of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auto {
    /// Links that are never chosen.
    pub exclude: Vec<String>,
    /// Links that are chosen before others, in this order.
    pub prefer: Vec<String>,
    /// Links that count as devices on a bus, such as the virtual Ethernet link of a container. Tunnels stay refused.
    pub include: Vec<String>,
}

/// The same, compiled.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    exclude: Vec<Regex>,
    prefer: Vec<Regex>,
    include: Vec<Regex>,
}

impl Selector {
    /// Compiles the globs. The error names the one that is wrong.
    pub fn new(auto: &Auto) -> Result<Self, String> {
        Ok(Self { exclude: compile(&auto.exclude)?, prefer: compile(&auto.prefer)?, include: compile(&auto.include)? })
    }

    /// Whether a link counts as a device on a bus.
    pub fn includes(&self, name: &str, kind: &str) -> bool {
        INCLUDED_KINDS.contains(&kind) && self.include.iter().any(|glob| glob.is_match(name))
    }

    /// The indexes of the links that can be chosen for a family, now or once they have what they lack; the best first. `current`: the one
    /// in use.
    pub fn candidates(&self, links: &[Link], family: Family, current: Option<u32>) -> Vec<u32> {
        let lacks = |link: &Link| match self.refusal(link, family) {
            None => Some(false),
            Some(Refusal::NotUp | Refusal::NoCarrier | Refusal::NoAddress | Refusal::NoDefaultRoute) => Some(true),
            Some(Refusal::Excluded | Refusal::Tunnel(_) | Refusal::NoDevice) => None,
        };
        let mut candidates: Vec<_> = links.iter().filter_map(|link| Some((lacks(link)?, link))).collect();
        candidates.sort_by_key(|(lacks, link)| (*lacks, self.order(link, family, current)));
        candidates.into_iter().map(|(_, link)| link.index).collect()
    }

    /// The indexes of the best links. `current` are those in use. `None`: the family is closed.
    #[cfg(test)]
    fn select(&self, links: &[Link], current: PerFamily<Option<u32>>) -> PerFamily<Option<u32>> {
        PerFamily::from_fn(|family| {
            let best = self.candidates(links, family, *current.get(family)).first().copied();
            best.filter(|best| links.iter().any(|link| link.index == *best && self.refusal(link, family).is_none()))
        })
    }

    /// Why a link cannot be chosen for a family.
    pub fn refusal(&self, link: &Link, family: Family) -> Option<Refusal> {
        // Old kernels give a PPP link no kind.
        let kind = link.kind.as_deref().filter(|kind| !kind.is_empty());
        let is_included = |kind| self.includes(&link.name, kind);
        let is_line = kind.is_none_or(|kind| LINE_KINDS.contains(&kind) || is_included(kind))
            && !ARPHRD_TUNNELS.contains(&link.arphrd);
        let refusals = [
            (self.exclude.iter().any(|glob| glob.is_match(&link.name)), Refusal::Excluded),
            (!is_line, Refusal::Tunnel(kind.map_or_else(|| format!("ARPHRD {}", link.arphrd), str::to_owned))),
            (!link.has_bus_device_below, Refusal::NoDevice),
            (!link.is_up, Refusal::NotUp),
            (!link.has_carrier, Refusal::NoCarrier),
            (!link.has_address.get(family), Refusal::NoAddress),
            (link.default_route.get(family).is_none(), Refusal::NoDefaultRoute),
        ];
        refusals.into_iter().find_map(|(applies, refusal)| applies.then_some(refusal))
    }

    /// The best link has the lowest.
    fn order(&self, link: &Link, family: Family, current: Option<u32>) -> impl Ord + use<> {
        let preference = self.prefer.iter().position(|glob| glob.is_match(&link.name)).unwrap_or(usize::MAX);
        let medium = if link.is_mobile { 2 } else { u8::from(link.is_wireless) };
        let metric = link.default_route.get(family).unwrap_or(u32::MAX);
        let is_current = current == Some(link.index);
        (preference, metric, medium, !is_current, link.index)
    }
}

fn compile<S: AsRef<str>>(globs: &[S]) -> Result<Vec<Regex>, String> {
    let one = |glob: &S| {
        let glob = glob.as_ref();
        glob::compile(glob).map_err(|problem| format!("{glob:?}: {problem}"))
    };
    globs.iter().map(one).collect()
}
