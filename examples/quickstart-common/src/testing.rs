//! Helpers for the tests of the examples, which run each example as a process.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]
#![cfg_attr(unix, expect(clippy::unwrap_used, reason = "a test fails by panicking"))]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

#[cfg(unix)]
mod program;
#[cfg(unix)]
mod quickstart;
#[cfg(unix)]
mod shutdown;

use std::{future::Future, time::Duration};

#[cfg(unix)]
pub use self::{
    program::Program,
    quickstart::{behaves_as_the_readme_says, uses_the_service_from_the_environment},
    shutdown::{a_second_signal_ends_it_immediately, ctrl_c_ends_it, requests_finish_during_shutdown},
};

/// Time limit for everything that a test waits for, even on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Waits for a future, and fails the test if it takes too long.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TIME_LIMIT, future).await.expect("takes too long")
}

/// Waits until a condition holds.
pub async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    in_time(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
