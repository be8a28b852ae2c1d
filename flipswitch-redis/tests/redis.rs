//! Runs the store against `redis-server` (`apt-get install redis-server`), with one server for each test.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use flipswitch_redis::{
    RedisStore,
    flipswitch::{CacheStore, Lookup, StoredEntry},
    redis::{self, AsyncConnectionConfig, AsyncTypedCommands, aio::MultiplexedConnection},
};
use futures_util::future::{join_all, try_join_all};
use tempfile::TempDir;

const KEY: &str = "flipswitch:1:{5f3c}:09ab";
const LEASE_KEY: &str = "flipswitch:1:{5f3c}:09ab:lease";
const MINUTE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(20);
const TRIES: usize = 20;

/// A server that stops when the test ends. If the test process is killed, the server is left behind, because stopping it in that
/// case would need unsafe code.
struct Server {
    child: Child,
    port: u16,
    arguments: Vec<&'static str>,
    folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(arguments: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..TRIES {
            // Below the ports of outgoing connections, which could otherwise use this port before a restart. The bus of a
            // cluster uses the port that is 10000 higher.
            let port = fastrand::u16(10_000..20_000);
            let mut child = spawn(port, arguments, &folder);
            if is_up(&mut child, &url(port, arguments)).await {
                return Self { child, port, arguments: arguments.to_vec(), folder };
            }
        }
        panic!("redis-server does not start:\n{}", log(&folder));
    }

    fn url(&self) -> String {
        url(self.port, &self.arguments)
    }

    fn store(&self) -> RedisStore {
        RedisStore::connect(self.url()).unwrap()
    }

    async fn connection(&self) -> MultiplexedConnection {
        try_connection(&self.url()).await.unwrap()
    }

    async fn run(&self, command: &str) {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).exec_async(&mut self.connection().await).await.unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        let url = self.url();
        for _ in 0..TRIES {
            self.child = spawn(self.port, &self.arguments, &self.folder);
            if is_up(&mut self.child, &url).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("redis-server does not start again:\n{}", log(&self.folder));
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn url(port: u16, arguments: &[&str]) -> String {
    match arguments.iter().position(|argument| *argument == "--requirepass") {
        Some(at) => format!("redis://:{}@127.0.0.1:{port}", arguments[at + 1]),
        None => format!("redis://127.0.0.1:{port}"),
    }
}

fn spawn(port: u16, arguments: &[&str], folder: &TempDir) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--logfile", "redis.log"])
        .args(arguments)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server must be installed: apt-get install redis-server")
}

fn log(folder: &TempDir) -> String {
    std::fs::read_to_string(folder.path().join("redis.log")).unwrap_or_else(|error| error.to_string())
}

async fn try_connection(url: &str) -> redis::RedisResult<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// Waits for a server. Returns false if it has ended because another process uses its port.
async fn is_up(child: &mut Child, url: &str) -> bool {
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until && child.try_wait().unwrap().is_none() {
        let info =
            async { redis::cmd("INFO").arg("server").query_async::<String>(&mut try_connection(url).await?).await };
        // Another process may listen and not respond.
        let info = tokio::time::timeout(Duration::from_secs(1), info).await;
        if matches!(info, Ok(Ok(info)) if info.contains(&format!("process_id:{}\r\n", child.id()))) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn entry(sent: SystemTime, content: &str) -> StoredEntry {
    StoredEntry { key: KEY.to_owned(), sent, sealed: content.as_bytes().to_vec() }
}

async fn now(store: &RedisStore) -> SystemTime {
    store.get(KEY).await.unwrap().now
}

async fn content(store: &RedisStore) -> Option<String> {
    store.get(KEY).await.unwrap().entry.map(|entry| String::from_utf8(entry.sealed).unwrap())
}

/// Calls `get` until it succeeds. Returns how long this took.
async fn until_answered(store: &RedisStore) -> (Lookup, Duration) {
    let began = Instant::now();
    loop {
        // The time limit of a provider.
        if let Ok(Ok(lookup)) = tokio::time::timeout(Duration::from_millis(50), store.get(KEY)).await {
            return (lookup, began.elapsed());
        }
        assert!(began.elapsed() < DEADLINE, "no answer: {:?}", store.get(KEY).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_refused(store: &RedisStore) -> String {
    let began = Instant::now();
    loop {
        if let Err(error) = store.get(KEY).await {
            return error.to_string();
        }
        assert!(began.elapsed() < DEADLINE, "still answers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_entry_is_kept_until_its_time_to_live_ends() {
    let server = Server::start().await;
    let store = server.store();
    let lookup = store.get(KEY).await.unwrap();
    assert_eq!(lookup.entry, None);
    assert!(lookup.now.duration_since(SystemTime::now()).unwrap_or_else(|e| e.duration()) < MINUTE);

    // All values of a byte, and an empty entry.
    for sealed in [(0..=255).collect(), Vec::new()] {
        let entry = StoredEntry { sealed, ..entry(lookup.now, "") };
        store.put(entry.clone(), MINUTE).await.unwrap();
        assert_eq!(store.get(KEY).await.unwrap().entry, Some(entry));
        let left: i64 = redis::cmd("PTTL").arg(KEY).query_async(&mut server.connection().await).await.unwrap();
        assert!((50_000..=60_000).contains(&left), "{left} ms");
    }

    for (ttl, kept) in [(Duration::MAX, true), (Duration::ZERO, false), (Duration::from_micros(999), false)] {
        server.run("FLUSHALL").await;
        store.put(entry(lookup.now, "flags"), ttl).await.unwrap();
        assert_eq!(content(&store).await.is_some(), kept, "{ttl:?}");
    }

    store.put(entry(lookup.now, "short"), Duration::from_millis(20)).await.unwrap();
    let began = Instant::now();
    while content(&store).await.is_some() {
        assert!(began.elapsed() < DEADLINE);
    }
}

#[tokio::test]
async fn an_earlier_entry_never_replaces_a_later_one() {
    let server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    let micro = Duration::from_micros(1);
    for (known, put, expected) in [
        (now, now + micro, "put"),
        (now, now, "put"),
        (now, now - micro, "known"),
        (now, now - Duration::from_secs(3600), "known"),
        (now + Duration::from_millis(500), now, "known"),
        // The clock of the writer, or of the server, has been wrong.
        (now + Duration::from_secs(3600), now, "put"),
        (now + Duration::from_secs(3600), now + Duration::from_secs(3500), "put"),
    ] {
        server.run("FLUSHALL").await;
        store.put(entry(known, "known"), MINUTE).await.unwrap();
        store.put(entry(put, "put"), MINUTE).await.unwrap();
        assert_eq!(content(&store).await.as_deref(), Some(expected), "{known:?} {put:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_of_concurrent_entries_stays() {
    let server = Server::start().await;
    let stores = [server.store(), server.store(), server.store()];
    let now = now(&stores[0]).await - Duration::from_secs(1);
    for _ in 0..10 {
        server.run("FLUSHALL").await;
        let mut order: Vec<u64> = (0..200).collect();
        fastrand::shuffle(&mut order);
        let puts = order.iter().map(|number| {
            let entry = entry(now + Duration::from_micros(*number), &number.to_string());
            stores[fastrand::usize(..stores.len())].put(entry, MINUTE)
        });
        try_join_all(puts).await.unwrap();
        assert_eq!(content(&stores[0]).await.as_deref(), Some("199"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_granted_to_one_of_many() {
    let server = Server::start().await;
    let stores = [server.store(), server.store(), server.store()];
    let leased = join_all((0..60).map(|number| stores[number % 3].try_lease(KEY, MINUTE))).await;
    let leases: Vec<_> = leased.into_iter().filter_map(|leased| leased.unwrap().lease).collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(leases[0].key, KEY);
    let left: i64 = redis::cmd("PTTL").arg(LEASE_KEY).query_async(&mut server.connection().await).await.unwrap();
    assert!((50_000..=60_000).contains(&left), "{left} ms");
    assert!(stores[0].try_lease("flipswitch:1:{5f3c}:other", MINUTE).await.unwrap().lease.is_some());
}

#[tokio::test]
async fn a_released_lease_is_granted_again_and_a_former_holder_releases_nothing() {
    let server = Server::start().await;
    let store = server.store();
    let first = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
    assert_eq!(store.try_lease(KEY, MINUTE).await.unwrap().lease, None);
    store.release(first).await.unwrap();

    let former = store.try_lease(KEY, Duration::from_millis(20)).await.unwrap().lease.unwrap();
    let began = Instant::now();
    let holder = loop {
        if let Some(lease) = store.try_lease(KEY, MINUTE).await.unwrap().lease {
            break lease;
        }
        assert!(began.elapsed() < DEADLINE, "the lease does not expire");
    };
    assert_ne!(former.token, holder.token);
    store.release(former).await.unwrap();
    assert_eq!(store.try_lease(KEY, MINUTE).await.unwrap().lease, None);
    store.release(holder).await.unwrap();
    assert!(store.try_lease(KEY, MINUTE).await.unwrap().lease.is_some());
}

#[tokio::test]
async fn every_answer_has_the_time_of_the_server() {
    let server = Server::start().await;
    let store = server.store();
    let mut latest = now(&store).await;
    for _ in 0..20 {
        let leased = store.try_lease(KEY, MINUTE).await.unwrap().now;
        let got = now(&store).await;
        assert!(latest <= leased && leased <= got, "{latest:?} {leased:?} {got:?}");
        latest = got;
    }
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query_async(&mut server.connection().await).await.unwrap();
    assert!(seconds - latest.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() <= 10);
}

#[tokio::test]
async fn a_call_is_one_round_trip() {
    let server = Server::start().await;
    let store = server.store();
    let mut connection = server.connection().await;
    let calls = async |connection: &mut MultiplexedConnection| -> u64 {
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
        let lines = info.lines().filter(|line| line.starts_with("cmdstat_eval"));
        lines.map(|line| line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap()).sum()
    };
    let use_all = async || {
        let now = now(&store).await;
        store.put(entry(now, "flags"), MINUTE).await.unwrap();
        let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
        store.release(lease).await.unwrap();
    };
    use_all().await;
    let before = calls(&mut connection).await;
    use_all().await;
    assert_eq!(calls(&mut connection).await - before, 4);
}

#[tokio::test]
async fn lost_data_and_lost_scripts_are_not_failures() {
    let server = Server::start().await;
    let store = server.store();
    for command in ["FLUSHALL", "SCRIPT FLUSH"] {
        for _ in 0..2 {
            let now = now(&store).await;
            store.put(entry(now, "flags"), MINUTE).await.unwrap();
            let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
            server.run(command).await;
            store.release(lease).await.unwrap();
            server.run(command).await;
            assert_eq!(content(&store).await.is_some(), command == "SCRIPT FLUSH");
            server.run(command).await;
            store.put(entry(now, "flags"), MINUTE).await.unwrap();
            server.run(command).await;
            let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
            store.release(lease).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_foreign_value_counts_as_missing_and_is_replaced() {
    let server = Server::start().await;
    let store = server.store();
    let huge = format!("SET {KEY} {}", "a".repeat((1 << 20) + 9));
    for command in [
        format!("SET {KEY} 1234567"),
        format!("SET {KEY} "),
        format!("APPEND {KEY} {}", "x".repeat(8)),
        format!("RPUSH {KEY} {}", "a".repeat(10)),
        format!("HSET {KEY} field value"),
        format!("XADD {KEY} * field value"),
        huge,
    ] {
        server.run("FLUSHALL").await;
        server.run(&command).await;
        let lookup = store.get(KEY).await.unwrap();
        // Eight bytes or more are read as a time and encrypted flags.
        let is_possible = command.starts_with("APPEND");
        assert_eq!(lookup.entry.is_some(), is_possible, "{command}");
        store.put(entry(lookup.now, "flags"), MINUTE).await.unwrap();
        assert_eq!(content(&store).await.as_deref(), Some("flags"), "{command}");
    }
    for command in [format!("SET {LEASE_KEY} other"), format!("RPUSH {LEASE_KEY} other")] {
        server.run("FLUSHALL").await;
        server.run(&command).await;
        let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
        assert_eq!(store.try_lease(KEY, MINUTE).await.unwrap().lease, None);
        server.run("FLUSHALL").await;
        server.run(&command).await;
        store.release(lease).await.unwrap();
    }
}

#[tokio::test]
async fn a_large_entry_is_kept_and_a_larger_one_is_an_error() {
    let server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    let sized = |bytes| StoredEntry { sealed: vec![7; bytes], ..entry(now, "") };
    store.put(sized(1 << 20), MINUTE).await.unwrap();
    assert_eq!(store.get(KEY).await.unwrap().entry, Some(sized(1 << 20)));
    let error = store.put(sized((1 << 20) + 1), MINUTE).await.unwrap_err().to_string();
    assert!(error.contains("1048577 bytes") && error.contains("at most 1048576"), "{error}");
}

#[tokio::test]
async fn a_full_server_is_an_error_and_still_answers() {
    let server = Server::with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]).await;
    let store = server.store();
    let now = now(&store).await;
    assert!(store.put(entry(now, "flags"), MINUTE).await.unwrap_err().to_string().contains("OOM"));
    assert_eq!(content(&store).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_works_again_after_its_server_was_away() {
    let mut server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    store.put(entry(now, "flags"), MINUTE).await.unwrap();
    for _ in 0..2 {
        server.kill();
        let error = until_refused(&store).await;
        assert!(error.starts_with(&server.url()), "{error}");
        server.restart().await;
        let (lookup, took) = until_answered(&store).await;
        println!("works again {} ms after the restart", took.as_millis());
        assert_eq!(lookup.entry, None);
        assert!(took < DEADLINE, "{took:?}");
        store.put(entry(lookup.now, "flags"), MINUTE).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_at_once_while_the_server_is_away() {
    let mut server = Server::start().await;
    let store = server.store();
    now(&store).await;
    server.kill();
    until_refused(&store).await;
    let began = Instant::now();
    for _ in 0..100 {
        assert!(store.get(KEY).await.is_err());
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_store_can_be_created_before_its_server_and_before_a_runtime() {
    let mut server = Server::start().await;
    server.kill();
    let url = server.url();
    let store = std::thread::spawn(move || RedisStore::connect(url).unwrap()).join().unwrap();
    assert!(store.get(KEY).await.is_err());
    server.restart().await;
    until_answered(&store).await;
}

#[test]
fn a_store_outlives_a_runtime_and_needs_one() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let server = first.block_on(Server::start());
    let store = server.store();
    let error = futures_util::FutureExt::now_or_never(store.get(KEY)).unwrap().unwrap_err();
    assert!(error.to_string().contains("no tokio runtime"), "{error}");
    first.block_on(until_answered(&store));
    drop(first);
    runtime().block_on(until_answered(&store));
}

#[test]
fn a_store_works_after_it_was_created_on_a_runtime_that_is_no_longer_driven() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (idle, used) = (runtime(), runtime());
    let server = used.block_on(Server::start());
    let store = idle.block_on(async { server.store() });
    used.block_on(until_answered(&store));
}

#[tokio::test]
async fn a_missing_right_is_an_error() {
    let server = Server::start().await;
    let admin = server.store();
    let lookup = admin.get(KEY).await.unwrap();
    for (command, expected) in [
        ("", ""),
        ("time", "get put lease "),
        ("strlen", "get "),
        ("get", "get release "),
        ("getrange", "put "),
        // An earlier entry is not written.
        ("set", "lease "),
        ("pttl", "lease "),
        ("del", "release "),
        ("evalsha", "get put lease release "),
        ("exists", ""),
    ] {
        let right = if command.is_empty() { String::new() } else { format!(" -{command}") };
        server.run(&format!("ACL SETUSER flags reset on >secret ~flipswitch:1:* +@all{right}")).await;
        server.run("FLUSHALL").await;
        admin.put(entry(lookup.now, "flags"), MINUTE).await.unwrap();
        let held = admin.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
        let limited = RedisStore::connect(server.url().replace("redis://", "redis://flags:secret@")).unwrap();
        let earlier = entry(lookup.now - Duration::from_secs(1), "earlier");
        let mut failed = String::new();
        match limited.get(KEY).await {
            Ok(lookup) => assert!(lookup.entry.is_some(), "{command}"),
            Err(_) => failed += "get ",
        }
        if limited.put(earlier, MINUTE).await.is_err() {
            failed += "put ";
        }
        assert_eq!(content(&admin).await.as_deref(), Some("flags"), "{command}");
        match limited.try_lease(KEY, MINUTE).await {
            Ok(leased) => assert_eq!(leased.lease, None, "{command}"),
            Err(_) => failed += "lease ",
        }
        match limited.release(held).await {
            Ok(()) => assert!(admin.try_lease(KEY, MINUTE).await.unwrap().lease.is_some(), "{command}"),
            Err(_) => failed += "release ",
        }
        assert_eq!(failed, expected, "without {command}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_other_than_network_errors_do_not_end_the_attempts() {
    let server = Server::start().await;
    let mut connection = server.connection().await;
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(1).exec_async(&mut connection).await.unwrap();
    let full = server.store();
    until_refused(&full).await;
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(100).exec_async(&mut connection).await.unwrap();
    until_answered(&full).await;

    let locked_out = RedisStore::connect(server.url().replace("redis://", "redis://flags:secret@")).unwrap();
    let error = until_refused(&locked_out).await;
    assert!(error.contains("WRONGPASS") || error.contains("Authentication"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    // The commands that the documentation of the crate lists.
    let commands = "+eval +evalsha +time +get +getrange +strlen +set +del +pttl +exists";
    server.run(&format!("ACL SETUSER flags on >secret ~flipswitch:1:* {commands}")).await;
    let (lookup, _) = until_answered(&locked_out).await;
    locked_out.put(entry(lookup.now, "flags"), MINUTE).await.unwrap();
    let lease = locked_out.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
    locked_out.release(lease).await.unwrap();
    assert_eq!(content(&locked_out).await.as_deref(), Some("flags"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_reconnects_after_its_server_became_a_replica() {
    let server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    let clients = async || -> String {
        let mut connection = server.connection().await;
        redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap()
    };
    let ids = |list: &str| -> HashSet<String> {
        list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let before = ids(&clients().await);
    server.run("REPLICAOF 127.0.0.1 1").await;
    let error = store.put(entry(now, "flags"), MINUTE).await.unwrap_err().to_string();
    assert!(error.contains("read only replica"), "{error}");
    let began = Instant::now();
    // Until none of the earlier connections is left.
    while !ids(&clients().await).is_disjoint(&before) {
        assert!(began.elapsed() < DEADLINE, "the connection is kept");
    }
    server.run("REPLICAOF NO ONE").await;
    until_answered(&store).await;
    store.put(entry(now, "flags"), MINUTE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_noticed() {
    let server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    server.signal("-STOP");
    let began = Instant::now();
    // Drops calls until they fail immediately.
    let mut dropped = 0;
    let error = loop {
        match tokio::time::timeout(Duration::from_millis(1), store.put(entry(now, "flags"), MINUTE)).await {
            Ok(outcome) => break outcome.unwrap_err(),
            Err(_) => dropped += 1,
        }
        assert!(began.elapsed() < DEADLINE, "the silent server is not noticed");
    };
    println!("noticed after {} ms and {dropped} calls: {error}", began.elapsed().as_millis());
    server.signal("-CONT");
    let (_, took) = until_answered(&store).await;
    println!("works again {} ms after the end of the silence", took.as_millis());
    assert!(took < DEADLINE, "{took:?}");
}

#[tokio::test]
async fn a_dropped_call_affects_no_other() {
    let server = Server::start().await;
    let store = server.store();
    let now = now(&store).await;
    store.put(entry(now, "flags"), MINUTE).await.unwrap();
    for polls in 0..200_u64 {
        let call = async { drop(store.get(KEY).await) };
        let _ = tokio::time::timeout(Duration::from_micros(polls * 5), call).await;
        assert_eq!(content(&store).await.as_deref(), Some("flags"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_store_closes_its_connection() {
    let mut server = Server::start().await;
    let store = server.store();
    now(&store).await;
    let clone = store.clone();
    drop(store);
    now(&clone).await;
    drop(clone);
    let mut connection = server.connection().await;
    let began = Instant::now();
    loop {
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
        if list.lines().count() == 1 {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{list}");
    }
    server.kill();
}

#[tokio::test]
async fn a_connection_of_the_application_works() {
    let server = Server::start().await;
    let mut connection = server.connection().await;
    let store = RedisStore::from_connection(connection.clone());
    let now = now(&store).await;
    store.put(entry(now, "flags"), MINUTE).await.unwrap();
    assert_eq!(content(&store).await.as_deref(), Some("flags"));
    assert!(connection.exists(KEY).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_reconnects_with_a_client_of_the_application() {
    let mut server = Server::with(&["--requirepass", "hunter2"]).await;
    let client = redis::Client::open(server.url()).unwrap();
    let store = RedisStore::builder().client(client).build().unwrap();
    assert_eq!(content(&store).await, None);
    server.kill();
    let error = until_refused(&store).await;
    assert!(error.starts_with(&format!("127.0.0.1:{}: ", server.port)), "{error}");
    assert!(!format!("{store:?}").contains("hunter2"));
    server.restart().await;
    until_answered(&store).await;
}

#[tokio::test]
async fn sockets_databases_and_resp3_work() {
    let server = Server::with(&["--unixsocket", "redis.sock"]).await;
    let socket = server.folder.path().join("redis.sock");
    for url in [
        format!("unix://{}?db=1", socket.display()),
        format!("redis://127.0.0.1:{}/2", server.port),
        format!("valkey://127.0.0.1:{}/3?protocol=resp3", server.port),
    ] {
        let store = RedisStore::connect(&url).unwrap();
        let now = now(&store).await;
        assert_eq!(content(&store).await, None, "{url}");
        store.put(entry(now, "flags"), MINUTE).await.unwrap();
        assert_eq!(content(&store).await.as_deref(), Some("flags"), "{url}");
        let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
        assert_eq!(store.try_lease(KEY, MINUTE).await.unwrap().lease, None);
        store.release(lease).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_output_contains_the_password() {
    let mut server = Server::with(&["--requirepass", "hunter2"]).await;
    let builder = RedisStore::builder().url(server.url());
    let mut texts = vec![format!("{builder:?}")];
    let store = builder.build().unwrap();
    now(&store).await;
    texts.push(format!("{store:?}"));
    let wrong = RedisStore::connect(server.url().replace("hunter2", "hunter22")).unwrap();
    texts.push(until_refused(&wrong).await);
    let too_large = StoredEntry { sealed: vec![0; 2 << 20], ..entry(SystemTime::now(), "") };
    texts.push(format!("{:?}", store.put(too_large, MINUTE).await.unwrap_err()));
    server.kill();
    let error = until_refused(&store).await;
    texts.push(format!("{error} {:?}", store.get(KEY).await.unwrap_err()));
    for text in texts {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains(&server.port.to_string()) || text.contains("Builder"), "{text}");
    }
}

#[cfg(any(feature = "rustls", feature = "native-tls"))]
#[tokio::test]
async fn tls_with_a_server_without_tls_is_an_error() {
    let server = Server::start().await;
    let Ok(store) = RedisStore::connect(server.url().replace("redis:", "rediss:")) else {
        // Both TLS libraries are enabled.
        return;
    };
    let error = until_refused(&store).await;
    assert!(error.starts_with("rediss://127.0.0.1"), "{error}");
}

#[cfg(feature = "cluster")]
async fn until_cluster_is_up(server: &Server) {
    let began = Instant::now();
    let mut connection = server.connection().await;
    loop {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.unwrap();
        if info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384") {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{info}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(feature = "cluster")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_works_without_a_node_that_has_no_data() {
    const ARGUMENTS: [&str; 4] = ["--cluster-enabled", "yes", "--cluster-node-timeout", "60000"];
    let nodes = [Server::with(&ARGUMENTS).await, Server::with(&ARGUMENTS).await];
    let mut connection = nodes[0].connection().await;
    let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(KEY).query_async(&mut connection).await.unwrap();
    nodes[0].run(&format!("CLUSTER ADDSLOTS {slot}")).await;
    nodes[1].run(&format!("CLUSTER ADDSLOTSRANGE 0 {} {} 16383", slot - 1, slot + 1)).await;
    nodes[0].run(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[1].port)).await;
    for node in &nodes {
        until_cluster_is_up(node).await;
    }
    // This node accepts connections and never responds.
    nodes[1].signal("-STOP");
    let urls = [nodes[1].url(), nodes[0].url()];
    let store = RedisStore::builder().cluster(&urls).build().unwrap();
    let (_, took) = until_answered(&store).await;
    println!("connected after {} ms", took.as_millis());
    // For longer than the interval of the checks. It is tried again if the machine was too slow.
    let works = async || {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(7) {
            if store.get(KEY).await.is_err() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    };
    assert!(works().await || works().await || works().await);
}

#[cfg(feature = "cluster")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_works_and_recovers() {
    let mut server = Server::with(&["--cluster-enabled", "yes"]).await;
    server.run("CLUSTER ADDSLOTSRANGE 0 16383").await;
    until_cluster_is_up(&server).await;
    let store = RedisStore::builder().cluster([server.url()]).build().unwrap();
    let now = now(&store).await;
    store.put(entry(now, "flags"), MINUTE).await.unwrap();
    store.put(entry(now - Duration::from_secs(1), "earlier"), MINUTE).await.unwrap();
    assert_eq!(content(&store).await.as_deref(), Some("flags"));
    let lease = store.try_lease(KEY, MINUTE).await.unwrap().lease.unwrap();
    assert_eq!(store.try_lease(KEY, MINUTE).await.unwrap().lease, None);
    store.release(lease).await.unwrap();
    server.run("SCRIPT FLUSH").await;
    assert_eq!(content(&store).await.as_deref(), Some("flags"));

    server.kill();
    let error = until_refused(&store).await;
    assert!(error.starts_with(&server.url()), "{error}");
    server.restart().await;
    let (_, took) = until_answered(&store).await;
    println!("the cluster works again after {} ms", took.as_millis());

    server.signal("-STOP");
    let began = Instant::now();
    let error = loop {
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_millis(50), store.get(KEY)).await {
            break error;
        }
        assert!(began.elapsed() < DEADLINE, "the silent node is not noticed");
    };
    println!("the silent node was noticed after {} ms: {error}", began.elapsed().as_millis());
    server.signal("-CONT");
    let (_, took) = until_answered(&store).await;
    println!("the cluster works again after {} ms", took.as_millis());
}
