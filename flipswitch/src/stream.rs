//! The stream of changes: a plain reader. It raises the generation on every change and on every connection.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use sse_core::{MessageEvent, SseDecoder, SseEvent};

use crate::{Error, error::Chain, pause, service::Service, transport::Failure};

/// An event may not be larger than this.
const MAX_EVENT: NonZeroUsize = NonZeroUsize::new(1 << 20).expect("is not zero");

/// A refused key is tried again this much later, which is also the longest that a service may ask for.
const UNAUTHORIZED: Duration = Duration::from_secs(300);

/// After a connection that lasted this long the waits begin anew.
const STABLE: Duration = Duration::from_secs(60);

/// The service may evaluate a moment behind its own event: this long after the last one, everything counts as changed
/// once more.
const ECHO: Duration = Duration::from_secs(2);

/// Follows the stream for ever, connection after connection.
pub(crate) async fn follow(service: Arc<Service>) {
    let mut failures = 0;
    let mut connected_before = false;
    let mut refused = false;
    loop {
        let began = tokio::time::Instant::now();
        let ended = read(&service, &mut connected_before).await;
        service.clock().close();
        failures = if began.elapsed() >= STABLE { 1 } else { failures + 1 };
        let wait = pause::backoff(failures, fastrand::f64());
        let wait = match &ended {
            Err(Failure { error: Error::Unauthorized, .. }) => UNAUTHORIZED,
            Err(Failure { retry_after, .. }) => wait.max(retry_after.unwrap_or_default().min(UNAUTHORIZED)),
            Ok(()) => wait,
        };
        match ended {
            Ok(()) => tracing::info!(target: "flipswitch", ?wait, "the stream of changes ended; connecting again"),
            Err(Failure { error: Error::Unauthorized, .. }) if std::mem::replace(&mut refused, true) => {}
            Err(Failure { error, .. }) => {
                tracing::warn!(target: "flipswitch", error = %Chain(&error), ?wait, "the stream of changes failed; connecting again");
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Reads one connection to its end.
async fn read(service: &Service, connected_before: &mut bool) -> Result<(), Failure> {
    let mut connection = service.transport().events().await?;
    service.clock().open();
    tracing::info!(target: "flipswitch", "the stream of changes is open");
    if std::mem::replace(connected_before, true) {
        service.counters().reconnects.count();
    }
    let mut decoder = SseDecoder::with_limit(MAX_EVENT);
    let mut before_first_heartbeat = true;
    let mut echo = None;
    loop {
        let chunk = tokio::select! {
            chunk = tokio::time::timeout(service.idle_timeout(), connection.chunk()) => match chunk {
                Ok(chunk) => chunk?,
                // Half-open, or held back by a proxy: see `X-Accel-Buffering`.
                Err(_) => return Err(Failure::of(Error::Timeout)),
            },
            () = sleep_until(echo) => {
                echo = None;
                service.clock().raise();
                continue;
            }
        };
        let Some(mut chunk) = chunk else { return Ok(()) };
        while let Some(event) = decoder.next(&mut chunk) {
            let SseEvent::Message(MessageEvent { event, .. }) = event.map_err(|_| Failure::of(Error::TooLarge))? else {
                continue;
            };
            match &*event {
                // Whatever flag an event names: one that depends on it may have changed as well.
                "flag-updated" | "config-updated" => {
                    service.clock().raise();
                    echo = Some(tokio::time::Instant::now() + ECHO);
                }
                // The service may have begun to tell us of changes only after its headers.
                "heartbeat" if std::mem::take(&mut before_first_heartbeat) => service.clock().raise(),
                _ => {}
            }
        }
    }
}

async fn sleep_until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
