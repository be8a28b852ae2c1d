//! What the tests of the examples share: a program as a process, from its first line to its last.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]
#![cfg_attr(unix, expect(clippy::unwrap_used, reason = "a test fails by panicking"))]
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

#[cfg(unix)]
mod end;
#[cfg(unix)]
mod program;
#[cfg(unix)]
mod quickstart;

use std::{future::Future, time::Duration};

#[cfg(unix)]
pub use self::{
    end::{Visit, ends_at_ctrl_c, ends_at_once_when_asked_twice, finishes_what_it_began},
    program::Program,
    quickstart::{keeps_its_promises, uses_the_environment, visit},
};

/// No state that a test waits for takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fails the test if something takes longer than anything should.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("takes too long")
}

/// Waits until a state is reached.
pub async fn eventually(mut reached: impl AsyncFnMut() -> bool) {
    in_time(async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
