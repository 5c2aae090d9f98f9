//! Frames: two connections on one socket, and the ttrpc messages on each.
//!
//! A frame is the connection's number and a length, both 32 bits with the highest byte first, and that many bytes. The
//! concatenated bytes of one connection are messages: length and stream, 32 bits each, type and flags, 8 bits each, and the
//! body.
//!
//! **Invariant:** a length above [`MESSAGE_LIMIT`] is an error, so at most a message for each connection and one frame are
//! kept. The end of a frame need not be the end of a message.

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::Error;

/// The maximum length of a message's body, as in ttrpc.
pub(super) const MESSAGE_LIMIT: usize = 4 << 20;
/// The size of a message's header: length, stream, type and flags.
const MESSAGE_HEADER: usize = 10;
/// The size of a frame's header: connection and length.
const FRAME_HEADER: usize = 8;
/// The maximum length of a frame's content.
const FRAME_LIMIT: usize = MESSAGE_HEADER + MESSAGE_LIMIT;

/// A connection, by its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The runtime calls the plugin.
    Plugin,
    /// The plugin calls the runtime.
    Runtime,
}

impl Connection {
    fn number(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }
}

impl TryFrom<u32> for Connection {
    type Error = Error;

    fn try_from(number: u32) -> Result<Self, Error> {
        match number {
            1 => Ok(Self::Plugin),
            2 => Ok(Self::Runtime),
            other => Err(Error::UnknownConnection(other)),
        }
    }
}

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// The answer to a call, with the same stream.
    Response,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = Error;

    fn try_from(number: u8) -> Result<Self, Error> {
        match number {
            1 => Ok(Self::Request),
            2 => Ok(Self::Response),
            other => Err(Error::UnknownKind(other)),
        }
    }
}

/// A complete message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The connection that carried it.
    pub connection: Connection,
    /// The call that it belongs to.
    pub stream: u32,
    /// Its type: call or answer.
    pub kind: Kind,
    /// The `Request` or `Response` of ttrpc, encoded.
    pub body: BytesMut,
}

/// The bytes of one message. Header and body are separate frames: the Go implementation reads a frame in one piece, and fails
/// if it asked for less.
pub fn encode(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(2 * FRAME_HEADER + MESSAGE_HEADER + frame.body.len());
    let frame_header = |bytes: &mut BytesMut, length: usize| {
        bytes.put_u32(frame.connection.number());
        // No message that is sent here needs nearly 32 bits.
        bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    };
    frame_header(&mut bytes, MESSAGE_HEADER);
    bytes.put_u32(u32::try_from(frame.body.len()).unwrap_or(u32::MAX));
    bytes.put_u32(frame.stream);
    bytes.put_u8(frame.kind.number());
    bytes.put_u8(0);
    if !frame.body.is_empty() {
        frame_header(&mut bytes, frame.body.len());
        bytes.put_slice(&frame.body);
    }
    bytes
}

/// Assembles messages from bytes, however they were split.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes that were read and do not belong to a connection yet.
    trunk: BytesMut,
    plugin: BytesMut,
    runtime: BytesMut,
}

impl Decoder {
    /// The buffer for the next bytes from the socket.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.trunk
    }

    /// The next message, if it is complete. After an error, the remaining bytes have no meaning.
    pub fn take(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            for connection in [Connection::Plugin, Connection::Runtime] {
                if let Some(frame) = take_message(connection, self.bytes_of(connection))? {
                    return Ok(Some(frame));
                }
            }
            let Some((number, length)) = two_words(&self.trunk) else { return Ok(None) };
            let connection = Connection::try_from(number)?;
            let length = within(length, FRAME_LIMIT)?;
            if self.trunk.len() < FRAME_HEADER + length {
                return Ok(None);
            }
            self.trunk.advance(FRAME_HEADER);
            let content = self.trunk.split_to(length);
            self.bytes_of(connection).unsplit(content);
        }
    }

    /// Whether the bytes so far end within a frame or a message.
    pub fn is_cut(&self) -> bool {
        !(self.trunk.is_empty() && self.plugin.is_empty() && self.runtime.is_empty())
    }

    fn bytes_of(&mut self, connection: Connection) -> &mut BytesMut {
        match connection {
            Connection::Plugin => &mut self.plugin,
            Connection::Runtime => &mut self.runtime,
        }
    }
}

/// Takes a message from the start of a connection's bytes.
fn take_message(connection: Connection, bytes: &mut BytesMut) -> Result<Option<Frame>, Error> {
    let Some((length, stream)) = two_words(bytes) else { return Ok(None) };
    let length = within(length, MESSAGE_LIMIT)?;
    let Some(&kind) = bytes.get(8) else { return Ok(None) };
    let kind = Kind::try_from(kind)?;
    if bytes.len() < MESSAGE_HEADER + length {
        return Ok(None);
    }
    bytes.advance(MESSAGE_HEADER);
    Ok(Some(Frame { connection, stream, kind, body: bytes.split_to(length) }))
}

fn two_words(mut bytes: &[u8]) -> Option<(u32, u32)> {
    Some((bytes.try_get_u32().ok()?, bytes.try_get_u32().ok()?))
}

fn within(length: u32, limit: usize) -> Result<usize, Error> {
    let known = usize::try_from(length).ok().filter(|length| *length <= limit);
    known.ok_or(Error::TooLong { length: length.into(), limit })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    /// A message of one byte on the plugin's connection, in two frames.
    const REQUEST: &[u8] = &[
        0, 0, 0, 1, 0, 0, 0, 10, // frame: connection 1, ten bytes
        0, 0, 0, 1, 0, 0, 0, 3, 1, 0, // message: one byte, stream 3, a request
        0, 0, 0, 1, 0, 0, 0, 1, b'x', // frame: connection 1, one byte
    ];

    fn request() -> Frame {
        Frame { connection: Connection::Plugin, stream: 3, kind: Kind::Request, body: BytesMut::from("x") }
    }

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<Frame>, bool), Error> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.buffer().extend_from_slice(piece);
            while let Some(frame) = decoder.take()? {
                frames.push(frame);
            }
        }
        Ok((frames, decoder.is_cut()))
    }

    #[test]
    fn a_message_is_written_and_read() {
        assert_eq!(encode(&request())[..], *REQUEST);
        assert_eq!(decode(&[REQUEST]).unwrap(), (vec![request()], false));
        let empty = Frame { connection: Connection::Runtime, stream: 1, kind: Kind::Response, body: BytesMut::new() };
        let bytes = encode(&empty);
        assert_eq!(bytes[..], [0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0]);
        assert_eq!(decode(&[&bytes]).unwrap().0, [empty]);
    }

    #[test]
    fn a_message_is_read_however_it_is_split() {
        for at in 0..REQUEST.len() {
            assert_eq!(decode(&[&REQUEST[..at], &REQUEST[at..]]).unwrap(), (vec![request()], false), "at {at}");
            assert_eq!(decode(&[&REQUEST[..at]]).unwrap(), (vec![], at > 0), "at {at}");
        }
        let bytes: Vec<&[u8]> = REQUEST.chunks(1).collect();
        assert_eq!(decode(&bytes).unwrap().0, [request()]);
    }

    #[test]
    fn messages_in_one_frame_and_connections_in_turn() {
        // A frame with two complete messages and the head of a third, then a frame of the other connection, then the rest.
        let message = |stream, body: u8| [0, 0, 0, 1, 0, 0, 0, stream, 1, 0, body];
        let merged = [message(1, b'a'), message(3, b'b'), message(5, b'c')].concat();
        let (first, rest) = merged.split_at(25);
        let other = Frame { connection: Connection::Runtime, stream: 1, kind: Kind::Response, body: "y".into() };
        let bytes = [
            &[0, 0, 0, 1, 0, 0, 0, 25],
            first,
            &encode(&other)[..],
            &[0, 0, 0, 1, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0, 0, 0, 8],
            rest,
        ]
        .concat();
        let (frames, cut) = decode(&[&bytes]).unwrap();
        let actual: Vec<_> = frames.iter().map(|frame| (frame.connection, frame.stream, &frame.body[..])).collect();
        let plugin = Connection::Plugin;
        let expected: [(_, _, &[u8]); 4] =
            [(plugin, 1, b"a"), (plugin, 3, b"b"), (Connection::Runtime, 1, b"y"), (plugin, 5, b"c")];
        assert_eq!(actual, expected);
        assert!(!cut);
    }

    #[test]
    fn lengths_are_limited() {
        let too_long = |bytes: &[u8]| matches!(decode(&[bytes]), Err(Error::TooLong { .. }));
        assert!(too_long(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]));
        assert!(too_long(&[0, 0, 0, 2, 0, 0x40, 0, 11]));
        // The length of the frame is allowed, and the length of its message is not.
        assert!(too_long(&[0, 0, 0, 1, 0, 0, 0, 10, 0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0]));
        // The maximum is allowed.
        assert_eq!(decode(&[&[0, 0, 0, 1, 0, 0x40, 0, 10]]).unwrap(), (vec![], true));
    }

    #[test]
    fn what_nri_does_not_have_is_an_error() {
        assert!(matches!(decode(&[&[0, 0, 0, 0, 0, 0, 0, 0]]), Err(Error::UnknownConnection(0))));
        assert!(matches!(decode(&[b"GET / HTTP/1.1\r\n"]), Err(Error::UnknownConnection(_))));
        let data = [0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0];
        assert!(matches!(decode(&[&data]), Err(Error::UnknownKind(3))));
    }
}
