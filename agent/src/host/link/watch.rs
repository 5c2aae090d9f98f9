//! Links over rtnetlink: a full reading, then every change as the kernel reports it.

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, Prop},
};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};

use super::{Change, Error, Table, table::Names};

type Messages = futures_util::stream::BoxStream<'static, NetlinkPayload<RouteNetlinkMessage>>;

/// Follows the links of the network namespace it was made in.
pub struct Watch {
    handle: rtnetlink::Handle,
    messages: Messages,
    /// A full reading under way: at the start, and after lost events. Kept here so that `next` can be cancelled; the kernel
    /// answers EBUSY to a second one on the same socket.
    reading: Option<BoxFuture<'static, Result<Table, Error>>>,
}

impl Watch {
    /// Subscribes. Needs a tokio runtime. The first change is a full table.
    pub fn new() -> Result<Self, Error> {
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(Error::Socket)?;
        tokio::spawn(connection);
        let reading = Some(read_with(handle.clone()).boxed());
        Ok(Self { handle, messages: messages.map(|(message, _)| message.payload).boxed(), reading })
    }

    /// Waits for the next change. May be cancelled.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(reading) = &mut self.reading {
                let table = reading.await;
                self.reading = None;
                return table.map(Change::All);
            }
            match self.messages.next().await.ok_or(Error::Ended)? {
                // A bridge reports its ports under its own family, without their names, also when they only leave it.
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) if link.header.interface_family != AddressFamily::Unspec => {}
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    return Ok(Change::Present(link.header.index, names(link)));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                    return Ok(Change::Gone(link.header.index));
                }
                // The kernel dropped events because they were not read fast enough.
                NetlinkPayload::Overrun(_) => self.reading = Some(read_with(self.handle.clone()).boxed()),
                _ => {}
            }
        }
    }
}

/// Reads all links of the calling thread's network namespace once.
pub async fn read() -> Result<Table, Error> {
    let (connection, handle, _messages) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let table = read_with(handle).await;
    connection.abort();
    table
}

async fn read_with(handle: rtnetlink::Handle) -> Result<Table, Error> {
    let mut table = Table::default();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = links.try_next().await.map_err(Error::Netlink)? {
        table.apply(Change::Present(link.header.index, names(link)));
    }
    Ok(table)
}

fn names(link: LinkMessage) -> Names {
    let mut names = Names::default();
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => names.name = name,
            LinkAttribute::PropList(properties) => {
                names.alternative.extend(properties.into_iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    names
}
