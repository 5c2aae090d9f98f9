//! Waiting for something to become true, the only kind of waiting there is in tests.
//!
//! **Invariant:** the condition is looked at once more after the deadline, so a slow machine cannot turn a true
//! condition into a timeout without having asked.

use crate::error::{Error, Result};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks: short against a test, long against a look.
const INTERVAL: Duration = Duration::from_millis(2);

/// Waits until `condition` gives true; `what` names it in the error.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, timeout, || condition().then_some(()))
}

/// Waits until `condition` gives something, and gives that; `what` names it in the error.
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
    fn asks_again_until_true_and_names_what_never_became_true() {
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
