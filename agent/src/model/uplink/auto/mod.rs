//! `interface = "auto"`: the best line that is not a tunnel, for each family.
//!
//! A candidate is up, with carrier, address and default route, and has a device on a bus below it, directly or through
//! VLANs, bonds, bridges and the like. The order of candidates is: healthy, `prefer`, metric, wired before wireless before
//! mobile, the current one, lowest index.
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
    /// A process of the policy's own cgroups holds it open, as a VPN or a proxy does with its tun.
    pub is_held_open_by_own_cgroup: bool,
    /// Nothing is known against it.
    pub is_healthy: PerFamily<bool>,
}

/// Why a link is not a candidate. The text completes "NAME: ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `exclude` has it.
    Excluded,
    /// The policy's own programs hold it open.
    OwnTunnel,
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
            Self::OwnTunnel => "held open by a program of the policy itself",
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
#[derive(Clone, Debug, Default)]
pub struct Selector {
    exclude: Vec<Regex>,
    prefer: Vec<Regex>,
}

impl Selector {
    /// Compiles the globs. The error names the one that is wrong.
    pub fn new<S: AsRef<str>>(exclude: &[S], prefer: &[S]) -> Result<Self, String> {
        Ok(Self { exclude: compile(exclude)?, prefer: compile(prefer)? })
    }

    /// The indexes of the best links. `current` are those in use. `None`: the family is closed.
    pub fn select(&self, links: &[Link], current: PerFamily<Option<u32>>) -> PerFamily<Option<u32>> {
        PerFamily::from_fn(|family| {
            let candidates = links.iter().filter(|link| self.refusal(link, family).is_none());
            let best = candidates.min_by_key(|link| self.order(link, family, *current.get(family)));
            best.map(|link| link.index)
        })
    }

    /// Why a link cannot be chosen for a family.
    pub fn refusal(&self, link: &Link, family: Family) -> Option<Refusal> {
        // Old kernels give a PPP link no kind.
        let kind = link.kind.as_deref().filter(|kind| !kind.is_empty());
        let is_line = kind.is_none_or(|kind| LINE_KINDS.contains(&kind)) && !ARPHRD_TUNNELS.contains(&link.arphrd);
        let refusals = [
            (self.exclude.iter().any(|glob| glob.is_match(&link.name)), Refusal::Excluded),
            (link.is_held_open_by_own_cgroup, Refusal::OwnTunnel),
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
        (!link.is_healthy.get(family), preference, metric, medium, !is_current, link.index)
    }
}

fn compile<S: AsRef<str>>(globs: &[S]) -> Result<Vec<Regex>, String> {
    let one = |glob: &S| {
        let glob = glob.as_ref();
        glob::compile(glob).map_err(|problem| format!("{glob:?}: {problem}"))
    };
    globs.iter().map(one).collect()
}
