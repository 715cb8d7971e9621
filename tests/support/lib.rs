//! What the tests, the demo and the fixture maker share.

#![allow(dead_code, reason = "each of them uses its own part")]

pub mod agent;
pub mod backend;
pub mod foreign;
pub mod h2;
pub mod pki;
pub mod proxy;
pub mod scratch;

use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that needs it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `look` finds something, under one deadline.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        #[allow(
            clippy::disallowed_methods,
            reason = "waits for a condition, not for luck"
        )]
        std::thread::sleep(Duration::from_millis(2));
    }
}
