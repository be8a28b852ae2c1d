//! The store, its queue, and the threads that use the file.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, TrySendError},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use flipswitch::{CacheStore, Lookup, StoreError, StoredEntry, async_trait};
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::oneshot;

use crate::{
    backend::{LockedFile, open_file},
    file::{self, Entry, Failure, OpenFile},
};

/// How long a write waits for other writes that are committed with it.
const COMMIT_DELAY: Duration = Duration::from_millis(500);
/// The interval at which a file that cannot be used is opened again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(3);
/// If a process exits within this time after opening the file, damage may be the cause.
const EARLY: Duration = Duration::from_secs(10);
/// How long dropping the store waits for the last commit.
const DROP_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of writes that wait to be committed, and maximum size of all of them in bytes.
const MAX_QUEUED: (usize, usize) = (4096, 8 << 20);
/// Maximum number of waiting reads.
const MAX_READS: usize = 1024;
/// Maximum size of an entry, including its key, in bytes.
const MAX_ENTRY: usize = 1 << 20;
const DEFAULT_MAX_BYTES: u64 = 256 << 20;

/// Keeps flags in a file, which one process at a time can use.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use flipswitch_disk::{DiskStore, flipswitch::FlipswitchProvider};
///
/// // Providers in one process share a store.
/// let store = Arc::new(DiskStore::open("/var/lib/my-application/flags.redb")?);
/// let provider = FlipswitchProvider::builder("the API key of one environment").store(store.clone()).build()?;
/// let other = FlipswitchProvider::builder("the API key of another environment").store(store).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// File errors after [`open`](Self::open) never stop the application: operations return a [`StoreError`], and the store opens the
/// file again every 3 seconds.
///
/// [`put`](CacheStore::put) returns once the entry is queued. A thread commits the queue every 500 milliseconds, so the writes of
/// the last second may be lost in a crash. Dropping the store commits the queue, which can block for up to 3 seconds, even on a
/// thread of an async runtime.
pub struct DiskStore {
    inner: Arc<Inner>,
    reads: mpsc::SyncSender<(String, Reply)>,
    /// Receives no messages, and is disconnected when the writer thread ends.
    ended: Mutex<mpsc::Receiver<()>>,
}

type Reply = oneshot::Sender<Result<Option<Entry>, StoreError>>;

struct Inner {
    path: PathBuf,
    max_bytes: u64,
    /// Only the writer thread opens and closes it.
    file: RwLock<Option<OpenFile>>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The writes that have not been committed yet.
    puts: HashMap<Arc<str>, Arc<Entry>>,
    bytes: usize,
    /// When the oldest write that the writer has not taken was queued, or slightly earlier.
    since: Option<Instant>,
    /// The reason why the file cannot be used, if there is one.
    closed: Option<Failure>,
    /// When a file that cannot be used is opened again.
    retry_at: Option<Instant>,
    /// The time after which an exit of the process no longer counts as early. The writer clears it once it has recorded that.
    settles: Option<Instant>,
    is_ending: bool,
}

enum Task {
    Write(Vec<(Arc<str>, Arc<Entry>)>),
    Reopen(Failure),
    Settle,
    End,
}

impl DiskStore {
    /// Opens or creates a file for up to 256 MiB of entries. Its directory must exist and be writable.
    ///
    /// If the file is open elsewhere or cannot be used, the store logs a warning and tries again later. It renames a damaged file
    /// to `<path>.unreadable`.
    ///
    /// # Errors
    ///
    /// Returns an operating system error if the file can neither be opened for reading and writing nor created.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::open_with_limit(path, DEFAULT_MAX_BYTES)
    }

    /// Opens or creates a file for up to `max_bytes` of entries. If they exceed this limit, the store removes the entries that
    /// expire first. The file can be larger, as the [documentation of the crate](crate#shutdown-and-size) describes.
    ///
    /// Otherwise behaves like [`open`](Self::open).
    ///
    /// # Errors
    ///
    /// Returns an operating system error if the file can neither be opened for reading and writing nor created.
    pub fn open_with_limit(path: impl AsRef<Path>, max_bytes: u64) -> io::Result<Self> {
        let path = path.as_ref();
        Self::start(path, max_bytes)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open the file {}: {error}", path.display())))
    }

    fn start(path: &Path, max_bytes: u64) -> io::Result<Self> {
        open_file(path)?;
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            max_bytes,
            file: RwLock::default(),
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        inner.open(None);
        let opened = inner.check(&inner.queue.lock());
        if let Err(error) = opened {
            tracing::warn!(target: "flipswitch", "{error}; continuing without the file, and retrying");
        }
        let (reads, queue) = mpsc::sync_channel(MAX_READS);
        let (ends, ended) = mpsc::channel();
        let store = Self { inner, reads, ended: Mutex::new(ended) };
        let inner = Arc::clone(&store.inner);
        spawn("flipswitch-read", move || inner.read_until_end(queue))?;
        let inner = Arc::clone(&store.inner);
        spawn("flipswitch-disk", move || {
            inner.write_until_end();
            drop::<mpsc::Sender<()>>(ends);
        })?;
        Ok(store)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

#[async_trait]
impl CacheStore for DiskStore {
    async fn get(&self, key: &str) -> Result<Lookup, StoreError> {
        let (reply, answer) = oneshot::channel();
        let queued = {
            let queue = self.inner.queue.lock();
            self.inner.check(&queue)?;
            queue.puts.get(key).cloned()
        };
        self.reads.try_send((key.to_owned(), reply)).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::new("too many reads of the file are waiting"),
            TrySendError::Disconnected(_) => StoreError::new("the thread that reads the file has ended"),
        })?;
        let stored = answer.await.map_err(StoreError::new)??;

        let now = SystemTime::now();
        let is_newest = |queued: &&Entry| {
            stored
                .as_ref()
                .is_none_or(|stored| file::is_replaced(stored.sent, stored.expires, queued.sent, micros(now)))
        };
        let newest = queued.as_deref().filter(is_newest).or(stored.as_ref());
        let entry = newest.filter(|entry| entry.expires > micros(now)).and_then(|entry| {
            let sent = UNIX_EPOCH.checked_add(Duration::from_micros(entry.sent))?;
            Some(StoredEntry { key: key.to_owned(), sent, sealed: entry.sealed.clone() })
        });
        Ok(Lookup { entry, now })
    }

    async fn put(&self, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError> {
        let now = micros(SystemTime::now());
        let expires = now.saturating_add(ttl.as_micros().try_into().unwrap_or(u64::MAX));
        let key: Arc<str> = entry.key.into();
        let entry = Entry { sent: micros(entry.sent), expires, sealed: entry.sealed };
        let size = size(&key, &entry);
        if size > MAX_ENTRY {
            return Err(StoreError::new(format!("an entry is {size} bytes, but at most {MAX_ENTRY} are allowed")));
        }

        let mut queue = self.inner.queue.lock();
        self.inner.check(&queue)?;
        let replaced = match queue.puts.get(&key) {
            Some(queued) if !file::is_replaced(queued.sent, queued.expires, entry.sent, now) => return Ok(()),
            Some(queued) => self::size(&key, queued),
            None => 0,
        };
        if queue.puts.len() >= MAX_QUEUED.0 || queue.bytes + size > MAX_QUEUED.1 {
            return Err(StoreError::new("too many entries are waiting to be written to the file"));
        }
        queue.bytes = queue.bytes + size - replaced;
        queue.puts.insert(key, Arc::new(entry));
        let is_first = queue.since.is_none();
        queue.since.get_or_insert_with(Instant::now);
        if is_first || queue.is_half_full() {
            self.inner.changed.notify_all();
        }
        Ok(())
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.inner.queue.lock().is_ending = true;
        self.inner.changed.notify_all();
        if self.ended.get_mut().recv_timeout(DROP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            let path = self.inner.path.display();
            tracing::warn!(target: "flipswitch", "writing the file {path} takes too long; its last entries may be lost");
        }
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStore")
            .field("path", &self.inner.path)
            .field("max_bytes", &self.inner.max_bytes)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Removes the entries that were written, except those that a newer entry with the same key has replaced in the meantime.
    fn remove(&mut self, batch: &[(Arc<str>, Arc<Entry>)]) {
        for (key, put) in batch {
            if self.puts.get(key).is_some_and(|queued| Arc::ptr_eq(queued, put)) {
                self.puts.remove(key);
                self.bytes -= size(key, put);
            }
        }
    }

    fn is_half_full(&self) -> bool {
        self.puts.len() >= MAX_QUEUED.0 / 2 || self.bytes >= MAX_QUEUED.1 / 2
    }
}

impl Inner {
    /// Returns an error if the file cannot be used.
    fn check(&self, queue: &Queue) -> Result<(), StoreError> {
        queue.closed.as_ref().map_or(Ok(()), |failure| Err(self.error(failure)))
    }

    fn error(&self, failure: &Failure) -> StoreError {
        StoreError::new(format!("the file {} cannot be used: {}", self.path.display(), failure.reason))
    }

    /// Opens the file. If an earlier file failed because of damage, it is set aside first. If opening fails, the store is closed.
    fn open(&self, failed: Option<Failure>) {
        self.queue.lock().retry_at = Some(Instant::now() + REOPEN_INTERVAL);
        let set_aside = match (self.close_file(), failed) {
            (Some(file), Some(failure)) if failure.is_damage => file.set_aside(&failure.reason),
            _ => Ok(()),
        };
        match set_aside.and_then(|()| file::open(&self.path, micros(SystemTime::now()), self.max_bytes)) {
            Ok(file) => {
                *self.file.write() = Some(file);
                let mut queue = self.queue.lock();
                queue.settles = Some(Instant::now() + EARLY);
                queue.closed = None;
            }
            Err(failure) => self.queue.lock().closed = Some(failure),
        }
    }

    /// Runs an operation on the file, and closes the store if it fails. The provider logs the failure. It is not logged here,
    /// because locks are held, and a slow subscriber would block all operations.
    fn run<T>(&self, operation: impl FnOnce(&OpenFile) -> Result<T, Failure>) -> Result<T, StoreError> {
        let file = self.file.read();
        let Some(open) = &*file else {
            return Err(StoreError::new(format!("the file {} is closed", self.path.display())));
        };
        operation(open).map_err(|failure| {
            let error = self.error(&failure);
            // `file` is still locked, so no other file is closed here.
            self.queue.lock().closed.get_or_insert(failure);
            self.changed.notify_all();
            error
        })
    }

    /// The thread that reads.
    fn read_until_end(&self, reads: mpsc::Receiver<(String, Reply)>) {
        for (key, reply) in reads {
            if !reply.is_closed() {
                // The receiver of the reply may have been dropped by now.
                let _ = reply.send(self.run(|file| file.read(&key)));
            }
        }
    }

    /// The thread that writes.
    fn write_until_end(&self) {
        loop {
            match self.next_task() {
                Task::Write(batch) => {
                    let began = Instant::now();
                    let now = micros(SystemTime::now());
                    // If this fails, the next operation returns the error.
                    if self.run(|file| file.write(&batch, now, self.max_bytes)).is_ok() {
                        let (entries, micros) = (batch.len(), began.elapsed().as_micros() as u64);
                        tracing::trace!(target: "flipswitch", entries, micros, "committed to the file");
                    }
                    self.queue.lock().remove(&batch);
                }
                Task::Reopen(failure) => self.open(Some(failure)),
                Task::Settle => {
                    if let Some(file) = &*self.file.read() {
                        file.forget_starts();
                    }
                }
                Task::End => break,
            }
        }
        self.close_file();
    }

    /// Closes the database. The file stays locked until the returned value is dropped.
    fn close_file(&self) -> Option<LockedFile> {
        let file = self.file.write().take();
        file.map(OpenFile::close)
    }

    fn next_task(&self) -> Task {
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            let mut wakes = queue.settles;
            let is_ending = queue.is_ending;
            if let Some(closed) = &queue.closed {
                if is_ending {
                    return Task::End;
                }
                if queue.retry_at.is_none_or(|at| at <= now) {
                    return Task::Reopen(closed.clone());
                }
                wakes = queue.retry_at;
            } else if wakes.is_some_and(|settles| settles <= now) {
                queue.settles = None;
                return Task::Settle;
            } else if let Some(since) = queue.since {
                let due = since + COMMIT_DELAY;
                if is_ending || queue.is_half_full() || due <= now {
                    queue.since = None;
                    return Task::Write(queue.puts.iter().map(|(key, put)| (key.clone(), put.clone())).collect());
                }
                wakes = Some(wakes.map_or(due, |settles| settles.min(due)));
            } else if is_ending {
                return Task::End;
            }
            match wakes {
                Some(at) => drop(self.changed.wait_until(&mut queue, at)),
                None => self.changed.wait(&mut queue),
            }
        }
    }
}

fn size(key: &str, entry: &Entry) -> usize {
    key.len() + entry.sealed.len()
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros().try_into().unwrap_or(u64::MAX))
}
