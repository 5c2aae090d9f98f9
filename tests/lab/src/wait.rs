//! Waiting for a condition. Tests wait in no other way.
//!
//! **Invariant:** the condition is checked once more after the deadline, so a slow machine cannot turn a true condition
//! into a timeout.

use crate::error::{Error, Result};
use std::{
    thread,
    time::{Duration, Instant},
};

/// The time between two checks: short compared with a test, long compared with a check.
const INTERVAL: Duration = Duration::from_millis(2);

/// Waits until `condition` returns true. `what` names it in the error.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, timeout, || condition().then_some(()))
}

/// Waits until `condition` returns a value, and returns that. `what` names it in the error.
pub fn wait_for<T>(what: &str, timeout: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let last = Instant::now() >= deadline;
        if let Some(value) = condition() {
            return Ok(value);
        }
        if last {
            return Err(Error::Timeout { what: what.to_owned(), timeout });
        }
        thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn retries_until_true_and_names_the_condition() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(wait_for("third look", Duration::from_secs(5), third).unwrap(), 3);

        let error = wait_until("pigs fly", Duration::from_millis(5), || false).unwrap_err();
        assert_eq!(error.to_string(), "pigs fly: not within 5ms");
        assert!(wait_until("already so", Duration::ZERO, || true).is_ok());
    }
}
