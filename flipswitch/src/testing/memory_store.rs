//! An in-memory store that fails on demand.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::cache_store::{CacheStore, Lease, Leased, Lookup, StoreError, StoredEntry};

/// How far ahead of the store's clock an entry may be. An entry that is further ahead is replaced even by an earlier one.
const MAX_AHEAD: Duration = Duration::from_secs(1);

/// An in-memory [`CacheStore`], for tests of how an application behaves when its store fails. Clones share the entries, in the
/// same way as the instances of an application share a store.
///
/// ```
/// use flipswitch::{FlipswitchProvider, testing::MemoryStore};
///
/// # fn main() -> Result<(), flipswitch::ConfigError> {
/// let store = MemoryStore::new();
/// let provider = FlipswitchProvider::builder("an API key of some length").store(store.clone()).build()?;
/// store.set_down(true);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    entries: HashMap<String, Stored>,
    leases: HashMap<String, Held>,
    last_token: u64,
    is_down: bool,
    leases_are_lost: bool,
    delay: Duration,
    /// How far the store's clock has been moved ahead of the system clock, and how far it has been moved back.
    ahead: Duration,
    behind: Duration,
}

#[derive(Clone)]
struct Stored {
    entry: StoredEntry,
    expires: SystemTime,
}

#[derive(Clone)]
struct Held {
    token: u64,
    expires: SystemTime,
}

impl MemoryStore {
    /// Creates an empty store that works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether every operation fails.
    pub fn set_down(&self, is_down: bool) {
        self.0.lock().is_down = is_down;
    }

    /// Sets how long every operation takes.
    pub fn set_delay(&self, delay: Duration) {
        self.0.lock().delay = delay;
    }

    /// Removes all entries and leases.
    pub fn flush(&self) {
        let mut state = self.0.lock();
        state.entries.clear();
        state.leases.clear();
    }

    /// Sets whether all leases are granted to a holder that never releases them, like an instance that was killed.
    pub fn set_leases_lost(&self, are_lost: bool) {
        self.0.lock().leases_are_lost = are_lost;
    }

    /// Moves the store's clock ahead.
    pub fn advance_clock(&self, by: Duration) {
        self.0.lock().ahead += by;
    }

    /// Moves the store's clock back.
    pub fn turn_clock_back(&self, by: Duration) {
        self.0.lock().behind += by;
    }

    /// Returns all entries, in the order of their keys.
    #[must_use]
    pub fn entries(&self) -> Vec<StoredEntry> {
        let mut entries: Vec<_> = self.0.lock().entries.values().map(|stored| stored.entry.clone()).collect();
        entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        entries
    }

    /// Stores an entry, and replaces even a later one, like a restore from a backup.
    pub fn insert(&self, entry: StoredEntry) {
        let mut state = self.0.lock();
        let expires = state.now() + Duration::from_secs(24 * 3600);
        state.entries.insert(entry.key.clone(), Stored { entry, expires });
    }

    /// Waits for the simulated duration of an operation, then runs the operation if the store is not down.
    async fn operation<T>(&self, operation: impl FnOnce(&mut State, SystemTime) -> T) -> Result<T, StoreError> {
        let delay = self.0.lock().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.0.lock();
        if state.is_down {
            return Err(StoreError::new("the store is down"));
        }
        let now = state.now();
        Ok(operation(&mut state, now))
    }
}

impl State {
    /// Returns the time of the store's clock, in whole microseconds.
    fn now(&self) -> SystemTime {
        let now = SystemTime::now() + self.ahead - self.behind;
        let micros = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }
}

#[async_trait]
impl CacheStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Lookup, StoreError> {
        self.operation(|state, now| {
            let stored = state.entries.get(key).filter(|stored| stored.expires > now);
            Lookup { entry: stored.map(|stored| stored.entry.clone()), now }
        })
        .await
    }

    async fn put(&self, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError> {
        self.operation(|state, now| {
            let stands = |known: &Stored| known.entry.sent > entry.sent && known.entry.sent <= now + MAX_AHEAD;
            if !state.entries.get(&entry.key).is_some_and(stands) {
                state.entries.insert(entry.key.clone(), Stored { entry, expires: now + ttl });
            }
        })
        .await
    }

    async fn try_lease(&self, key: &str, ttl: Duration) -> Result<Leased, StoreError> {
        self.operation(|state, now| {
            if state.leases.get(key).is_some_and(|held| held.expires > now) {
                return Leased { lease: None, now };
            }
            state.last_token += 1;
            let token = state.last_token;
            state.leases.insert(key.to_owned(), Held { token, expires: now + ttl });
            let lease = Lease { key: key.to_owned(), token: token.to_string() };
            Leased { lease: (!state.leases_are_lost).then_some(lease), now }
        })
        .await
    }

    async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        self.operation(|state, _| {
            if state.leases.get(&lease.key).is_some_and(|held| held.token.to_string() == lease.token) {
                state.leases.remove(&lease.key);
            }
        })
        .await
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("entries", &self.0.lock().entries.len()).finish_non_exhaustive()
    }
}
