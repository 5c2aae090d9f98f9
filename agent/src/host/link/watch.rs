//! Follows the links of one network namespace: a full reading, then every change that the kernel reports.
//!
//! The queue of reports is the buffer of the socket, which the kernel limits. A few reports are applied one by one. If more
//! wait, if the kernel dropped some, or if one cannot be decoded, all links are read again.
//!
//! **Invariant:** no report is lost: it is in the table, or a full reading starts after it. Only one reading runs at a time.

use std::{io, time::Duration};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

use super::{
    Change, Error, Table,
    message::{self, Message},
    reading::{Reader, Reading},
};

/// How many changes are applied one by one. For more changes, a full reading is cheaper.
const ONE_BY_ONE: usize = 16;
/// How many datagrams are received at a time. In between, the caller can handle other events.
const AT_A_TIME: usize = 512;
/// Larger than a report, except for a link with dozens of alternative names.
const REPORT: usize = 8 * 1024;
/// The delay before the next reading, after a reading that failed or is not certain.
const PATIENCE: Duration = Duration::from_secs(1);

/// Follows the links of the network namespace it was made in.
pub struct Watch {
    reports: AsyncFd<Socket>,
    buffer: Vec<u8>,
    reader: Reader,
    /// A full reading in progress: at the start, and after reports that were not applied.
    reading: Option<Reading>,
    /// When the next reading starts, after one that failed or is not certain.
    retry: Option<Instant>,
    /// `None`: not read yet.
    table: Option<Table>,
}

/// What the socket held.
enum Reports {
    Changes(Vec<Change>),
    /// Too many changes, or unknown ones.
    Any,
}

impl Watch {
    /// Subscribes, and starts a full reading. Needs a tokio runtime.
    pub fn new() -> Result<Self, Error> {
        let subscribe = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(libc::RTNLGRP_LINK)?;
            socket.set_non_blocking(true)?;
            // SAFETY: the socket stays open and unchanged while the `AsyncFd` owns it.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
        };
        let reports = subscribe().map_err(Error::Socket)?;
        let reader = Reader::new()?;
        let reading = Some(reader.start()?);
        Ok(Self { reports, buffer: Vec::with_capacity(REPORT), reader, reading, retry: None, table: None })
    }

    /// Waits until links differ from the last result; the first time, until they have been read. May be cancelled. After an
    /// error the caller can call it again; it then reads all links again.
    pub async fn next(&mut self) -> Result<&Table, Error> {
        loop {
            if self.take_in().await? {
                break;
            }
        }
        self.table.as_ref().ok_or(Error::Ended)
    }

    /// Takes one step; true if links differ.
    async fn take_in(&mut self) -> Result<bool, Error> {
        if let Some(retry) = self.retry {
            tokio::time::sleep_until(retry).await;
            self.retry = None;
            self.read_again()?;
        }
        if let Some(reading) = &mut self.reading {
            let read = reading.await.unwrap_or(Err(Error::Ended));
            self.reading = None;
            let read = read.inspect_err(|_| self.retry = Some(Instant::now() + PATIENCE))?;
            if !read.certain {
                self.retry = Some(Instant::now() + PATIENCE);
            }
            let read = read.table;
            if let Some(table) = &mut self.table {
                return Ok(table.apply(Change::All(read)));
            }
            self.table = Some(read);
            return Ok(true);
        }
        let mut ready = self.reports.readable().await.map_err(Error::Socket)?;
        let buffer = &mut self.buffer;
        match ready.try_io(|socket| receive(socket.get_ref(), buffer)) {
            Ok(Ok(Reports::Changes(changes))) => {
                let table = self.table.get_or_insert_default();
                Ok(changes.into_iter().fold(false, |differs, change| table.apply(change) | differs))
            }
            Ok(Ok(Reports::Any)) => self.read_again().map(|()| false),
            Ok(Err(error)) => {
                self.retry = Some(Instant::now() + PATIENCE);
                Err(Error::Socket(error))
            }
            Err(_nothing_there) => Ok(false),
        }
    }

    fn read_again(&mut self) -> Result<(), Error> {
        let reading = self.reader.start().inspect_err(|_| self.retry = Some(Instant::now() + PATIENCE));
        self.reading = Some(reading?);
        Ok(())
    }
}

/// Receives waiting reports. The error is `WouldBlock` if there are none.
fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<Reports> {
    let mut changes = Some(Vec::new());
    for received in 0..AT_A_TIME {
        buffer.clear();
        let (length, sender) = match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && received > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The kernel dropped reports because they were not read fast enough.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                changes = None;
                continue;
            }
            Err(error) => return Err(error),
        };
        // Ignore messages that other processes send to this socket.
        if sender.port_number() != 0 {
            continue;
        }
        if let Some(known) = &mut changes {
            let messages = (length <= buffer.len()).then(|| message::decode(buffer)).flatten();
            match messages {
                Some(messages) if known.len() < ONE_BY_ONE => {
                    known.extend(messages.into_iter().filter_map(|received| match received.message {
                        Message::Link(change) => Some(change),
                        _ => None,
                    }));
                }
                _ => changes = None,
            }
        }
    }
    Ok(changes.map_or(Reports::Any, Reports::Changes))
}
