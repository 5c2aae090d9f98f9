//! Reads all links of one network namespace.
//!
//! **Invariant:** only the reading's own thread waits for the kernel. The kernel answers after other changes of links in
//! progress.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::sync::oneshot;

use super::{
    Change, Error, Table,
    message::{self, Device, Message, Received},
};

/// How long the kernel may take for each part of an answer, in seconds.
const PATIENCE: i64 = 5;
/// Larger than any one part of the kernel's answer.
const PART: usize = 64 * 1024;
/// How often a reading is started if its result is not certain.
const ATTEMPTS: u32 = 3;

/// Reads the links of the network namespace it was made in.
#[derive(Clone)]
pub(super) struct Reader(Arc<Socket>);

/// The result of a reading that was started.
pub(super) type Reading = oneshot::Receiver<Result<Links, Error>>;

/// All links, and whether the list is certain. If not, links changed during the reading, or a part of the answer was lost.
pub(super) struct Links {
    pub(super) table: Table,
    pub(super) certain: bool,
}

impl Reader {
    pub(super) fn new() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
            Ok(Self(Arc::new(socket)))
        };
        open().map_err(Error::Socket)
    }

    /// Starts a reading on a separate thread. A reader may run only one reading at a time.
    pub(super) fn start(&self) -> Result<Reading, Error> {
        let (done, reading) = oneshot::channel();
        let reader = self.clone();
        let read = move || drop(done.send(reader.read().map_err(Error::Read)));
        thread::Builder::new().name("links".to_owned()).spawn(read).map_err(Error::Read)?;
        Ok(reading)
    }

    fn read(&self) -> io::Result<Links> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let links = self.read_once(attempt)?;
            if links.certain || attempt == ATTEMPTS {
                return Ok(links);
            }
        }
    }

    /// The index and name of each link, and what it is; with `index`, of one link, if it exists.
    pub(super) fn devices(&self, index: Option<u32>) -> io::Result<Vec<(u32, String, Device)>> {
        let sequence = sequence();
        let request = index.map_or_else(|| message::full_reading(sequence), |index| message::one_link(sequence, index));
        self.0.send(&request, 0)?;
        let (mut devices, mut buffer) = (Vec::new(), Vec::with_capacity(PART));
        loop {
            for received in self.receive(&mut buffer)?.into_iter().filter(|one| one.sequence == sequence) {
                match received.message {
                    Message::Link(Change::Present(index, names)) => devices.push((index, names.name, received.device)),
                    Message::Done | Message::Failed(libc::ENODEV) => return Ok(devices),
                    Message::Failed(errno) => return Err(io::Error::from(Errno::from_raw(errno))),
                    Message::Link(_) | Message::Other => {}
                }
            }
            if index.is_some() && !devices.is_empty() {
                return Ok(devices);
            }
        }
    }

    /// The messages of the next datagram.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Vec<Received>> {
        let length = loop {
            buffer.clear();
            match self.0.recv(buffer, libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        let received = (length <= buffer.len()).then(|| message::decode(buffer)).flatten();
        received.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be decoded"))
    }

    fn read_once(&self, attempt: u32) -> io::Result<Links> {
        // Each attempt and each reading uses another number, so messages of an earlier one are not taken for an answer.
        let sequence = sequence().wrapping_add(attempt);
        self.0.send(&message::full_reading(sequence), 0)?;
        let (mut table, mut certain) = (Table::default(), true);
        let mut buffer = Vec::with_capacity(PART);
        loop {
            let received = match self.receive(&mut buffer) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    certain = false;
                    continue;
                }
                received => received?,
            };
            for received in received.into_iter().filter(|one| one.sequence == sequence) {
                certain &= !received.interrupted;
                match received.message {
                    Message::Link(change @ Change::Present(..)) => drop(table.apply(change)),
                    Message::Done => return Ok(Links { table, certain }),
                    Message::Failed(errno) => return Err(io::Error::from(Errno::from_raw(errno))),
                    Message::Link(_) | Message::Other => {}
                }
            }
        }
    }
}

/// Differs from one reading to the next.
fn sequence() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(ATTEMPTS + 1, Ordering::Relaxed)
}

/// Reads all links of the calling thread's network namespace once.
pub async fn read() -> Result<Table, Error> {
    let reading = Reader::new()?.start()?;
    reading.await.unwrap_or(Err(Error::Ended)).map(|links| links.table)
}
