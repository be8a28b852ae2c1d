//! The store.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use flipswitch::{CacheStore, Lease, Leased, Lookup, StoreError, StoredEntry, async_trait};
use redis::{Client, Cmd, ErrorKind, FromRedisValue, ServerErrorKind, Value, aio::ConnectionLike};

use crate::{
    connection::{Connection, Supervised},
    error::{CallError, Failure, RedisStoreError},
    script::{self, Script},
    server::Server,
};

/// Maximum size of the encrypted flags for a context, in bytes.
pub(crate) const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// The number of bytes before the encrypted flags in a value. They are the time of the request, in microseconds.
const TIME_BYTES: usize = 8;
/// The longest time to live. Redis adds it to the clock, and rejects a sum that overflows.
const MAX_TTL_MILLIS: u128 = 1 << 52;

/// Keeps flags in Redis or Valkey. Clones share the connection.
///
/// The [documentation of the crate](crate) describes outages, the data in Redis, and the permissions that the Redis user needs.
///
/// ```no_run
/// use flipswitch::FlipswitchProvider;
/// use flipswitch_redis::RedisStore;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let provider = FlipswitchProvider::builder("an API key of 16 bytes or more")
///     .store(RedisStore::connect("rediss://user:password@cache.example.com:6379")?)
///     .build()?;
/// # let _ = provider;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    connection: Arc<Source>,
    server: Arc<str>,
}

enum Source {
    Supervised(Supervised),
    Given(Box<dyn Connection>),
}

impl RedisStore {
    /// Creates a store that uses the server at a URL.
    ///
    /// | URL | connection |
    /// |---|---|
    /// | `redis://[user][:password@]host[:port][/database]`, `valkey://…` | TCP |
    /// | `rediss://…`, `valkeys://…` | TLS |
    /// | `unix:///path[?db=…&user=…&pass=…]` | Unix socket |
    ///
    /// The query `?protocol=resp3` selects the newer protocol.
    ///
    /// This function returns immediately, and needs no runtime. The first call to the store opens the connection, on the tokio
    /// runtime of its caller. The store opens the connection again whenever it is lost.
    ///
    /// # Errors
    ///
    /// Returns a [`RedisStoreError`] if the URL is invalid, or if it needs TLS and TLS is not available.
    pub fn connect(url: impl AsRef<str>) -> Result<Self, RedisStoreError> {
        Self::builder().url(url).build()
    }

    /// Creates a store that uses a connection of the application, such as a Sentinel or cluster connection.
    ///
    /// The connection must reconnect by itself, even after it has been silent, because the store neither checks nor replaces it.
    /// For a single server with settings of your own, use [`RedisStoreBuilder::client`] instead.
    #[must_use]
    pub fn from_connection(connection: impl ConnectionLike + Clone + Send + Sync + 'static) -> Self {
        Self { connection: Arc::new(Source::Given(Box::new(connection))), server: "Redis".into() }
    }

    /// Creates a builder, for a client of your own or a cluster.
    pub fn builder() -> RedisStoreBuilder {
        RedisStoreBuilder { server: Err(RedisStoreError::NoServer) }
    }
}

/// Shows the server, without user and password.
impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Builds a [`RedisStore`] for a server or a cluster. If several setters select a server, the last one applies.
#[must_use]
pub struct RedisStoreBuilder {
    server: Result<Server, RedisStoreError>,
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder").finish_non_exhaustive()
    }
}

impl RedisStoreBuilder {
    /// Sets the URL of the server. [`RedisStore::connect`] lists its forms.
    pub fn url(mut self, url: impl AsRef<str>) -> Self {
        self.server = Server::single(url.as_ref());
        self
    }

    /// Sets a client for a server, for example one with certificates or TCP settings. The store opens and checks the connection
    /// in the same way as with a URL.
    ///
    /// ```no_run
    /// use flipswitch_redis::{
    ///     RedisStore,
    ///     redis::{Client, IntoConnectionInfo, io::tcp::TcpSettings},
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let info = "redis://cache.example.com:6379".into_connection_info()?;
    /// let client = Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true)))?;
    /// let store = RedisStore::builder().client(client).build()?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    pub fn client(mut self, client: Client) -> Self {
        self.server = Server::with_client(client);
        self
    }

    /// Sets the URLs of some nodes of a cluster. The store learns of the other nodes from these.
    #[cfg(feature = "cluster")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cluster")))]
    pub fn cluster(mut self, urls: impl IntoIterator<Item: AsRef<str>>) -> Self {
        self.server = Server::cluster(&urls.into_iter().collect::<Vec<_>>());
        self
    }

    /// Creates the store. Does not wait for the server.
    ///
    /// # Errors
    ///
    /// Returns a [`RedisStoreError`] if no server is set, if a URL is invalid, or if it needs TLS and TLS is not available.
    pub fn build(self) -> Result<RedisStore, RedisStoreError> {
        let server = self.server?;
        let name = server.name.clone();
        Ok(RedisStore { connection: Arc::new(Source::Supervised(Supervised::new(server))), server: name })
    }
}

impl RedisStore {
    async fn send(&self, command: &Cmd, key: &str) -> Result<Value, CallError> {
        match &*self.connection {
            Source::Supervised(connection) => connection.send(command, key).await,
            Source::Given(connection) => Ok(connection.send(command).await?),
        }
    }

    async fn run<T: FromRedisValue>(&self, script: &Script, key: &str, arguments: &[&[u8]]) -> Result<T, StoreError> {
        let value = match self.send(&script.by_hash(key, arguments), key).await {
            Err(CallError::Redis(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.send(&script.by_code(key, arguments), key).await
            }
            outcome => outcome,
        };
        value
            .and_then(|value| Ok(redis::from_redis_value(value).map_err(redis::RedisError::from)?))
            .map_err(|error| self.failure(error))
    }

    fn failure(&self, error: CallError) -> StoreError {
        StoreError::new(Failure { server: self.server.clone(), error })
    }
}

#[async_trait]
impl CacheStore for RedisStore {
    async fn get(&self, key: &str) -> Result<Lookup, StoreError> {
        let max = (MAX_ENTRY_BYTES + TIME_BYTES).to_string();
        let (seconds, micros, value): (_, _, Option<Vec<u8>>) = self.run(&script::GET, key, &[max.as_bytes()]).await?;
        Ok(Lookup { entry: value.and_then(|value| decode(key, value)), now: server_time(seconds, micros) })
    }

    async fn put(&self, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError> {
        if entry.sealed.len() > MAX_ENTRY_BYTES {
            return Err(self.failure(CallError::TooLarge(entry.sealed.len())));
        }
        if ttl.as_millis() == 0 {
            return Ok(());
        }
        let (time, ttl) = (encode_time(entry.sent), ttl_argument(ttl));
        let _: i64 = self.run(&script::PUT, &entry.key, &[&time, &entry.sealed, ttl.as_bytes()]).await?;
        Ok(())
    }

    async fn try_lease(&self, key: &str, ttl: Duration) -> Result<Leased, StoreError> {
        let token = new_token().map_err(|error| self.failure(CallError::Random(error)))?;
        let (seconds, micros, granted): (_, _, bool) =
            self.run(&script::LEASE, &lease_key(key), &[token.as_bytes(), ttl_argument(ttl).as_bytes()]).await?;
        let lease = granted.then(|| Lease { key: key.to_owned(), token });
        Ok(Leased { lease, now: server_time(seconds, micros) })
    }

    async fn release(&self, lease: Lease) -> Result<(), StoreError> {
        let _: i64 = self.run(&script::RELEASE, &lease_key(&lease.key), &[lease.token.as_bytes()]).await?;
        Ok(())
    }
}

/// Returns the key of a lease. It has the braces of the entry's key, so it is on the same node of a cluster.
fn lease_key(key: &str) -> String {
    format!("{key}:lease")
}

fn new_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn ttl_argument(ttl: Duration) -> String {
    ttl.as_millis().clamp(1, MAX_TTL_MILLIS).to_string()
}

fn server_time(seconds: u32, micros: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into())
}

fn encode_time(time: SystemTime) -> [u8; TIME_BYTES] {
    let micros = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(micros).unwrap_or(u64::MAX).to_be_bytes()
}

/// Splits a stored value, which may have any content if another program wrote it.
fn decode(key: &str, mut value: Vec<u8>) -> Option<StoredEntry> {
    let time = *value.first_chunk::<TIME_BYTES>()?;
    let sent = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(u64::from_be_bytes(time)))?;
    let sealed = value.split_off(TIME_BYTES);
    Some(StoredEntry { key: key.to_owned(), sent, sealed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_time_first() {
        let sent = SystemTime::UNIX_EPOCH + Duration::from_micros(1_764_000_000_123_456);
        let time = encode_time(sent);
        let entry = decode("key", [&time[..], b"sealed"].concat()).expect("long enough");
        assert_eq!((entry.sent, entry.sealed.as_slice()), (sent, b"sealed".as_slice()));
        assert_eq!(encode_time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), [0; TIME_BYTES]);
    }

    #[test]
    fn foreign_values_never_panic() {
        assert_eq!(decode("key", b"1234567".to_vec()), None);
        let _ = decode("key", vec![0xff; 8]);
        let _ = decode("key", vec![0xff; 100]);
    }

    #[test]
    fn tokens_are_random() {
        let tokens = [new_token().expect("random"), new_token().expect("random")];
        assert_ne!(tokens[0], tokens[1]);
        assert!(tokens.iter().all(|token| token.len() == 32));
    }

    #[test]
    fn times_to_live_are_bounded() {
        assert_eq!(ttl_argument(Duration::ZERO), "1");
        assert_eq!(ttl_argument(Duration::from_secs(600)), "600000");
        assert_eq!(ttl_argument(Duration::MAX), (1_u64 << 52).to_string());
    }
}
