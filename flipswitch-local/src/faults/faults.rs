//! The handle on what goes wrong.

use std::{fmt, sync::Arc};

use axum::body::Bytes;

use crate::{
    faults::error::FaultError,
    faults::fault::Fault,
    faults::handle::ConnectionAction,
    faults::registry::{ActiveFault, Book, FaultId},
};

/// What goes wrong with a [`LocalServer`](crate::LocalServer), for tests that an application stands it. Clones are
/// handles on the same faults.
///
/// A request is struck by at most one fault: the oldest that is about it and not over. So faults with
/// [`times`](Fault::times) that are added in turn make a sequence. Requests are struck whatever their API key is, and
/// [`requests`](crate::LocalServer::requests) has those that were struck, too. The endpoints under `/local` are never
/// struck.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use flipswitch_local::{Endpoint, Fault, LocalServer};
///
/// let service = LocalServer::start(serde_json::json!({"new-home": false})).await?;
/// let faults = service.faults();
/// let outage = faults.add(Fault::on(Endpoint::Bulk).status(503).times(2))?;
/// // Let the application evaluate, and then:
/// assert_eq!(faults.struck(outage), 0, "nobody has asked yet");
/// faults.clear();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Faults(pub(crate) Arc<Book>);

impl Faults {
    /// Adds a fault, which strikes from now on.
    ///
    /// # Errors
    ///
    /// A [`FaultError`] that names what of the fault cannot be. Of 1 024 faults one must be over, or be removed, before
    /// another is added.
    pub fn add(&self, fault: Fault) -> Result<FaultId, FaultError> {
        self.0.add(fault).map(|active| active.id)
    }

    /// Returns the faults that were added and not removed since, oldest first: also those that are over.
    #[must_use]
    pub fn active(&self) -> Vec<ActiveFault> {
        self.0.all()
    }

    /// Returns how many requests a fault has struck; zero for one that was removed.
    #[must_use]
    pub fn struck(&self, id: FaultId) -> u64 {
        self.0.get(id).map_or(0, |active| active.struck)
    }

    /// Removes a fault; returns whether it was there. Connections that it keeps without an answer are closed.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn remove(&self, id: FaultId) -> bool {
        self.0.remove(id)
    }

    /// Removes all faults. Connections that they keep without an answer are closed.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Ends the open streams in good order, as a service does that is restarted; returns how many there were.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn finish_streams(&self) -> usize {
        self.0.broadcaster.finish_streams()
    }

    /// Closes the connections (FIN) of the open streams in the middle of their answers; returns how many there were.
    /// Events that were sent before still arrive, unless the client is slow to read.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn drop_streams(&self) -> usize {
        self.0.end_streams(ConnectionAction::Close)
    }

    /// Resets the connections (RST) of the open streams; returns how many there were.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn reset_streams(&self) -> usize {
        self.0.end_streams(ConnectionAction::Reset)
    }

    /// Sends any bytes into the open streams, as they are; returns how many streams there were.
    pub fn inject(&self, bytes: impl Into<Vec<u8>>) -> usize {
        self.0.broadcaster.inject(Bytes::from(bytes.into()))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faults").field(&self.active()).finish()
    }
}
