//! Records which flags an application reads, to find flags that are no longer read.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use time::OffsetDateTime;

use crate::flags::{declare::DeclaredFlag, flag_set::Keys};

/// Maximum number of unlisted keys that are remembered: keys that the service does not have and the code does not declare.
const MAX_UNLISTED: usize = 1_024;

/// Maximum number of other keys that are remembered.
const MAX_LISTED: usize = 65_536;

/// Maximum length of an unlisted key that is remembered, in bytes. A longer key was probably built from data.
const MAX_KEY: usize = 256;

/// How often the marks of reads are collected.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The flags that an application has read since its provider was built. Returned by
/// [`FlipswitchProvider::usage`](crate::FlipswitchProvider::usage). Serialises to JSON with dates in RFC 3339.
///
/// Contains only keys and times: no values, no contexts, and no read counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Usage {
    /// When the provider was built.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The flags that the service has, that the code declares, or that were read; sorted by key.
    pub flags: Vec<FlagUsage>,
    /// Whether all keys that were read are listed. `false` if more than 1 024 of the keys that were read are unknown to the
    /// service and not declared by the code, or if one of these is longer than 256 bytes.
    pub is_complete: bool,
}

/// The reads of one flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct FlagUsage {
    /// Key of the flag.
    pub key: String,
    /// When the flag was last read, to the minute. `None` if it has not been read since the provider was built.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_read: Option<OffsetDateTime>,
    /// Whether the code declares the flag, in a list that was passed to [`declared`](crate::LifespanBuilder::declared).
    pub is_declared: bool,
    /// Whether the flags in memory include this one. `false` for all flags until the service has responded.
    pub is_known: bool,
}

/// Records reads.
///
/// A read sets one bit next to the flag's key, in the table of keys in which the read looks up the flag anyway. All contexts
/// share these tables. The bits are collected and cleared only once a minute, so nearly all reads find the bit set and write
/// nothing.
#[derive(Debug)]
pub(crate) struct UsageLog {
    since: OffsetDateTime,
    collected: Mutex<Collected>,
    /// Keys without a bit that have been read since the last collection.
    unlisted: RwLock<HashSet<Box<str>>>,
    is_complete: AtomicBool,
}

#[derive(Debug, Default)]
struct Collected {
    tables: Vec<Weak<Keys>>,
    /// Number of tables at which tables that are no longer in use are dropped next.
    prune_at: usize,
    last_read: HashMap<Box<str>, LastRead>,
    declared: Vec<&'static [DeclaredFlag]>,
}

/// The last read of one key.
#[derive(Clone, Copy, Debug)]
struct LastRead {
    at: OffsetDateTime,
    /// Whether the service has or had the flag.
    is_listed: bool,
}

/// The bit of one key.
#[derive(Debug, Default)]
pub(crate) struct ReadBit(AtomicBool);

impl ReadBit {
    #[inline]
    pub(crate) fn set(&self) {
        // Read first, so that the cache line stays shared among processors.
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Clears the bit. Returns whether it was set.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

impl Default for UsageLog {
    fn default() -> Self {
        Self {
            since: OffsetDateTime::now_utc(),
            collected: Mutex::default(),
            unlisted: RwLock::default(),
            is_complete: AtomicBool::new(true),
        }
    }
}

impl UsageLog {
    /// Adds a table of keys, whose bits are collected from now on.
    pub(crate) fn add_table(&self, keys: &Arc<Keys>) {
        let mut collected = self.collected.lock();
        if collected.tables.len() >= collected.prune_at {
            collected.prune();
        }
        collected.tables.push(Arc::downgrade(keys));
    }

    /// Adds flags that the code declares.
    pub(crate) fn declare(&self, flags: &'static [DeclaredFlag]) {
        let mut collected = self.collected.lock();
        if !collected.declared.iter().any(|known| std::ptr::eq(*known, flags)) {
            collected.declared.push(flags);
        }
    }

    /// Records a read of a key that is in no table.
    #[cold]
    pub(crate) fn record_unlisted(&self, key: &str) {
        if key.len() > MAX_KEY {
            self.is_complete.store(false, Ordering::Relaxed);
            return;
        }
        if self.unlisted.read().contains(key) {
            return;
        }
        let mut unlisted = self.unlisted.write();
        if unlisted.len() < MAX_UNLISTED {
            unlisted.insert(key.into());
        } else {
            self.is_complete.store(false, Ordering::Relaxed);
        }
    }

    /// Records reads of keys whose table is being dropped.
    pub(crate) fn table_ended<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        let mut keys = keys.peekable();
        if keys.peek().is_some() {
            let now = minute(OffsetDateTime::now_utc());
            let mut collected = self.collected.lock();
            keys.for_each(|key| collected.read(key, now, true));
        }
    }

    /// Collects and clears the bits. Returns the tables of keys that are in use.
    pub(crate) fn sweep(&self, now: OffsetDateTime) -> Vec<Arc<Keys>> {
        let now = minute(now);
        let tables: Vec<_> = {
            let mut collected = self.collected.lock();
            collected.prune();
            collected.tables.iter().filter_map(Weak::upgrade).collect()
        };
        // The lock is not held here, because new tables wait for it, and a table takes it when it is dropped.
        let read: HashSet<_> = tables.iter().flat_map(|table| table.take_read()).collect();
        let unlisted = std::mem::take(&mut *self.unlisted.write());
        let mut collected = self.collected.lock();
        read.into_iter().for_each(|key| collected.read(key, now, true));
        unlisted.iter().for_each(|key| collected.read(key, now, false));
        if collected.drop_oldest() {
            self.is_complete.store(false, Ordering::Relaxed);
        }
        drop(collected);
        tables
    }

    /// Collects the bits once a minute.
    pub(crate) async fn sweep_each_minute(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            drop(self.sweep(OffsetDateTime::now_utc()));
        }
    }

    /// Returns the reads up to now.
    pub(crate) fn usage(&self, now: OffsetDateTime) -> Usage {
        let tables = self.sweep(now);
        let known: BTreeSet<_> = tables.iter().flat_map(|table| table.iter()).collect();
        let collected = self.collected.lock();
        let declared: BTreeSet<_> = collected.declared().collect();
        let read = collected.last_read.keys().map(|key| &**key);
        let keys: BTreeSet<_> = known.iter().chain(&declared).copied().chain(read).collect();
        let flags = keys.into_iter().map(|key| FlagUsage {
            key: key.to_owned(),
            last_read: collected.last_read.get(key).map(|read| read.at),
            is_declared: declared.contains(key),
            is_known: known.contains(key),
        });
        Usage { since: self.since, flags: flags.collect(), is_complete: self.is_complete.load(Ordering::Relaxed) }
    }
}

impl Collected {
    fn declared(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().copied().flatten().map(|flag| -> &str { flag.key() })
    }

    fn read(&mut self, key: &str, at: OffsetDateTime, is_listed: bool) {
        // Most keys are already listed, and need no copy.
        match self.last_read.get_mut(key) {
            Some(read) => *read = LastRead { at, is_listed: is_listed || read.is_listed },
            None => {
                self.last_read.insert(key.into(), LastRead { at, is_listed });
            }
        }
    }

    /// Drops the tables that are no longer in use.
    fn prune(&mut self) {
        self.tables.retain(|table| table.strong_count() > 0);
        self.prune_at = 2 * self.tables.len() + 16;
    }

    /// Drops the keys that were read longest ago, if there are too many. Returns whether there were too many.
    fn drop_oldest(&mut self) -> bool {
        if self.last_read.len() <= MAX_UNLISTED {
            return false;
        }
        let mut dropped = Vec::new();
        let declared: HashSet<_> = self.declared().collect();
        for (of_listed, most) in [(false, MAX_UNLISTED), (true, MAX_LISTED)] {
            let is_listed = |key: &str, read: &LastRead| read.is_listed || declared.contains(key);
            let keys = self.last_read.iter().filter(|(key, read)| is_listed(key, read) == of_listed);
            let mut keys: Vec<_> = keys.map(|(key, read)| (read.at, key.clone())).collect();
            keys.sort_unstable_by(|one, other| other.cmp(one));
            dropped.extend(keys.into_iter().skip(most));
        }
        for (_, key) in &dropped {
            self.last_read.remove(key);
        }
        !dropped.is_empty()
    }
}

/// Returns the beginning of a minute.
fn minute(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).and_then(|time| time.replace_second(0)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use time::macros::datetime;

    use super::*;
    use crate::flags::{declare::FlagDef, flag_set::FlagSet};

    fn set(log: &Arc<UsageLog>, keys: &[&str]) -> FlagSet {
        let values: Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!(true))).collect();
        FlagSet::of_values_in(values, "STATIC", Some(log))
    }

    fn reads(usage: &Usage) -> Vec<(&str, Option<OffsetDateTime>)> {
        usage.flags.iter().map(|flag| (flag.key.as_str(), flag.last_read)).collect()
    }

    #[test]
    fn a_read_is_dated_to_the_minute_in_which_it_is_collected() {
        let log = Arc::default();
        let flags = set(&log, &["a", "b"]);
        assert!(flags.read("a").is_some() && flags.read("missing").is_none());
        log.sweep(datetime!(2026-01-01 10:00:59.9 UTC));
        assert!(flags.read("b").is_some());
        let usage = log.usage(datetime!(2026-01-01 10:01:30 UTC));
        let (first, second) = (datetime!(2026-01-01 10:00 UTC), datetime!(2026-01-01 10:01 UTC));
        assert_eq!(reads(&usage), [("a", Some(first)), ("b", Some(second)), ("missing", Some(first))]);
        let known: Vec<_> = usage.flags.iter().map(|flag| flag.is_known).collect();
        assert_eq!((known, usage.is_complete), (vec![true, true, false], true));
    }

    #[test]
    fn reads_of_flags_that_are_gone_are_kept() {
        let log = Arc::default();
        let (gone, kept) = (set(&log, &["gone", "both"]), set(&log, &["both", "unread"]));
        assert!(gone.read("gone").is_some() && gone.read("both").is_some());
        drop(gone);
        let usage = log.usage(datetime!(2026-01-01 10:00 UTC));
        let read: Vec<_> = reads(&usage).into_iter().map(|(key, read)| (key, read.is_some())).collect();
        assert_eq!(read, [("both", true), ("gone", true), ("unread", false)]);
        drop(kept);
        assert!(
            log.usage(OffsetDateTime::UNIX_EPOCH).flags.iter().all(|flag| !flag.is_known && flag.last_read.is_some())
        );
    }

    #[test]
    fn at_most_1024_unlisted_keys_are_kept() {
        let log = Arc::default();
        let flags = set(&log, &["real"]);
        log.declare(DECLARED);
        for minute in 0..5 {
            flags.read("real");
            log.record_unlisted("declared");
            (0..1_500).for_each(|number| log.record_unlisted(&format!("{minute}-{number}")));
            log.sweep(datetime!(2026-01-01 10:00 UTC) + time::Duration::minutes(minute));
        }
        log.record_unlisted(&"long".repeat(100));
        let usage = log.usage(datetime!(2026-01-01 11:00 UTC));
        assert!(!usage.is_complete);
        assert_eq!(usage.flags.len(), MAX_UNLISTED + 2);
        let of = |key: &str| usage.flags.iter().find(|flag| flag.key == key).unwrap();
        let last = Some(datetime!(2026-01-01 10:04 UTC));
        assert_eq!((of("real").last_read, of("declared").last_read), (last, last));
        assert!(of("declared").is_declared && usage.flags.iter().all(|flag| flag.key.len() < MAX_KEY));
    }

    struct Declared;

    impl FlagDef for Declared {
        type Value = bool;

        const KEY: &'static str = "declared";

        fn default_value() -> bool {
            false
        }
    }

    static DECLARED: &[DeclaredFlag] = &[DeclaredFlag::new::<Declared>("")];

    #[test]
    fn flags_that_the_service_had_do_not_count_as_unlisted() {
        let log = Arc::default();
        let keys: Vec<_> = (0..1_500).map(|number| format!("flag-{number}")).collect();
        let flags = set(&log, &keys.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(keys.iter().all(|key| flags.read(key).is_some()));
        drop(flags);
        let usage = log.usage(datetime!(2026-01-01 10:00 UTC));
        assert!(usage.is_complete && usage.flags.len() == 1_500, "{}", usage.flags.len());
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_collected_each_minute() {
        let log = Arc::<UsageLog>::default();
        let flags = set(&log, &["a"]);
        let sweeping = tokio::spawn(Arc::clone(&log).sweep_each_minute());
        flags.read("a");
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert!(log.collected.lock().last_read.is_empty());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(log.collected.lock().last_read.len(), 1);
        sweeping.abort();
    }

    #[test]
    fn concurrent_reads_and_collections_lose_no_read() {
        let log = Arc::new(UsageLog::default());
        let keys: Vec<_> = (0..64).map(|number| format!("flag-{number}")).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (number, key) in keys.iter().enumerate() {
                        // Each set is dropped after one read.
                        let flags = set(&log, &[key]);
                        assert!(flags.read(key).is_some());
                        if number % 8 == 0 {
                            log.sweep(OffsetDateTime::now_utc());
                        }
                    }
                });
            }
        });
        let usage = log.usage(OffsetDateTime::now_utc());
        assert_eq!(usage.flags.iter().filter(|flag| flag.last_read.is_some()).count(), 64);
    }
}
