//! Bytes from a runtime, split at any place: the messages are the same for all splits, and written messages are read
//! back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steer::run::container::nri::{Decoder, encode};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let whole = messages(bytes, bytes.len().max(1));
    let pieces = messages(bytes, usize::from(cut).max(1));
    assert_eq!(whole, pieces, "cut every {cut} bytes");
    for frame in whole.0 {
        assert_eq!(messages(&encode(&frame), 1).0, [frame]);
    }
});

/// The messages in bytes that arrive in pieces of this length, and whether they ended in an error.
fn messages(bytes: &[u8], length: usize) -> (Vec<steer::run::container::nri::Frame>, bool) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in bytes.chunks(length) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.take() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}
