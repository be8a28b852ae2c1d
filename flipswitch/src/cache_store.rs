//! The interface of stores outside the process, which share flags in a fleet or keep them across restarts.

use std::{
    error::Error as StdError,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

/// Keeps flags by context outside the process. [`store`](crate::FlipswitchProviderBuilder::store) sets it; `flipswitch-redis` and
/// `flipswitch-disk` implement it.
///
/// The provider does not trust a store: keys are authentication codes of contexts, entries are encrypted, and an entry that was
/// altered, or was written for a different context or environment, counts as missing. A store may lose entries and fail at any
/// time.
///
/// The provider waits 50 milliseconds for [`get`](Self::get) and [`try_lease`](Self::try_lease), and 1 second for the other
/// methods. It stops reading from a store that keeps failing, and tries again about once a second, so an implementation needs no
/// time limits or retries. A future may be dropped at any time. The provider also calls [`get`](Self::get) with a key that has no
/// entry, to read the store's clock.
///
/// ```
/// use std::{
///     collections::HashMap,
///     sync::Mutex,
///     time::{Duration, SystemTime},
/// };
///
/// use flipswitch::{CacheStore, Lookup, StoreError, StoredEntry, async_trait};
///
/// /// Keeps flags until the process ends. A shared store must also respect `ttl`, and replace entries from the future.
/// #[derive(Default)]
/// struct InProcess(Mutex<HashMap<String, StoredEntry>>);
///
/// #[async_trait]
/// impl CacheStore for InProcess {
///     async fn get(&self, key: &str) -> Result<Lookup, StoreError> {
///         let entries = self.0.lock().map_err(|error| StoreError::new(error.to_string()))?;
///         Ok(Lookup { entry: entries.get(key).cloned(), now: SystemTime::now() })
///     }
///
///     async fn put(&self, entry: StoredEntry, _ttl: Duration) -> Result<(), StoreError> {
///         let mut entries = self.0.lock().map_err(|error| StoreError::new(error.to_string()))?;
///         match entries.get(&entry.key) {
///             Some(known) if known.sent > entry.sent => {}
///             _ => drop(entries.insert(entry.key.clone(), entry)),
///         }
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait CacheStore: Send + Sync + 'static {
    /// Returns the entry for a key, and the time on the store's clock, which must be the same for all instances.
    ///
    /// # Errors
    ///
    /// A [`StoreError`] if the store cannot be read.
    async fn get(&self, key: &str) -> Result<Lookup, StoreError>;

    /// Stores an entry for at most `ttl`. An entry must not replace an entry that was [sent](StoredEntry::sent) later, unless the
    /// later entry is more than 1 second ahead of the store's clock. The comparison and the write must be one atomic step.
    ///
    /// # Errors
    ///
    /// A [`StoreError`] if the entry could not be written. Skipping an entry because of a later one is not an error.
    async fn put(&self, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError>;

    /// Grants a lease on a key, unless another lease on this key is still held. A lease is held until it is
    /// [released](Self::release) or its `ttl` has elapsed. The holder of a lease requests flags from the service while all other
    /// instances wait. `key` consists of the key of an entry and the id of an event.
    ///
    /// The default implementation always grants the lease, for a store that only one process uses.
    ///
    /// # Errors
    ///
    /// A [`StoreError`] if the store cannot be used.
    async fn try_lease(&self, key: &str, ttl: Duration) -> Result<Leased, StoreError> {
        let _ = ttl;
        let lease = Lease { key: key.to_owned(), token: String::new() };
        Ok(Leased { lease: Some(lease), now: SystemTime::now() })
    }

    /// Releases a lease. Does nothing if the lease has expired, even if another instance holds it now.
    ///
    /// # Errors
    ///
    /// A [`StoreError`] if the store cannot be used.
    async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        drop(lease);
        Ok(())
    }
}

/// The result of [`CacheStore::get`].
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The entry, if there is one.
    pub entry: Option<StoredEntry>,
    /// The time on the store's clock.
    pub now: SystemTime,
}

/// The result of [`CacheStore::try_lease`].
#[derive(Debug)]
pub struct Leased {
    /// The lease, unless another instance holds it.
    pub lease: Option<Lease>,
    /// The time on the store's clock.
    pub now: SystemTime,
}

/// Permission to request the flags for one context from the flag service.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// The key that was passed to [`CacheStore::try_lease`].
    pub key: String,
    /// Distinguishes the lease from other leases on the key.
    pub token: String,
}

/// The flags of one context as a store keeps them.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// `flipswitch:1:{<environment>}:<context>`, where both parts are authentication codes in hexadecimal digits. Because of the
    /// braces, a Redis cluster keeps the keys of one environment together.
    pub key: String,
    /// When the request for the flags was sent, by the store's clock, in whole microseconds.
    pub sent: SystemTime,
    /// The encrypted flags.
    pub sealed: Vec<u8>,
}

/// Omits the content.
impl fmt::Debug for StoredEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredEntry")
            .field("key", &self.key)
            .field("sent", &self.sent)
            .field("bytes", &self.sealed.len())
            .finish_non_exhaustive()
    }
}

/// The reason why a [`CacheStore`] could not be used.
#[derive(Debug)]
pub struct StoreError(Box<dyn StdError + Send + Sync>);

impl StoreError {
    /// Wraps an error or a message. The message is logged.
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// One store for several providers.
#[async_trait]
impl<S: CacheStore + ?Sized> CacheStore for Arc<S> {
    async fn get(&self, key: &str) -> Result<Lookup, StoreError> {
        (**self).get(key).await
    }

    async fn put(&self, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError> {
        (**self).put(entry, ttl).await
    }

    async fn try_lease(&self, key: &str, ttl: Duration) -> Result<Leased, StoreError> {
        (**self).try_lease(key, ttl).await
    }

    async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        (**self).release(lease).await
    }
}
