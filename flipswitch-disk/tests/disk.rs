//! Tests the store with real files, and with processes that exit at any moment.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and processes report by printing"
)]

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    panic,
    path::{Path, PathBuf},
    process::{self, Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Barrier, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use flipswitch_disk::{
    DiskStore,
    flipswitch::{CacheStore, Lookup, StoreError, StoredEntry},
};
use pollster::block_on;
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("flags.redb")
    }

    fn aside(&self) -> PathBuf {
        self.0.path().join("flags.redb.unreadable")
    }

    fn starts(&self) -> PathBuf {
        self.0.path().join("flags.redb.starts")
    }
}

/// The time now, in whole microseconds.
fn now() -> SystemTime {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    UNIX_EPOCH + Duration::from_micros(micros.try_into().unwrap())
}

fn entry(key: &str, sent: SystemTime, sealed: &[u8]) -> StoredEntry {
    StoredEntry { key: key.to_owned(), sent, sealed: sealed.to_vec() }
}

fn put(store: &DiskStore, entry: StoredEntry, ttl: Duration) -> Result<(), StoreError> {
    block_on(store.put(entry, ttl))
}

fn get(store: &DiskStore, key: &str) -> Option<StoredEntry> {
    lookup(store, key).unwrap().entry
}

fn lookup(store: &DiskStore, key: &str) -> Result<Lookup, StoreError> {
    block_on(store.get(key))
}

/// Tries to put an entry until the queue has room.
fn put_when_possible(store: &DiskStore, entry: &StoredEntry, ttl: Duration) {
    wait_for("room in the queue", || put(store, entry.clone(), ttl).is_ok());
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "no {what} after a minute");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A process of this program that runs one of the tests below, as part of another test.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

const PATH: &str = "FLIPSWITCH_DISK_TEST_PATH";
const FROM: &str = "FLIPSWITCH_DISK_TEST_FROM";

impl Process {
    fn start(test: &str, path: &Path, from: u64) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(PATH, path)
            .env(FROM, from.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Waits for a line with a word.
    fn expect(&mut self, word: &str) {
        let found = self.output.by_ref().lines().any(|line| line.unwrap().contains(word));
        assert!(found, "the process ended without {word:?}");
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until the process exits. `wait` of the child would close its input, which would terminate it.
    fn wait(&mut self) -> (ExitStatus, String) {
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        (status, output)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns, in a process that a test has started, the path of the file and the lines that the test sends. Exits the process once
/// the test has ended.
fn started() -> Option<(PathBuf, mpsc::Receiver<String>)> {
    let path = env::var_os(PATH)?;
    let (lines, told) = mpsc::channel();
    thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|line| lines.send(line).unwrap());
        process::exit(0);
    });
    Some((path.into(), told))
}

/// Prints a line to the process that started this one.
fn say(line: &str) {
    println!("\n{line}");
}

#[test]
fn entries_outlive_the_store() {
    let directory = Directory::new();
    let entries: Vec<_> = (0..300).map(|i| entry(&format!("key-{i}"), now(), &vec![i as u8; i * 31])).collect();
    let store = DiskStore::open(directory.file()).unwrap();
    for entry in &entries {
        put_when_possible(&store, entry, HOUR);
        assert_eq!(get(&store, &entry.key).as_ref(), Some(entry));
    }
    drop(store);

    let store = DiskStore::open(directory.file()).unwrap();
    for entry in &entries {
        assert_eq!(get(&store, &entry.key).as_ref(), Some(entry));
    }
    assert_eq!(get(&store, "key-300"), None);
}

#[test]
fn dropping_the_store_commits_its_queue() {
    let directory = Directory::new();
    for i in 0..20_u8 {
        let store = DiskStore::open(directory.file()).unwrap();
        let last = entry("key", now(), &[i]);
        put(&store, last.clone(), HOUR).unwrap();
        drop(store);
        assert_eq!(get(&DiskStore::open(directory.file()).unwrap(), "key"), Some(last));
    }
}

#[test]
fn entries_expire() {
    let directory = Directory::new();
    let store = DiskStore::open(directory.file()).unwrap();
    put(&store, entry("at once", now(), b"1"), Duration::ZERO).unwrap();
    assert_eq!(get(&store, "at once"), None);
    put(&store, entry("later", now(), b"2"), HOUR).unwrap();
    put(&store, entry("never", now(), b"3"), Duration::MAX).unwrap();
    put(&store, entry("soon", now(), b"4"), Duration::from_millis(700)).unwrap();
    wait_for("expiry", || get(&store, "soon").is_none());
    drop(store);

    let store = DiskStore::open(directory.file()).unwrap();
    let found = ["at once", "later", "never", "soon"].map(|key| get(&store, key).is_some());
    assert_eq!(found, [false, true, true, false]);
}

#[test]
fn an_entry_never_replaces_one_that_was_sent_later() {
    let second = Duration::from_secs(1);
    let base = now();
    let cases = [
        ("later", base, base + second / 2, true),
        ("same time", base, base, true),
        ("earlier", base, base - second, false),
        ("earlier than one ahead of the clock", base + HOUR, base, true),
        ("later than one ahead of the clock", base + HOUR, base + 2 * HOUR, true),
    ];
    // In the queue, and in the file.
    for is_reopened in [false, true] {
        let directory = Directory::new();
        let mut store = DiskStore::open(directory.file()).unwrap();
        for (name, first, ..) in cases {
            put(&store, entry(name, first, b"first"), HOUR).unwrap();
        }
        if is_reopened {
            drop(store);
            store = DiskStore::open(directory.file()).unwrap();
        }
        for (name, _, second, _) in cases {
            put(&store, entry(name, second, b"second"), HOUR).unwrap();
        }
        let check = |store: &DiskStore| {
            for (name, _, _, is_replaced) in cases {
                let expected: &[u8] = if is_replaced { b"second" } else { b"first" };
                assert_eq!(get(store, name).unwrap().sealed, expected, "{name}, reopened: {is_reopened}");
            }
        };
        check(&store);
        drop(store);
        check(&DiskStore::open(directory.file()).unwrap());
    }
}

#[test]
fn any_entry_replaces_an_expired_one() {
    let directory = Directory::new();
    let store = DiskStore::open(directory.file()).unwrap();
    let sent = now();
    put(&store, entry("key", sent, b"expired"), Duration::ZERO).unwrap();
    put(&store, entry("key", sent - HOUR, b"earlier"), HOUR).unwrap();
    assert_eq!(get(&store, "key").unwrap().sealed, b"earlier");
}

#[test]
fn a_large_entry_is_rejected() {
    let directory = Directory::new();
    let store = DiskStore::open(directory.file()).unwrap();
    let error = put(&store, entry("key", now(), &vec![0; 1 << 20]), HOUR).unwrap_err();
    assert_eq!(error.to_string(), "an entry is 1048579 bytes, but at most 1048576 are allowed");
    put(&store, entry("key", now(), &vec![0; (1 << 20) - 3]), HOUR).unwrap();
}

#[test]
fn the_file_is_bounded_and_keeps_what_expires_last() {
    const LIMIT: u64 = 8 << 20;
    const COUNT: usize = 20_000;
    let directory = Directory::new();
    let store = DiskStore::open_with_limit(directory.file(), LIMIT).unwrap();
    for i in 0..COUNT {
        put_when_possible(&store, &entry(&format!("key-{i}"), now(), &vec![0; i % 8000]), HOUR);
    }
    drop(store);
    // 80 MB have been written. A commit is up to 8 MiB, and the pages that it frees can be used by the commit after the next one.
    let length = fs::metadata(directory.file()).unwrap().len();
    assert!(length <= 3 * LIMIT + (64 << 20), "the file has {length} bytes");

    let store = DiskStore::open_with_limit(directory.file(), LIMIT).unwrap();
    let kept: Vec<_> = (0..COUNT).map(|i| get(&store, &format!("key-{i}")).is_some()).collect();
    let count = kept.iter().filter(|kept| **kept).count();
    assert!((800..4000).contains(&count), "{count} entries are kept");
    assert!(kept[COUNT - count..].iter().all(|kept| *kept));
}

#[test]
fn a_file_that_is_mostly_unused_shrinks_when_it_is_opened() {
    let directory = Directory::new();
    let store = DiskStore::open(directory.file()).unwrap();
    for i in 0..50 {
        put_when_possible(&store, &entry(&format!("key-{i}"), now(), &vec![7; 700_000]), HOUR);
    }
    put_when_possible(&store, &entry("small", now(), b"kept"), 2 * HOUR);
    drop(store);
    let before = fs::metadata(directory.file()).unwrap().len();

    let store = DiskStore::open_with_limit(directory.file(), 100_000).unwrap();
    let after = fs::metadata(directory.file()).unwrap().len();
    assert!(before > 20 << 20 && after < 4 << 20, "{before} bytes shrank to {after}");
    assert_eq!(get(&store, "small").unwrap().sealed, b"kept");
}

#[test]
fn a_path_that_cannot_be_a_file_is_an_error() {
    let directory = Directory::new();
    for path in [directory.0.path().join("missing").join("flags.redb"), directory.0.path().to_owned()] {
        let error = DiskStore::open(&path).unwrap_err();
        let expected = format!("cannot open the file {}: ", path.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn only_the_user_can_read_the_file() {
    use std::os::unix::fs::PermissionsExt;

    let directory = Directory::new();
    let _store = DiskStore::open(directory.file()).unwrap();
    assert_eq!(fs::metadata(directory.file()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_is_open_elsewhere_is_used_after_it_was_closed() {
    for is_killed in [false, true] {
        let directory = Directory::new();
        let mut first = Process::start("process_holds_the_file", &directory.file(), 0);
        first.expect("opened");

        let second = DiskStore::open(directory.file()).unwrap();
        let expected =
            format!("the file {} cannot be used: another process or store has it open", directory.file().display());
        assert_eq!(lookup(&second, "key").unwrap_err().to_string(), expected);
        assert_eq!(put(&second, entry("key", now(), b"second"), HOUR).unwrap_err().to_string(), expected);

        first.tell("read");
        first.expect("read");
        if is_killed {
            drop(first);
        } else {
            first.tell("end");
            first.wait();
        }
        wait_for("success", || lookup(&second, "key").is_ok());
        put(&second, entry("key", now(), b"second"), HOUR).unwrap();
        assert_eq!(get(&second, "key").unwrap().sealed, b"second");
        drop(second);
        assert_eq!(get(&DiskStore::open(directory.file()).unwrap(), "key").unwrap().sealed, b"second");
    }
}

#[test]
#[ignore = "part of a_file_that_is_open_elsewhere_is_used_after_it_was_closed"]
fn process_holds_the_file() {
    let Some((path, told)) = started() else { return };
    let store = DiskStore::open(path).unwrap();
    put(&store, entry("key", now(), b"first"), HOUR).unwrap();
    say("opened");
    told.recv().unwrap();
    assert_eq!(get(&store, "key").unwrap().sealed, b"first");
    put(&store, entry("other", now(), b"first"), HOUR).unwrap();
    say("read");
    told.recv().unwrap();
}

/// A file with 300 entries.
fn good_file() -> Vec<u8> {
    let directory = Directory::new();
    let store = DiskStore::open(directory.file()).unwrap();
    for i in 0..300 {
        put_when_possible(&store, &entry(&format!("key-{i}"), now(), &vec![i as u8; i * 20]), HOUR);
    }
    drop(store);
    fs::read(directory.file()).unwrap()
}

#[test]
fn an_unreadable_file_is_set_aside() {
    let good = good_file();
    let mut random = vec![0; 100_000];
    fastrand::fill(&mut random);
    let mut newer = good.clone();
    // The version of the file format, in each of the two commit slots of the header.
    newer[64] = 9;
    newer[192] = 9;
    let cases = [
        ("random bytes", random),
        ("a text", b"not a database".to_vec()),
        ("half of it", good[..good.len() / 2].to_vec()),
        ("a part of its header", good[..100].to_vec()),
        ("zeros", vec![0; 8192]),
        ("a newer version", newer),
    ];
    for (name, bytes) in cases {
        let directory = Directory::new();
        fs::write(directory.file(), &bytes).unwrap();
        fs::write(directory.aside(), b"of an earlier time").unwrap();
        let store = DiskStore::open(directory.file()).unwrap();
        assert_eq!(get(&store, "key-1"), None, "{name}");
        assert!(fs::read(directory.aside()).unwrap().len() > 50 || bytes.len() < 50, "{name}");
        put(&store, entry("key", now(), b"new"), HOUR).unwrap();
        drop(store);
        assert_eq!(get(&DiskStore::open(directory.file()).unwrap(), "key").unwrap().sealed, b"new", "{name}");
    }
}

#[test]
fn an_empty_file_is_used() {
    let directory = Directory::new();
    fs::write(directory.file(), b"").unwrap();
    let store = DiskStore::open(directory.file()).unwrap();
    assert_eq!(get(&store, "key"), None);
    assert!(!directory.aside().exists());
}

#[test]
fn a_file_of_a_newer_version_of_the_crate_is_set_aside() {
    let directory = Directory::new();
    drop(DiskStore::open(directory.file()).unwrap());
    let database = redb::Database::open(directory.file()).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("version", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);

    let store = DiskStore::open(directory.file()).unwrap();
    assert_eq!(get(&store, "key"), None);
    assert!(directory.aside().exists());
}

#[test]
fn a_file_is_set_aside_after_three_starts_that_ended_early() {
    let directory = Directory::new();
    let count = || fs::read_to_string(directory.starts()).ok();
    let start = || Process::start("process_that_ends_early", &directory.file(), 0);
    let store = DiskStore::open(directory.file()).unwrap();
    put(&store, entry("key", now(), b"kept"), HOUR).unwrap();
    assert_eq!(count().as_deref(), Some("1"));
    drop(store);
    assert_eq!(count(), None);

    for starts in ["1", "2", "3"] {
        start().expect("found Some");
        assert_eq!(count().as_deref(), Some(starts));
    }
    start().expect("found None");
    assert_eq!(count().as_deref(), Some("1"));
    assert!(directory.aside().exists());
}

#[test]
#[ignore = "part of a_file_is_set_aside_after_three_starts_that_ended_early"]
fn process_that_ends_early() {
    let Some((path, told)) = started() else { return };
    let store = DiskStore::open(path).unwrap();
    say(&format!("found {:?}", get(&store, "key")));
    told.recv().unwrap();
}

#[test]
fn a_start_is_not_counted_after_ten_seconds() {
    let directory = Directory::new();
    fs::write(directory.starts(), "2").unwrap();
    let began = Instant::now();
    let store = DiskStore::open(directory.file()).unwrap();
    put(&store, entry("key", now(), b"kept"), HOUR).unwrap();
    wait_for("removal", || !directory.starts().exists());
    assert!(began.elapsed() > Duration::from_secs(9));
    assert_eq!(get(&store, "key").unwrap().sealed, b"kept");
}

#[test]
fn a_damaged_file_that_cannot_be_renamed_closes_the_store_until_it_can_be() {
    let directory = Directory::new();
    // A file cannot replace a directory.
    fs::create_dir(directory.aside()).unwrap();
    fs::write(directory.file(), b"not a database").unwrap();
    let store = DiskStore::open(directory.file()).unwrap();
    let error = lookup(&store, "key").unwrap_err().to_string();
    assert!(error.contains("and it cannot be renamed to"), "{error}");
    assert_eq!(put(&store, entry("key", now(), b"kept"), HOUR).unwrap_err().to_string(), error);

    fs::remove_dir(directory.aside()).unwrap();
    wait_for("success", || put(&store, entry("key", now(), b"kept"), HOUR).is_ok());
    assert_eq!(get(&store, "key").unwrap().sealed, b"kept");
    assert_eq!(fs::read(directory.aside()).unwrap(), b"not a database");
}

#[test]
fn one_of_several_stores_sets_a_file_aside() {
    for _ in 0..10 {
        let directory = Directory::new();
        fs::write(directory.file(), b"not a database").unwrap();
        let barrier = Barrier::new(4);
        let stores: Vec<_> = thread::scope(|scope| {
            let open = || {
                barrier.wait();
                DiskStore::open(directory.file()).unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(stores.iter().filter(|store| lookup(store, "key").is_ok()).count(), 1);
        assert_eq!(fs::read(directory.aside()).unwrap(), b"not a database");
    }
}

#[test]
fn a_store_is_usable_after_damage_inside_of_its_file() {
    let good = good_file();
    let mut random = fastrand::Rng::with_seed(7);
    let cases: Vec<_> = (0..24)
        .map(|case| {
            let mut bytes = good.clone();
            let at = random.usize(..bytes.len() - 40_000);
            match case % 4 {
                // Random bytes anywhere.
                0 => random.fill(&mut bytes[at..at + 40_000]),
                1 => bytes[at..at + 40_000].fill(0),
                // The beginnings of pages.
                2 => bytes.chunks_mut(4096).skip(1).for_each(|page| page[random.usize(..32)] = random.u8(..)),
                // Pages in the wrong place.
                _ => bytes.copy_within(4096 * (at / 4096)..4096 * (at / 4096 + 4), 4096 * random.usize(1..20)),
            }
            bytes
        })
        .collect();
    thread::scope(|scope| {
        for bytes in cases {
            scope.spawn(move || {
                let directory = Directory::new();
                fs::write(directory.file(), &bytes).unwrap();
                // Damage terminates the process at most three times.
                for start in 1.. {
                    let (status, output) = Process::start("process_with_a_damaged_file", &directory.file(), 0).wait();
                    if status.success() {
                        break;
                    }
                    assert!(status.code().is_none() && start <= 3, "{status} at start {start}: {output}");
                }
            });
        }
    });
}

#[test]
#[ignore = "part of a_store_is_usable_after_damage_inside_of_its_file"]
fn process_with_a_damaged_file() {
    let Some((path, _told)) = started() else { return };
    // Panics in the database are expected.
    panic::set_hook(Box::new(|panic| {
        if panic.location().is_some_and(|location| location.file().ends_with("disk.rs")) {
            say(&panic.to_string());
        }
    }));
    let store = DiskStore::open(&path).unwrap();
    for i in 0..300 {
        let key = format!("key-{i}");
        if let Ok(Lookup { entry: Some(found), .. }) = lookup(&store, &key) {
            assert_eq!(found.key, key);
        }
        let _ = put(&store, entry(&format!("new-{i}"), now(), b"new"), HOUR);
    }
    let last = entry("last", now(), b"last");
    wait_for("success", || put(&store, last.clone(), HOUR).is_ok() && lookup(&store, "last").is_ok());
    drop(store);
    wait_for("usable file", || {
        let store = DiskStore::open(&path).unwrap();
        let is_put = put(&store, last.clone(), HOUR).is_ok();
        drop(store);
        let store = DiskStore::open(&path).unwrap();
        is_put && lookup(&store, "last").is_ok_and(|found| found.entry.as_ref() == Some(&last))
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let directory = Directory::new();
    let mut process = Process::start("process_with_a_full_disk", &directory.file(), 0);
    for step in ["kept", "failed", "recovered"] {
        process.expect(step);
    }
    assert!(process.wait().0.success());
    let store = DiskStore::open(directory.file()).unwrap();
    assert_eq!(get(&store, "last").unwrap().sealed, b"last");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "part of a_full_disk_is_an_error_until_there_is_room"]
fn process_with_a_full_disk() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Some((path, _told)) = started() else { return };
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
    // By default, the signal terminates the process. With a handler, writes fail instead.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default()).unwrap();
    let store = DiskStore::open(path).unwrap();
    put(&store, entry("first", now(), b"first"), HOUR).unwrap();
    say("kept");

    limit(Some(3 << 20));
    let mut error = None;
    wait_for("failure", || {
        let large = entry(&fastrand::u64(..).to_string(), now(), &vec![1; 100_000]);
        error = put(&store, large, HOUR).err().filter(|error| !error.to_string().contains("wait"));
        let _ = lookup(&store, "first");
        error.is_some()
    });
    say(&format!("failed with {}", error.unwrap()));

    limit(maximum);
    wait_for("recovery", || put(&store, entry("last", now(), b"last"), HOUR).is_ok() && lookup(&store, "last").is_ok());
    drop(store);
    say("recovered");
}

/// Every entry that was accepted more than a second before the process is killed is in the file. An entry waits for the commit
/// that is being made, and then for its own commit. On a slow or busy machine, two commits can take longer than a second. The
/// limit is then the time that they took.
#[test]
fn a_killed_process_loses_about_a_second_at_most() {
    let kills = env::var("FLIPSWITCH_DISK_TEST_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let directory = Directory::new();
    let mut first = 0;
    // For each key, the number of the earliest entry that it may have.
    let mut safe = HashMap::<u64, u64>::new();
    for kill in 0..kills {
        let mut process = Process::start("process_that_is_killed", &directory.file(), first);
        process.expect("opened");
        let mut accepted = Vec::new();
        let (mut committed, mut longest) = (now(), Duration::ZERO);
        let mut read = |line: &str| {
            let mut words = line.split(' ');
            let kind = words.next();
            let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            match (kind, numbers.as_slice()) {
                (Some("put"), &[micros, number]) => accepted.push((number, time(micros))),
                (Some("commit"), &[micros, took]) => {
                    committed = time(micros);
                    longest = longest.max(Duration::from_micros(took));
                }
                _ => {}
            }
        };
        let runs_for = Duration::from_millis(fastrand::u64(200..2500));
        let began = Instant::now();
        let mut lines = process.output.by_ref().lines().map_while(Result::ok);
        while began.elapsed() < runs_for {
            read(&lines.next().unwrap());
        }
        let killed = now();
        process.child.kill().unwrap();
        // The last line may be incomplete.
        let rest: Vec<_> = lines.collect();
        rest.iter().take(rest.len().saturating_sub(1)).for_each(|line| read(line));
        process.child.wait().unwrap();

        // The last commit may not be complete.
        let longest = longest.max(killed.duration_since(committed).unwrap_or_default());
        assert!(longest < Duration::from_secs(20), "kill {kill}: no commit for {longest:?}");
        let limit = Duration::from_secs(1).max(2 * longest + Duration::from_millis(300));
        let is_safe = |at: SystemTime| at < killed - limit;
        let last = accepted.last().map_or(first, |last| last.0);
        let count = accepted.iter().filter(|(_, at)| is_safe(*at)).count();
        safe.extend(accepted.iter().filter(|(_, at)| is_safe(*at)).map(|(number, _)| (number % KEYS, *number)));

        let store = DiskStore::open(directory.file()).unwrap();
        for key in 0..KEYS {
            let found = get(&store, &key.to_string());
            let number = found.as_ref().map(|found| u64::from_le_bytes(found.sealed[..8].try_into().unwrap()));
            let earliest = safe.get(&key).copied();
            assert!(number >= earliest, "kill {kill}: {key} has {number:?} and not {earliest:?}; limit {limit:?}");
            if let (Some(found), Some(number)) = (found, number) {
                // The last entries may have been accepted without a line.
                assert!(number <= last + 2 && number % KEYS == key, "kill {kill}: {key} has {number}");
                assert_eq!(found, numbered(number), "kill {kill}");
                safe.insert(key, number);
            }
        }
        let accepted = accepted.len();
        println!("kill {kill} after {runs_for:?}: {accepted} accepted, {count} safe, longest commit {longest:?}");
        first = last + 10;
    }
    assert!(!directory.aside().exists());
}

const KEYS: u64 = 3000;

/// Returns the entry that a process writes as its nth entry. The number determines all of it.
fn numbered(number: u64) -> StoredEntry {
    let mut sealed = number.to_le_bytes().to_vec();
    let mut random = fastrand::Rng::with_seed(number);
    sealed.extend((0..random.usize(..4000)).map(|_| random.u8(..)));
    let sent = time(1_700_000_000_000_000 + number);
    entry(&(number % KEYS).to_string(), sent, &sealed)
}

fn time(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

/// Prints what happened, the time in microseconds, and a number.
fn report(what: &str, number: u64) {
    println!("{what} {} {number}", now().duration_since(UNIX_EPOCH).unwrap().as_micros());
}

#[test]
#[ignore = "part of a_killed_process_loses_about_a_second_at_most"]
fn process_that_is_killed() {
    let Some((path, _told)) = started() else { return };
    tracing::subscriber::set_global_default(ReportCommits).unwrap();
    let store = DiskStore::open(path).unwrap();
    say("opened");
    for number in env::var(FROM).unwrap().parse().unwrap().. {
        put_when_possible(&store, &numbered(number), HOUR);
        report("put", number);
    }
}

/// Prints how long each commit took.
struct ReportCommits;

impl tracing::Subscriber for ReportCommits {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Micros;
        impl tracing::field::Visit for Micros {
            fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
                if field.name() == "micros" {
                    report("commit", value);
                }
            }

            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
        }
        event.record(&mut Micros);
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
