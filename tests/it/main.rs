//! Tests across the crates, over real sockets.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod scripted;
mod support;

#[cfg(feature = "browser")]
mod browser;
mod cost;
mod crowd;
mod dashboard;
mod evaluation;
mod events;
mod faults;
mod frameworks;
mod hostile;
mod key;
mod layer;
mod life;
mod local;
mod mistakes;
mod open_feature;
mod outage;
mod page;
#[cfg(feature = "peers")]
mod peers;
mod services;
mod wire;
