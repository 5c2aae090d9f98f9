//! A connection to rtnetlink: full readings, and requests that are acknowledged.
//!
//! **Invariant:** attributes are bytes here. The types of netlink-packet-route do not accept what the kernel accepts, such
//! as a name that is not UTF-8, and a route that they cannot read could not be copied.

use std::io;

use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike as _},
    },
};
use rtnetlink::{
    packet_core::{
        Emitable as _, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
        NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// How long the kernel may take for each part of an answer, in seconds.
const PATIENCE: i64 = 5;
/// How often a reading is started if something changed meanwhile.
const ATTEMPTS: u32 = 5;
/// How many requests are sent at a time. The answers wait in the socket's buffer, which holds more than these.
const BATCH: usize = 64;
/// `NLM_F_DUMP_INTR`: something changed during a full reading.
const INTERRUPTED: u16 = 0x10;

/// The type and the body of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

/// A request that changes something, with its `NLM_F_*` flags.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) message: Raw,
    pub(super) flags: u16,
}

/// An attribute as the kernel writes it. Its type is without flags.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Attribute {
    pub(super) kind: u16,
    pub(super) value: Vec<u8>,
}

/// A connection in the network namespace of the thread that opened it.
pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Attribute {
    pub(super) fn new(kind: u16, value: impl Into<Vec<u8>>) -> Self {
        Self { kind, value: value.into() }
    }

    pub(super) fn number(kind: u16, value: u32) -> Self {
        Self::new(kind, value.to_ne_bytes())
    }

    pub(super) fn as_number(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value.as_slice().try_into().ok()?))
    }

    /// The value up to its NUL byte.
    pub(super) fn text(&self) -> &[u8] {
        self.value.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// The attributes in these bytes; `None`: one exceeds them.
    pub(super) fn all(bytes: &[u8]) -> Option<Vec<Self>> {
        let attribute = |one: Result<_, _>| {
            one.ok()
                .map(|one: rtnetlink::packet_core::NlaBuffer<&[u8]>| Self::new(one.kind() & NLA_TYPE_MASK, one.value()))
        };
        NlasIterator::new(bytes).map(attribute).collect()
    }

    pub(super) fn emit_all(attributes: &[Self], to: &mut Vec<u8>) {
        let start = to.len();
        to.resize(start + attributes.buffer_len(), 0);
        attributes.emit(&mut to[start..]);
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        self.value.len()
    }

    fn kind(&self) -> u16 {
        self.kind
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.value);
    }

    fn is_nested(&self) -> bool {
        // Some encapsulations are refused without the flag.
        self.kind == super::hop::RTA_ENCAP
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<Raw> for NetlinkPayload<Raw> {
    fn from(message: Raw) -> Self {
        Self::InnerMessage(message)
    }
}

impl Connection {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An error does not repeat the request.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// From now on, full readings leave out what the attributes of the request exclude (Linux 4.20). An older kernel lists
    /// everything.
    pub(super) fn filter(&mut self) {
        self.socket.set_netlink_get_strict_chk(true).ok();
    }

    /// All objects of one type. If they change all the time, the last reading counts: who follows the changes reads again.
    pub(super) fn list(&mut self, request: &Raw, answer: u16) -> io::Result<Vec<Vec<u8>>> {
        let mut attempt = 1;
        loop {
            let (found, is_certain) = self.list_once(request, answer)?;
            if is_certain || attempt == ATTEMPTS {
                return Ok(found);
            }
            attempt += 1;
        }
    }

    fn list_once(&mut self, request: &Raw, answer: u16) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let sequence = self.send(&[Request { message: request.clone(), flags: NLM_F_DUMP }])?;
        let (mut found, mut is_certain) = (Vec::new(), true);
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                is_certain &= message.header.flags & INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(one) if one.kind == answer => found.push(one.body),
                    NetlinkPayload::Done(done) if done.code < 0 => return Err(errno(done.code)),
                    NetlinkPayload::Done(_) => return Ok((found, is_certain)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// The answer to a request for one object.
    pub(super) fn get(&mut self, request: &Raw, answer: u16) -> io::Result<Vec<u8>> {
        let sequence = self.send(&[Request { message: request.clone(), flags: 0 }])?;
        let mut found = None;
        loop {
            for message in self.receive()?.into_iter().filter(|one| one.header.sequence_number == sequence) {
                match message.payload {
                    NetlinkPayload::InnerMessage(one) if one.kind == answer => found = Some(one.body),
                    // The acknowledgement comes last.
                    NetlinkPayload::Error(end) if end.code.is_none() => {
                        return found.ok_or_else(|| io::Error::other("the kernel acknowledged without an answer"));
                    }
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Carries out requests in this order. An error does not stop those behind it.
    pub(super) fn change(&mut self, requests: &[Request]) -> io::Result<Vec<Result<(), Errno>>> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            let last = self.send(batch)?;
            let first = last.wrapping_sub(u32::try_from(batch.len() - 1).unwrap_or_default());
            let mut answers = vec![None; batch.len()];
            while answers.iter().any(Option::is_none) {
                for message in self.receive()? {
                    let NetlinkPayload::Error(error) = message.payload else { continue };
                    let position = message.header.sequence_number.wrapping_sub(first);
                    let answer = usize::try_from(position).ok().and_then(|position| answers.get_mut(position));
                    if let Some(answer) = answer {
                        *answer = Some(match error.raw_code() {
                            0 => Ok(()),
                            code => Err(Errno::from_raw(-code)),
                        });
                    }
                }
            }
            results.extend(answers.into_iter().flatten());
        }
        Ok(results)
    }

    /// Sends requests; the result is the number of the last one.
    fn send(&mut self, requests: &[Request]) -> io::Result<u32> {
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            let acknowledge = if request.flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
            header.flags = NLM_F_REQUEST | acknowledge | request.flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, request.message.clone().into());
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..start + message.buffer_len()]);
        }
        self.socket.send(&datagram, 0)?;
        Ok(self.sequence)
    }

    /// The messages of the next datagram.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<Raw>>> {
        let datagram = loop {
            match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                received => break received?.0,
            }
        };
        decode(&datagram)
    }
}

/// The messages of a datagram.
pub(super) fn decode(mut datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<Raw>>> {
    let mut messages = Vec::new();
    while !datagram.is_empty() {
        let length = NetlinkBuffer::new_checked(datagram).map_err(io::Error::other)?.length();
        messages.push(NetlinkMessage::deserialize(datagram).map_err(io::Error::other)?);
        let length = usize::try_from(length).map_err(io::Error::other)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(messages)
}

fn errno(code: i32) -> io::Error {
    Errno::from_raw(-code).into()
}
