//! Probes: one question by one link, in one family, and whether it was answered in time.
//!
//! A probe is sent as the policy's own packets are: from a socket that is bound to the member, or that has its mark. Then it
//! tests what these packets depend on, rules and tables included.
//!
//! Before it sends, a probe asks the kernel for the route, because a bound IPv4 socket sends without one, and anybody on
//! the link who answers ARP would be taken for the target.
//!
//! **Invariant:** no packet of a probe leaves by another link than the one asked, and no answer to another question counts.
//! The deadline holds for the whole probe. Nothing blocks the runtime's thread.

mod dns;
mod failure;
mod http;
mod icmp;
mod round;
mod socket;
mod stream;
mod tls;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

pub use failure::Failure;
pub use round::{Outcome, Round, Verdict, ask};
pub use tls::Trust;

use crate::model::uplink::{Family, probe::Target};

/// By what a probe is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// The family.
    pub family: Family,
    /// The index of the member's link, in the network namespace of the runtime's thread.
    pub ifindex: u32,
    /// How the link is chosen.
    pub method: Method,
    /// The member's name server, for targets with a name. One of the other family is as none.
    pub resolver: Option<SocketAddr>,
}

/// How a socket comes to its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It is bound (`SO_BINDTOIFINDEX`, Linux 5.1).
    Bind,
    /// It has this mark, and rules lead to a table of the link (`SO_MARK`). A probe is bound as well, and only if the mark
    /// alone leads to the link.
    Mark(u32),
}

/// Asks a target once. Gives the time from the question to the answer, without looking for a route or a name.
///
/// It needs a tokio runtime with I/O and time, in whose network namespace it asks. It needs CAP_NET_RAW for ICMP where
/// `net.ipv4.ping_group_range` excludes the process, and CAP_NET_ADMIN, or CAP_NET_RAW from Linux 5.17, for marks.
pub async fn probe(target: &Target, via: &Via, timeout: Duration) -> Result<Duration, Failure> {
    probe_trusting(target, via, timeout, &Trust::System).await
}

/// Like [`probe`], with the certificates that `https` accepts.
pub async fn probe_trusting(target: &Target, via: &Via, timeout: Duration, trust: &Trust) -> Result<Duration, Failure> {
    if !target.is_for(via.family) {
        return Err(Failure::OtherFamily);
    }
    let deadline = Instant::now() + timeout;
    let ask = async {
        match target {
            Target::Gateway => icmp::gateway(via).await,
            Target::Icmp(address) => {
                socket::check(via, *address).await?;
                icmp::ask(via, *address).await
            }
            Target::Dns(server) => dns::ask(via, *server).await,
            Target::Tcp(to) => {
                socket::check(via, to.ip()).await?;
                let started = Instant::now();
                stream::connect(via, *to).await.map(|_| started.elapsed())
            }
            Target::Http(url) => http::ask(via, url, trust).await,
        }
    };
    timeout_at(deadline.into(), ask).await.unwrap_or(Err(Failure::Timeout))
}
