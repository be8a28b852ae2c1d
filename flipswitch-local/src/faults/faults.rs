//! The handle that tests use to add and remove faults.

use std::{fmt, sync::Arc};

use axum::body::Bytes;

use crate::faults::{
    error::FaultError,
    fault::Fault,
    handle::ConnectionAction,
    registry::{ActiveFault, FaultId, FaultRegistry},
};

/// The faults of a [`LocalServer`](crate::LocalServer), for testing how an application handles failures. Clones are
/// handles to the same faults.
///
/// A fault applies to requests to its [`Endpoint`](crate::Endpoint), and can be limited to evaluations for some contexts, for
/// example with [`for_targeting_key`](Fault::for_targeting_key). At most one fault applies to a request: the oldest that matches
/// it and is not exhausted. Several faults with [`times`](Fault::times) therefore make a sequence. Faults apply regardless of the
/// API key of the request, and [`requests`](crate::LocalServer::requests) includes requests that faults were applied to. Faults
/// never apply to the endpoints under `/local`, except for faults on [`Endpoint::Connections`](crate::Endpoint::Connections).
///
/// The server speaks HTTP/1.1, and HTTP/2 with prior knowledge. Effects that end or silence a connection affect all requests on
/// it. Over HTTP/2, several requests can share a connection.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use flipswitch_local::{Endpoint, Fault, LocalServer};
///
/// let service = LocalServer::start(serde_json::json!({"new-home": false})).await?;
/// let faults = service.faults();
/// let outage = faults.add(Fault::on(Endpoint::Bulk).status(503).times(2))?;
/// // At this point, the application would evaluate its flags.
/// assert_eq!(faults.applied(outage), 0, "no request so far");
/// faults.clear();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Faults(pub(crate) Arc<FaultRegistry>);

impl Faults {
    /// Adds a fault, which applies from now on.
    ///
    /// # Errors
    ///
    /// Returns a [`FaultError`] that names the invalid field, or an error if there are 1 024 faults and none of them is
    /// exhausted.
    pub fn add(&self, fault: Fault) -> Result<FaultId, FaultError> {
        self.0.add(fault).map(|active| active.id)
    }

    /// Returns the faults that were added and have not been removed, oldest first, including exhausted ones.
    #[must_use]
    pub fn active(&self) -> Vec<ActiveFault> {
        self.0.all()
    }

    /// Returns how many requests a fault has been applied to, or zero if the fault was removed.
    #[must_use]
    pub fn applied(&self, id: FaultId) -> u64 {
        self.0.get(id).map_or(0, |active| active.applied)
    }

    /// Removes a fault. Connections that it keeps open without a response are closed.
    ///
    /// Returns whether the fault existed.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn remove(&self, id: FaultId) -> bool {
        self.0.remove(id)
    }

    /// Removes all faults. Connections that they keep open without a response are closed.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Ends the open streams gracefully, like a service that restarts. Returns the number of streams.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn finish_streams(&self) -> usize {
        self.0.broadcaster.finish_streams()
    }

    /// Closes the connections of the open streams (FIN) in the middle of their responses. Returns the number of
    /// streams.
    ///
    /// Events that were sent earlier still arrive, unless the client reads too slowly.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn drop_streams(&self) -> usize {
        self.0.end_streams(ConnectionAction::Close)
    }

    /// Resets the connections of the open streams (RST). Returns the number of streams.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn reset_streams(&self) -> usize {
        self.0.end_streams(ConnectionAction::Reset)
    }

    /// Sends bytes unchanged into the open streams, including OFREP event streams. Returns the number of streams.
    pub fn inject(&self, bytes: impl Into<Vec<u8>>) -> usize {
        self.0.broadcaster.inject(Bytes::from(bytes.into()))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faults").field(&self.active()).finish()
    }
}
