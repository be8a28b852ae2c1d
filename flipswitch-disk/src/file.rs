//! The database: its tables, and its transactions.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::backend::LockedFile;

/// `sent`, `expires` and the sealed flags by key. Times are microseconds since 1970.
const ENTRIES: TableDefinition<'_, &[u8], (u64, u64, &[u8])> = TableDefinition::new("entries");
/// The keys by `expires`, to find the entries that are removed first.
const EXPIRIES: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("expiries");
/// [`VERSION`] and [`BYTES`].
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The version of the tables. A file with another version is set aside.
const VERSION: (&str, u64) = ("version", 1);
/// The sum of [`cost`] of all entries.
const BYTES: &str = "bytes";

/// The size of a page of the file.
const PAGE: usize = 4096;
/// The memory for pages of the file. The operating system caches more of them.
const PAGE_CACHE: usize = 8 << 20;
/// An entry that was sent later is still replaced if its time is ahead of the clock by more than this, in microseconds.
const CLOCK_TOLERANCE: u64 = 1_000_000;
/// Maximum number of entries that one transaction removes.
const REMOVED_AT_ONCE: usize = 4096;
/// Number of early exits in a row after which the file is set aside.
const EARLY_ENDS: u32 = 3;
/// The size from which a file is compacted.
const COMPACTED_FROM: u64 = 16 << 20;
/// A file is compacted if it is this many times as large as its content.
const COMPACTED_FACTOR: u64 = 4;

/// One entry. Times are microseconds since 1970.
pub(crate) struct Entry {
    pub(crate) sent: u64,
    pub(crate) expires: u64,
    pub(crate) sealed: Vec<u8>,
}

/// Returns whether an entry that was sent at `new` replaces a known one.
pub(crate) fn is_replaced(sent: u64, expires: u64, new: u64, now: u64) -> bool {
    new >= sent || expires <= now || sent > now.saturating_add(CLOCK_TOLERANCE)
}

/// The reason why the file could not be used.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// Whether the file is damaged, or was not written by this crate. Otherwise, it may be usable later.
    pub(crate) is_damage: bool,
}

impl Failure {
    fn damage(reason: String) -> Self {
        Self { reason, is_damage: true }
    }

    pub(crate) fn temporary(reason: String) -> Self {
        Self { reason, is_damage: false }
    }
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        use io::ErrorKind::{InvalidData, UnexpectedEof};

        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Self::temporary("another process or store has it open".to_owned()),
            redb::Error::Io(error) if !matches!(error.kind(), InvalidData | UnexpectedEof) => {
                Self::temporary(error.to_string())
            }
            error @ redb::Error::PreviousIo => Self::temporary(error.to_string()),
            error => Self::damage(error.to_string()),
        }
    }
}

/// Runs a function that uses the database. The database panics on some kinds of damage, which becomes an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Failure::damage("the database library panicked".to_owned())))
}

/// The database in a locked file.
pub(crate) struct OpenFile {
    database: Database,
    file: LockedFile,
}

/// Opens the database in a file. Creates the file if it does not exist, and sets a damaged file aside.
pub(crate) fn open(path: &Path, now: u64, max_bytes: u64) -> Result<OpenFile, Failure> {
    let file = LockedFile::open(path)?;
    match OpenFile::new(&file, now, max_bytes) {
        Err(failure) if failure.is_damage => file.set_aside(&failure.reason)?,
        opened => return opened,
    }
    OpenFile::new(&LockedFile::open(path)?, now, max_bytes)
}

impl OpenFile {
    /// Opens the database, removes expired entries, and compacts the file if most of it is unused.
    fn new(file: &LockedFile, now: u64, max_bytes: u64) -> Result<Self, Failure> {
        if file.count_start() >= EARLY_ENDS {
            return Err(Failure::damage(format!(
                "{EARLY_ENDS} times in a row, the process exited within 10 seconds after its start"
            )));
        }
        let opened = guarded(|| {
            let mut database = Database::builder()
                .set_cache_size(PAGE_CACHE)
                .create_with_file_format_v3(true)
                .create_with_backend(file.clone())?;
            let bytes = transaction(&database, |tables| {
                tables.trim(now, max_bytes)?;
                Ok(tables.bytes)
            })?;
            if fs::metadata(&file.path)?.len() > COMPACTED_FROM.max(bytes.saturating_mul(COMPACTED_FACTOR)) {
                database.compact()?;
            }
            Ok(Self { database, file: file.clone() })
        });
        if opened.is_err() {
            file.forget_starts();
        }
        opened
    }

    /// Records that the file has been in use for a while, so it does not terminate the process.
    pub(crate) fn forget_starts(&self) {
        self.file.forget_starts();
    }

    /// Closes the database, which writes a last transaction if necessary. The file remains locked.
    pub(crate) fn close(self) -> LockedFile {
        // An earlier operation has already returned the failure, and committed entries are safe.
        let _ = guarded(|| {
            drop(self.database);
            Ok(())
        });
        self.file.forget_starts();
        self.file
    }

    /// Returns the entry of a key, even if it has expired.
    pub(crate) fn read(&self, key: &str) -> Result<Option<Entry>, Failure> {
        guarded(|| {
            let table = self.database.begin_read()?.open_table(ENTRIES)?;
            let found = table.get(key.as_bytes())?;
            Ok(found.map(|found| {
                let (sent, expires, sealed) = found.value();
                Entry { sent, expires, sealed: sealed.to_vec() }
            }))
        })
    }

    /// Writes entries, and removes those that have expired or exceed the limit.
    pub(crate) fn write(&self, batch: &[(Arc<str>, Arc<Entry>)], now: u64, max_bytes: u64) -> Result<(), Failure> {
        guarded(|| {
            transaction(&self.database, |tables| {
                for (key, entry) in batch {
                    tables.put(key.as_bytes(), entry, now)?;
                }
                tables.trim(now, max_bytes)
            })
        })
    }
}

/// Runs one write transaction. The changes are on disk when this function returns.
fn transaction<T>(database: &Database, work: impl FnOnce(&mut Tables<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut transaction = database.begin_write()?;
    // With this, the file opens immediately after a crash. Otherwise, all of it would be read first.
    transaction.set_quick_repair(true);
    let mut tables = Tables::open(&transaction)?;
    let done = work(&mut tables)?;
    tables.meta.insert(BYTES, tables.bytes)?;
    drop(tables);
    transaction.commit()?;
    Ok(done)
}

/// The tables in a write transaction.
struct Tables<'t> {
    entries: Table<'t, &'static [u8], (u64, u64, &'static [u8])>,
    expiries: Table<'t, (u64, &'static [u8]), ()>,
    meta: Table<'t, &'static str, u64>,
    bytes: u64,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, Failure> {
        let mut meta = transaction.open_table(META)?;
        let version = meta.get(VERSION.0)?.map(|version| version.value());
        match version {
            None => drop(meta.insert(VERSION.0, VERSION.1)?),
            Some(version) if version == VERSION.1 => {}
            Some(version) => return Err(Failure::damage(format!("its version is {version}, not {}", VERSION.1))),
        }
        let bytes = meta.get(BYTES)?.map_or(0, |bytes| bytes.value());
        Ok(Self { entries: transaction.open_table(ENTRIES)?, expiries: transaction.open_table(EXPIRIES)?, meta, bytes })
    }

    /// Writes an entry, unless the file has an entry that was sent later.
    fn put(&mut self, key: &[u8], entry: &Entry, now: u64) -> Result<(), Failure> {
        let known = self.entries.get(key)?.map(|known| {
            let (sent, expires, sealed) = known.value();
            (sent, expires, sealed.len())
        });
        if let Some((sent, expires, length)) = known {
            if !is_replaced(sent, expires, entry.sent, now) {
                return Ok(());
            }
            self.expiries.remove((expires, key))?;
            self.bytes = self.bytes.saturating_sub(cost(key.len(), length));
        }
        self.entries.insert(key, (entry.sent, entry.expires, entry.sealed.as_slice()))?;
        self.expiries.insert((entry.expires, key), ())?;
        self.bytes = self.bytes.saturating_add(cost(key.len(), entry.sealed.len()));
        Ok(())
    }

    /// Removes expired entries and, if `max_bytes` is exceeded, the entries that expire first.
    fn trim(&mut self, now: u64, max_bytes: u64) -> Result<(), Failure> {
        for _ in 0..REMOVED_AT_ONCE {
            let Some((expires, key)) = self.expiries.first()?.map(|(first, _)| {
                let (expires, key) = first.value();
                (expires, key.to_vec())
            }) else {
                break;
            };
            if expires > now && self.bytes <= max_bytes {
                break;
            }
            self.expiries.remove((expires, key.as_slice()))?;
            let length = self.entries.remove(key.as_slice())?.map(|entry| entry.value().2.len());
            self.bytes = self.bytes.saturating_sub(length.map_or(0, |length| cost(key.len(), length)));
        }
        Ok(())
    }
}

/// Returns the approximate size of an entry in the file. A large entry has its own pages, and their number is a power of two.
fn cost(key: usize, sealed: usize) -> u64 {
    let entry = key + sealed + 40;
    let index = key + 40;
    let entry = if entry > PAGE / 2 { entry.next_power_of_two().max(PAGE) } else { entry + entry / 2 };
    (entry + index + index / 2) as u64
}
