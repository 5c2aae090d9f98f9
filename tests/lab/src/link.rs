//! Interfaces, addresses and routes of a [`Netns`], by name.
//!
//! **Invariant:** an interface is created inside its namespace, never in the caller's namespace and then moved. It is
//! not an error if the requested state exists already.

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
    sys,
    wait::wait_for,
};
use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, Prop, State},
    route::{RouteScope, RouteType},
    rule::RuleAction,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVrf, LinkWireguard, RouteMessageBuilder};
use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

/// Before the rule of the main table.
const MARK_RULE: u32 = 1000;

/// Makes a veth pair, one end in each namespace, both down.
pub fn create_veth(a: &Netns, a_link: &str, b: &Netns, b_link: &str) -> Result<()> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name(b_link).setns_by_fd(b.fd().as_raw_fd()).build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(a_link)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    a.rtnetlink(&format!("create veth {a_link}/{b_link} between {a} and {b}"), |handle| async move {
        handle.link().add(pair).execute().await
    })
}

/// A tun interface. It is removed on drop.
#[derive(Debug)]
pub struct Tun(File);

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Netns {
    /// Makes a tun interface that is down: a link without a link layer, like that of a VPN.
    pub fn add_tun(&self, link: &str) -> Result<Tun> {
        let doing = || format!("create tun {link} in {self}");
        self.run(|| {
            let file = File::options().read(true).write(true).open("/dev/net/tun")?;
            sys::name_tun(&file, link)?;
            Ok::<_, std::io::Error>(Tun(file))
        })?
        .doing(doing)
    }

    /// The index of an interface, by its name or an alternative name; none if it does not exist.
    pub fn link_index(&self, link: &str) -> Result<Option<u32>> {
        let is_it = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::IfName(name) => name == link,
            LinkAttribute::PropList(props) => props.contains(&Prop::AltIfName(link.to_owned())),
            _ => false,
        };
        let found = self.links()?.into_iter().find(|message| message.attributes.iter().any(is_it));
        Ok(found.map(|message| message.header.index))
    }

    /// Like [`Netns::link_index`], with an error if the interface does not exist.
    pub fn ifindex(&self, link: &str) -> Result<u32> {
        self.link_index(link)?.ok_or_else(|| Error::NoLink { link: link.to_owned(), netns: self.name().to_owned() })
    }

    /// The names of all interfaces, by index.
    pub fn link_names(&self) -> Result<BTreeMap<u32, String>> {
        let name = |message: LinkMessage| {
            let index = message.header.index;
            message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some((index, name)),
                _ => None,
            })
        };
        Ok(self.links()?.into_iter().filter_map(name).collect())
    }

    /// Sets an interface up.
    pub fn set_up(&self, link: &str) -> Result<()> {
        self.change(link, &format!("set {link} up in {self}"), LinkMessageBuilder::up)
    }

    /// Sets an interface down.
    pub fn set_down(&self, link: &str) -> Result<()> {
        self.change(link, &format!("set {link} down in {self}"), LinkMessageBuilder::down)
    }

    /// Renames an interface. One that is up cannot be renamed before Linux 6.2 (EBUSY).
    pub fn rename_link(&self, link: &str, new: &str) -> Result<()> {
        self.change(link, &format!("rename {link} to {new} in {self}"), |message| message.name(new))
    }

    /// Moves an interface to another namespace. It keeps its index if no other has it there.
    pub fn move_link(&self, link: &str, to: &Netns) -> Result<()> {
        let fd = to.fd().as_raw_fd();
        self.change(link, &format!("move {link} from {self} to {to}"), |message| message.setns_by_fd(fd))
    }

    /// Adds an alternative name to an interface.
    pub fn add_altname(&self, link: &str, altname: &str) -> Result<()> {
        let index = self.ifindex(link)?;
        self.rtnetlink(&format!("add altname {altname} to {link} in {self}"), |handle| async move {
            handle.link().property_add(index).alt_ifname(&[altname]).execute().await
        })
    }

    /// Deletes an interface and its veth peer.
    pub fn delete_link(&self, link: &str) -> Result<()> {
        let index = self.ifindex(link)?;
        self.rtnetlink(
            &format!("delete {link} in {self}"),
            |handle| async move { handle.link().del(index).execute().await },
        )
    }

    /// Waits until the kernel has registered that both ends are up. Until then it may drop packets. Since Linux 6.8 a
    /// query for this interface triggers that; otherwise it takes up to a second.
    pub fn wait_running(&self, link: &str) -> Result<()> {
        let index = self.ifindex(link)?;
        let what = format!("{link} in {self} is running");
        let is_running = || {
            let message = self.rtnetlink(&what, |handle| async move {
                std::pin::pin!(handle.link().get().match_index(index).execute()).try_next().await
            })?;
            Ok(message.is_some_and(|message| message.attributes.contains(&LinkAttribute::OperState(State::Up))))
        };
        wait_for(&what, Duration::from_secs(5), || is_running().map(|running| running.then_some(())).transpose())?
    }

    /// Adds an address that is usable at once (IPv6: without duplicate address detection).
    pub fn add_address(&self, link: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let index = self.ifindex(link)?;
        let doing = format!("add address {address}/{prefix_len} to {link} in {self}");
        self.rtnetlink(&doing, |handle| async move {
            let mut request = handle.address().add(index, address, prefix_len).replace();
            if address.is_ipv6() {
                let message = request.message_mut();
                message.header.flags |= AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        })
    }

    /// Adds the default route of the gateway's family.
    pub fn add_default_route(&self, gateway: IpAddr, link: &str, metric: u32) -> Result<()> {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.add_route(any, 0, Some(gateway), link, metric)
    }

    /// Adds a route. Without a gateway, the destinations are neighbours on the link.
    pub fn add_route(
        &self,
        to: IpAddr,
        prefix_len: u8,
        gateway: Option<IpAddr>,
        link: &str,
        metric: u32,
    ) -> Result<()> {
        let doing = format!("add route to {to}/{prefix_len} on {link} in {self}");
        let invalid = |e: &dyn std::fmt::Display| Error::Invalid { doing: doing.clone(), reason: e.to_string() };
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, prefix_len)
            .map_err(|e| invalid(&e))?
            .output_interface(self.ifindex(link)?)
            .priority(metric);
        route = match gateway {
            Some(gateway) => route.gateway(gateway).map_err(|e| invalid(&e))?,
            None => route.scope(RouteScope::Link),
        };
        self.rtnetlink(&doing, |handle| async move { handle.route().add(route.build()).replace().execute().await })
    }

    /// Drops all packets to an address, or does so no longer.
    pub fn black_hole(&self, to: IpAddr, is_on: bool) -> Result<()> {
        let doing = format!("change the black hole for {to} in {self}");
        let prefix_len = if to.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, prefix_len)
            .map_err(|e| Error::Invalid { doing: doing.clone(), reason: e.to_string() })?
            .kind(RouteType::BlackHole)
            .build();
        self.rtnetlink(&doing, |handle| async move {
            if is_on {
                handle.route().add(route).replace().execute().await
            } else {
                handle.route().del(route).execute().await
            }
        })
    }

    /// Makes a VRF that is up and uses this table. EOPNOTSUPP: the kernel has no VRF support.
    pub fn add_vrf(&self, vrf: &str, table: u32) -> Result<()> {
        let link = LinkVrf::new(vrf, table).up().build();
        self.rtnetlink(&format!("create VRF {vrf} in {self}"), |handle| async move {
            handle.link().add(link).execute().await
        })
    }

    /// Makes a WireGuard interface that is down and has no keys. EOPNOTSUPP: the kernel has no WireGuard support.
    pub fn add_wireguard(&self, link: &str) -> Result<()> {
        let message = LinkWireguard::new(link).build();
        self.rtnetlink(&format!("create WireGuard interface {link} in {self}"), |handle| async move {
            handle.link().add(message).execute().await
        })
    }

    /// Puts a link into a VRF or bridge. The link goes down and up for that, and loses its routes and its IPv6
    /// addresses.
    pub fn set_master(&self, link: &str, master: &str) -> Result<()> {
        let master = self.ifindex(master)?;
        self.change(link, &format!("set the master of {link} in {self}"), |message| message.controller(master))
    }

    /// Adds a default route to a routing table.
    pub fn add_default_route_to(&self, table: u32, gateway: IpAddr, link: &str) -> Result<()> {
        let doing = format!("add a default route on {link} to table {table} in {self}");
        let index = self.ifindex(link)?;
        let route = match gateway {
            IpAddr::V4(gateway) => {
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).table_id(table).build()
            }
            IpAddr::V6(gateway) => {
                RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(index).table_id(table).build()
            }
        };
        self.rtnetlink(&doing, |handle| async move { handle.route().add(route).replace().execute().await })
    }

    /// Routes packets with the mark by another routing table, with the default route of the gateway's family.
    pub fn add_marked_route(&self, mark: u32, table: u32, gateway: IpAddr, link: &str) -> Result<()> {
        let doing = format!("route mark {mark:#x} by {link} in {self}");
        let index = self.ifindex(link)?;
        self.rtnetlink(&doing, |handle| async move {
            let rule =
                handle.rule().add().fw_mark(mark).table_id(table).priority(MARK_RULE).action(RuleAction::ToTable);
            match gateway {
                IpAddr::V4(gateway) => {
                    rule.v4().execute().await?;
                    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
                    handle.route().add(route.output_interface(index).table_id(table).build()).execute().await
                }
                IpAddr::V6(gateway) => {
                    rule.v6().execute().await?;
                    let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway);
                    handle.route().add(route.output_interface(index).table_id(table).build()).execute().await
                }
            }
        })
    }

    fn change(
        &self,
        link: &str,
        doing: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message = change(LinkUnspec::new_with_index(self.ifindex(link)?)).build();
        self.rtnetlink(doing, |handle| async move { handle.link().change(message).execute().await })
    }

    fn links(&self) -> Result<Vec<LinkMessage>> {
        self.rtnetlink(&format!("list interfaces in {self}"), |handle| async move {
            handle.link().get().execute().try_collect().await
        })
    }
}
