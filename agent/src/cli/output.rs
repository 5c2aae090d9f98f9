//! What commands print. A full disk is an error, not a panic.

use std::{
    fmt::Arguments,
    io::{self, Write as _},
};

use thiserror::Error;

/// Standard output takes no more.
#[derive(Debug, Error)]
#[error("write to standard output: {0}")]
pub(super) struct Unwritten(#[from] io::Error);

/// Prints to standard output as `println!` does, but returns the error.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints a line; see [`say`].
pub(super) fn line(text: Arguments<'_>) -> Result<(), Unwritten> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Prints bytes.
pub(super) fn write(text: &[u8]) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(text).and_then(|()| out.flush())?)
}

/// Prints a line to standard error. There is nowhere to report that it takes no more.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "steer: {text}");
}
