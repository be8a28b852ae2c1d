//! The store of a provider: reads and writes it within limits, and stops using it while it fails.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::{
    cache::{entry::CacheEntry, epoch::is_of_event},
    cache_store::{CacheStore, Lease, StoreError, StoredEntry},
    credential::Credential,
    error::Chain,
    flags::{flag_set::FlagSet, intern::Interner},
    runtime::ProviderRuntime,
    secret::StoreKeys,
    store::{
        availability::{Availability, Change},
        clock::{StoreClock, since_1970, time_of},
        fence::{Fence, MARGIN, Requirement},
        sealed::{Environment, StoredFlags},
    },
};

/// How long an evaluation or a request waits for the store.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// How long writing may take. Evaluations do not wait for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// A context that never has an entry. Its name is looked up to read the clock.
const NO_CONTEXT: &[u8] = b"";

/// Wait before the first attempt while the store is unavailable. Doubles with each attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How far the age of a response by the store's clock may differ from its age by the clocks of the two instances. This limit
/// ensures that a wrong clock of the store cannot make an old response fresh.
const MAX_DISAGREEMENT: Duration = Duration::from_secs(10);

/// Maximum number of concurrent first lookups, so that none of them waits for many others. Further lookups wait for their turn.
const MAX_LOOKS: usize = 64;

/// Maximum number of concurrent writes. Beyond that, responses are not stored.
const MAX_WRITES: usize = 256;

/// Minimum time for which responses are stored.
const MIN_TTL: Duration = Duration::from_secs(600);

/// A store, and what is known about it.
pub(crate) struct Store {
    store: Arc<dyn CacheStore>,
    identity: Identity,
    /// The environment of the credential in use. `None` while the credential changes.
    environment: RwLock<Option<Arc<Environment>>>,
    clock: Mutex<StoreClock>,
    reads: Mutex<Availability>,
    writes: Mutex<Availability>,
    looking: Semaphore,
    writing: Semaphore,
    /// How long responses are stored: for a context that was not in memory, and for other contexts.
    ttls: [Duration; 2],
    /// Names of the leases that this instance holds, and the epochs of their requests.
    held: Mutex<HashMap<String, u64>>,
    runtime: Arc<ProviderRuntime>,
    this: Weak<Self>,
}

/// What identifies an environment, besides the API key.
pub(crate) struct Identity {
    pub(crate) keys: StoreKeys,
    /// The base URL of the service, and the headers that the application adds.
    pub(crate) target: Vec<u8>,
    /// Used instead of the API key, if set.
    pub(crate) namespace: Option<String>,
}

/// A response that was found.
pub(crate) struct Found {
    pub(crate) flag_set: Arc<FlagSet>,
    pub(crate) etag: Option<Box<[u8]>>,
    pub(crate) fence: Option<Fence>,
    /// When it was requested, at the earliest.
    pub(crate) sent_at: Instant,
    /// Whether `sent_at` is certain, because the store's clock has not been set since.
    pub(crate) is_dated: bool,
}

/// Outcome of a lookup in the store.
pub(crate) enum Look {
    Found(Found),
    Missing,
    /// The store was not read, or did not respond.
    Away,
}

/// A lease, which is released when this is dropped.
pub(crate) struct HeldLease {
    store: Weak<Store>,
    name: String,
    lease: Option<Lease>,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        if let (Some(store), Some(lease)) = (self.store.upgrade(), self.lease.take()) {
            store.held.lock().remove(&self.name);
            let runtime = Arc::clone(&store.runtime);
            // Not counted as a write: a lease that is not released expires.
            let release = async move { drop(within(WRITE_TIMEOUT, async { store.store.release(lease).await }).await) };
            runtime.spawn_last(release);
        }
    }
}

/// Outcome of [`Store::try_lease`].
pub(crate) enum Turn {
    /// The caller may send the request.
    Granted(HeldLease),
    /// Another instance sends the request.
    Taken,
    /// The store was not asked for a lease, or did not respond.
    Away,
}

impl Store {
    pub(crate) fn new(
        store: Arc<dyn CacheStore>,
        identity: Identity,
        credential: &Credential,
        [cache_ttl, max_stale]: [Duration; 2],
        runtime: Arc<ProviderRuntime>,
    ) -> Arc<Self> {
        let environment = RwLock::new(Some(Arc::new(identity.environment(credential))));
        Arc::new_cyclic(|this| Self {
            store,
            identity,
            environment,
            clock: Mutex::default(),
            reads: Mutex::default(),
            writes: Mutex::default(),
            looking: Semaphore::new(MAX_LOOKS),
            writing: Semaphore::new(MAX_WRITES),
            // A response in use is written again when it is older than `cache_ttl`.
            ttls: [MIN_TTL.max(2 * cache_ttl), MIN_TTL.max(2 * cache_ttl).max(max_stale)],
            held: Mutex::default(),
            runtime,
            this: Weak::clone(this),
        })
    }

    /// Returns the environment of requests that are sent now.
    pub(crate) fn environment(&self) -> Option<Arc<Environment>> {
        self.environment.read().clone()
    }

    fn is_current(&self, environment: &Arc<Environment>) -> bool {
        self.environment.read().as_ref().is_some_and(|current| Arc::ptr_eq(current, environment))
    }

    /// Changes the credential with `set`. In the meantime, no response belongs to an environment.
    pub(crate) fn set_credential(&self, credential: &Credential, set: impl FnOnce()) {
        *self.environment.write() = None;
        set();
        *self.environment.write() = Some(Arc::new(self.identity.environment(credential)));
    }

    /// Returns the time since which the store has been unavailable for reading or writing.
    pub(crate) fn away_since(&self) -> Option<OffsetDateTime> {
        let (reads, writes) = (self.reads.lock().away_since(), self.writes.lock().away_since());
        [reads, writes].into_iter().flatten().min()
    }

    /// Returns whether the store is available for reading.
    pub(crate) fn is_available(&self) -> bool {
        self.reads.lock().away_since().is_none()
    }

    /// Looks up the response for a context. Waits for its turn at most as long as for the store.
    pub(crate) async fn look_in_turn(&self, context: &[u8], interner: &Interner) -> Look {
        match tokio::time::timeout(PATIENCE, self.looking.acquire()).await {
            Ok(_turn) => self.look(context, interner).await,
            Err(_) => Look::Away,
        }
    }

    /// Looks up the response for a context.
    pub(crate) async fn look(&self, context: &[u8], interner: &Interner) -> Look {
        let Some(environment) = self.environment() else { return Look::Away };
        let name = environment.name(context);
        let Some((entry, clock, steady_since, before)) = self.get(&name).await else { return Look::Away };
        if !self.is_current(&environment) {
            return Look::Away;
        }
        let found = entry.filter(|entry| entry.key == name).and_then(|entry| {
            let sent = since_1970(entry.sent);
            let answer = environment.open(context, &name, sent, &entry.sealed, interner)?;
            // An entry from the future was dated by a wrong clock.
            let age = Duration::from_micros(clock.checked_sub(sent)?);
            let sent_at = before.checked_sub(age)?;
            let StoredFlags { flag_set, etag, fence, sent_here } = answer;
            let age_here = Duration::from_micros(since_1970(SystemTime::now()).saturating_sub(sent_here));
            let is_dated = sent_at >= steady_since + MARGIN && age.abs_diff(age_here) <= MAX_DISAGREEMENT;
            Some(Found { flag_set, etag, fence, sent_at, is_dated })
        });
        found.map_or(Look::Missing, Look::Found)
    }

    /// Reads the clock of the store.
    pub(crate) async fn read_clock(&self) {
        if let Some(environment) = self.environment() {
            self.get(&environment.name(NO_CONTEXT)).await;
        }
    }

    /// Returns the entry of a name, the time of the store's clock, the time since which the clock has run as expected, and the
    /// earliest time at which it may have been read.
    async fn get(&self, name: &str) -> Option<(Option<StoredEntry>, u64, Instant, Instant)> {
        // This is in an async block, because the store's code may panic before it returns a future.
        let (lookup, before) = self.read(async { self.store.get(name).await }).await?;
        let clock = since_1970(lookup.now);
        let steady_since = self.clock.lock().read(before, Instant::now(), clock);
        Some((lookup.entry, clock, steady_since, before))
    }

    /// Asks for the lease of a context. The name contains the newest event, so that no instance waits for a response from before
    /// it.
    pub(crate) async fn try_lease(&self, context: &[u8], requirement: &Requirement, ttl: Duration) -> Turn {
        let Some(environment) = self.environment() else { return Turn::Away };
        let name = format!("{}:{}", environment.name(context), requirement.fence.newest);
        // An earlier request of this instance may hold the lease. Its response is too old for the caller if anything other than
        // the end of an echo window has advanced the epoch since.
        let own = self.held.lock().get(&name).copied();
        let is_too_early = own.is_some_and(|own| own < requirement.epoch && !is_of_event(own, requirement.epoch));
        // While the store cannot be written to, no response from another instance would arrive.
        if is_too_early || self.writes.lock().away_since().is_some() {
            return Turn::Away;
        }
        let leased = self.read(async { self.store.try_lease(&name, ttl).await }).await;
        let Some((leased, before)) = leased else { return Turn::Away };
        self.clock.lock().read(before, Instant::now(), since_1970(leased.now));
        let held = |lease| {
            self.held.lock().insert(name.clone(), requirement.epoch);
            HeldLease { store: self.this.clone(), name: name.clone(), lease: Some(lease) }
        };
        leased.lease.map_or(Turn::Taken, |lease| Turn::Granted(held(lease)))
    }

    /// Writes the response to a request that was sent in an environment, unless a different environment is in use by now.
    /// `is_known` is true if the context was seen before.
    pub(crate) async fn put(
        &self,
        environment: &Arc<Environment>,
        entry: &CacheEntry,
        fence: Option<Fence>,
        is_known: bool,
    ) {
        if !self.is_current(environment) {
            return;
        }
        let Ok(_turn) = self.writing.try_acquire() else { return };
        let name = environment.name(entry.context());
        let sent = || self.clock.lock().at(entry.sent_at, Instant::now());
        if !sent().is_some_and(|(_, is_steady)| is_steady) {
            // The clock has not been read since the request was sent. Only the clock is needed here.
            self.read_clock().await;
        }
        let Some((sent, is_steady)) = sent() else { return };
        let fence = fence.filter(|_| is_steady);
        let age = Instant::now().saturating_duration_since(entry.sent_at);
        let sent_here = since_1970(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
        let etag = entry.etag().map(Box::from);
        let answer = StoredFlags { flag_set: Arc::clone(&entry.flag_set), etag, fence, sent_here };
        let Some(sealed) = environment.seal(&name, sent, &answer) else { return };
        let stored = StoredEntry { key: name, sent: time_of(sent), sealed };
        let ttl = self.ttls[usize::from(is_known)];
        let began_at = Instant::now();
        let outcome = within(WRITE_TIMEOUT, async { self.store.put(stored, ttl).await }).await;
        log("writing", record(&self.writes, began_at, &outcome), outcome.as_ref().err());
    }

    /// Reads from the store, if it is available. Returns the response, and when the operation began.
    async fn read<T>(&self, operation: impl Future<Output = Result<T, StoreError>>) -> Option<(T, Instant)> {
        if !self.is_available() {
            return None;
        }
        let began_at = Instant::now();
        let outcome = within(PATIENCE, operation).await;
        let change = record(&self.reads, began_at, &outcome);
        // Spawned before the change is logged, because the subscriber may panic.
        if let (Change::Away, Some(store)) = (change, self.this.upgrade()) {
            drop(self.runtime.spawn(store.wait_until_back()));
        }
        log("reading", change, outcome.as_ref().err());
        Some((outcome.ok()?, began_at))
    }

    /// Retries in one task, so that requests do not have to.
    async fn wait_until_back(self: Arc<Self>) {
        let mut wait = FIRST_WAIT;
        while !self.is_available() {
            tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            wait = (2 * wait).min(MAX_WAIT);
            let Some(environment) = self.environment() else { continue };
            let (began_at, name) = (Instant::now(), environment.name(NO_CONTEXT));
            let outcome = within(PATIENCE, async { self.store.get(&name).await }).await;
            if outcome.is_ok() {
                log("reading", record(&self.reads, began_at, &outcome), None);
            }
        }
    }
}

impl Identity {
    fn environment(&self, credential: &Credential) -> Environment {
        let key = credential.key().map(crate::credential::ApiKey::as_bytes);
        let (kind, name) = match &self.namespace {
            Some(namespace) => (b"namespace".as_slice(), namespace.as_bytes()),
            None => (b"key".as_slice(), key.unwrap_or_default()),
        };
        Environment::new(self.keys.clone(), &[&self.target, kind, name])
    }
}

/// Waits for an operation of the store, whose code belongs to others and may panic.
async fn within<T>(limit: Duration, operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let mut operation = pin!(operation);
    let operation = poll_fn(|context| {
        let poll = AssertUnwindSafe(|| operation.as_mut().poll(context));
        catch_unwind(poll).unwrap_or_else(|_| Poll::Ready(Err(StoreError::new("the store's code panicked"))))
    });
    let mut operation = pin!(operation);
    // Waits in two parts: if the runtime was busy for a long time, the response may have arrived without having been polled.
    for _ in 0..2 {
        if let Ok(outcome) = tokio::time::timeout(limit / 2, &mut operation).await {
            return outcome;
        }
    }
    Err(StoreError::new(format!("no response within {limit:?}")))
}

/// Records an outcome. Returns whether it makes the store unavailable, or available again.
fn record<T>(availability: &Mutex<Availability>, began_at: Instant, outcome: &Result<T, StoreError>) -> Change {
    let mut availability = availability.lock();
    match outcome {
        Ok(_) => availability.succeeded(),
        Err(_) => availability.failed(began_at, Instant::now()),
    }
}

fn log(what: &'static str, change: Change, error: Option<&StoreError>) {
    match (change, error) {
        (Change::Away, Some(error)) => tracing::warn!(
            target: "flipswitch", what, error = %Chain(error),
            "the store is unavailable; continuing without it and retrying. Flags stay up to date while the flag service \
             responds"
        ),
        (Change::Back, _) => tracing::info!(target: "flipswitch", what, "the store is available again"),
        (_, Some(error)) => tracing::debug!(target: "flipswitch", what, error = %Chain(error), "the store failed"),
        (_, None) => {}
    }
}
