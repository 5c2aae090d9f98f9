//! The resolvers that systemd-resolved has for each link, by D-Bus (org.freedesktop.resolve1).
//!
//! systemd-networkd and NetworkManager give it the resolvers of their links, also those of DHCP.
//!
//! **Invariant:** reads only, and starts no service. While nothing answers, no link has a resolver.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use zbus::{
    Connection, Proxy,
    proxy::{CacheProperties, MethodFlags},
    zvariant::OwnedValue,
};

/// The resolvers of links, by the index of the link.
pub type LinkResolvers = BTreeMap<u32, Vec<IpAddr>>;

const SERVICE: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The delay before the bus is looked for again. The daemon starts before it.
const RETRY_DELAY: Duration = Duration::from_secs(2);
/// The delay doubles up to this one, for hosts that have no bus.
const LONGEST_RETRY_DELAY: Duration = Duration::from_mins(1);
/// How long a command waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Queued changes for the daemon's loop, which takes them immediately.
const WAITING: usize = 4;

/// Whether systemd-resolved runs here.
pub fn runs() -> bool {
    Path::new("/run/systemd/resolve").is_dir()
}

/// The resolvers now; none if nothing answers.
pub async fn read() -> LinkResolvers {
    known().await.unwrap_or_else(|error| {
        log::warn!("the resolvers of links cannot be read from systemd-resolved: {error}");
        LinkResolvers::new()
    })
}

/// The resolvers now. The error says why they are not known.
pub async fn known() -> Result<LinkResolvers, String> {
    let read = async {
        let connection = Connection::system().await?;
        ask(&proxy(&connection, PROPERTIES).await?).await
    };
    let read = tokio::time::timeout(PATIENCE, read).await.map_err(|_elapsed| "it did not answer".to_owned())?;
    read.map_err(|error| error.to_string())
}

/// Follows the resolvers on a separate thread, while they are `asked` for. The thread ends when the sender is dropped.
pub(crate) fn watch(mut asked: watch::Receiver<bool>) -> io::Result<mpsc::Receiver<Arc<LinkResolvers>>> {
    let (changes, receiver) = mpsc::channel(WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let follow = async move {
        while asked.wait_for(|asked| *asked).await.is_ok() {
            let news = News { changes: changes.clone(), last: None };
            tokio::select! {
                () = keep_following(news) => {}
                _ = asked.wait_for(|asked| !*asked) => {}
            }
        }
    };
    thread::Builder::new().name("resolvers".to_owned()).spawn(move || runtime.block_on(follow))?;
    Ok(receiver)
}

/// Follows the resolvers until the receiver is dropped.
async fn keep_following(mut news: News) {
    let mut delay = RETRY_DELAY;
    while !news.changes.is_closed() {
        let started = Instant::now();
        if let Err(error) = follow(&mut news).await {
            log::debug!("follow the resolvers of links: {error}; trying again");
        }
        news.send(LinkResolvers::new()).await;
        // It has worked for a while.
        if started.elapsed() > LONGEST_RETRY_DELAY {
            delay = RETRY_DELAY;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_RETRY_DELAY);
    }
}

/// What was sent last, and where to.
struct News {
    changes: mpsc::Sender<Arc<LinkResolvers>>,
    last: Option<LinkResolvers>,
}

impl News {
    /// Sends the resolvers if they have changed. The receiver is closed when the daemon ends.
    async fn send(&mut self, resolvers: LinkResolvers) {
        if self.last.as_ref() != Some(&resolvers) {
            self.last = Some(resolvers.clone());
            let _ = self.changes.send(Arc::new(resolvers)).await;
        }
    }
}

/// Sends the resolvers now, and whenever they change, until the bus or the receiver is gone.
async fn follow(news: &mut News) -> zbus::Result<()> {
    let connection = Connection::system().await?;
    let properties = proxy(&connection, PROPERTIES).await?;
    // Before the first reading, so that no change is missed.
    let mut changed = properties.receive_signal("PropertiesChanged").await?;
    let mut owner = properties.receive_owner_changed().await?;
    loop {
        let resolvers = ask(&properties).await.unwrap_or_else(|error| {
            log::debug!("read the resolvers of links: {error}");
            LinkResolvers::new()
        });
        news.send(resolvers).await;
        let is_open = tokio::select! {
            changed = changed.next() => changed.is_some(),
            owner = owner.next() => owner.is_some(),
            () = news.changes.closed() => return Ok(()),
        };
        if !is_open {
            return Ok(());
        }
    }
}

async fn proxy<'a>(connection: &Connection, interface: &'a str) -> zbus::Result<Proxy<'a>> {
    zbus::proxy::Builder::new(connection)
        .destination(SERVICE)?
        .path(OBJECT)?
        .interface(interface)?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

/// Asks for the resolvers of all links at once: index, family and address of each.
async fn ask(properties: &Proxy<'_>) -> zbus::Result<LinkResolvers> {
    let flags = MethodFlags::NoAutoStart.into();
    let answer: Option<OwnedValue> = properties.call_with_flags("Get", flags, &(MANAGER, "DNS")).await?;
    let Some(answer) = answer else { return Ok(LinkResolvers::new()) };
    let servers = Vec::<(i32, i32, Vec<u8>)>::try_from(answer)?;
    let mut resolvers = LinkResolvers::new();
    for (link, _, address) in servers {
        // 0 is for the servers of no link.
        let Ok(link @ 1..) = u32::try_from(link) else { continue };
        if let Some(address) = address_of(&address) {
            resolvers.entry(link).or_default().push(address);
        }
    }
    Ok(resolvers)
}

/// An address of the length of its family.
fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::address_of;

    #[test]
    fn addresses_of_both_families() {
        assert_eq!(address_of(&[10, 64, 0, 1]), "10.64.0.1".parse().ok());
        let v6 = "2001:db8::53".parse::<std::net::Ipv6Addr>().expect("an address");
        assert_eq!(address_of(&v6.octets()), Some(v6.into()));
        assert_eq!(address_of(&[1, 2, 3]), None);
    }
}
