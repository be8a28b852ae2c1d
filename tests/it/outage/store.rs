//! Instances that share a store: the cost of a change, the flags after a restart, and failures of the store.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use flipswitch::{
    CacheStore, ConfigError, ConnectionStatus, Context, FlipswitchProvider, FlipswitchProviderBuilder, Lookup,
    StoreError, StoredEntry, async_trait, serde_json::json, testing::MemoryStore,
};
use flipswitch_disk::DiskStore;
use flipswitch_local::{Endpoint, Fault, KeyRotation, LocalServer};
use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{PATIENCE, closed_port, events::streaming, eventually, in_time, user};

const SECRET: &str = "the secret of the applications in these tests";

/// The margin for delays on a busy machine.
const LATE: Duration = Duration::from_secs(2);

/// Returns a builder of an instance.
fn instance(service: &LocalServer, store: &MemoryStore) -> FlipswitchProviderBuilder {
    let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url());
    builder.secret(SECRET).store(store.clone()).stale_wait(PATIENCE).miss_wait(PATIENCE)
}

/// Returns a builder of an instance whose service is unavailable.
fn without_service(key: &str, url: String, store: &MemoryStore) -> FlipswitchProviderBuilder {
    FlipswitchProvider::builder(key).base_url(url).secret(SECRET).store(store.clone())
}

/// Returns a flag whose value is the first one for users whose id begins with `beta`, and `old` for others.
fn flag(for_beta: &str) -> Value {
    json!({
        "state": "ENABLED", "variants": {"old": 1, "new": 2, "newer": 3}, "defaultVariant": "old",
        "targeting": {"if": [{"starts_with": [{"var": "targetingKey"}, "beta"]}, for_beta]},
    })
}

/// Changes an entry, for example to a copy of another one.
type Change<'a> = &'a dyn Fn(&mut StoredEntry, &StoredEntry);

async fn service() -> LocalServer {
    LocalServer::start(json!({"flags": {"f": flag("old")}})).await.unwrap()
}

/// Returns the number of requests that a service received for each user, without the first `after` requests.
fn requests(service: &LocalServer, after: usize) -> HashMap<String, usize> {
    let mut requests = HashMap::new();
    for request in service.requests().split_off(after) {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if let Some(id) = body["context"]["targetingKey"].as_str().filter(|id| *id != "_init_") {
            *requests.entry(id.to_owned()).or_default() += 1;
        }
    }
    requests
}

/// Reads the flag for all users in all instances at the same time.
async fn read(fleet: &[FlipswitchProvider], ids: &[String]) -> Vec<i64> {
    let reads = fleet.iter().flat_map(|provider| {
        ids.iter().map(move |id| async move {
            let flags = provider.flags(&user(id)).await;
            assert!(!flags.is_stale(), "{id}: {:?}", flags.error());
            flags.int("f", 0)
        })
    });
    in_time(join_all(reads)).await
}

/// Waits until the opening of streams causes no more requests.
async fn settled(service: &LocalServer, fleet: &[FlipswitchProvider], ids: &[String]) {
    eventually(async || {
        let before = service.requests().len();
        read(fleet, ids).await;
        service.requests().len() == before
    })
    .await;
}

fn ids(users: usize) -> Vec<String> {
    (0..users).map(|id| format!("{}-{id}", if id % 2 == 0 { "beta" } else { "other" })).collect()
}

async fn shut_down(fleet: Vec<FlipswitchProvider>) {
    join_all(fleet.iter().map(FlipswitchProvider::shutdown)).await;
}

#[tokio::test]
async fn a_change_costs_several_instances_as_many_requests_as_one() {
    const INSTANCES: usize = 4;
    const USERS: usize = 40;
    let (service, store, ids) = (service().await, MemoryStore::new(), ids(USERS));
    // A request is as fast as possible, or so slow that every instance requests flags before the first response.
    for delay in [Duration::ZERO, Duration::from_millis(300)] {
        service.set_definition("f", flag("old")).unwrap();
        let fleet = join_all((0..INSTANCES).map(|_| streaming(instance(&service, &store)))).await;
        settled(&service, &fleet, &ids).await;
        let id = service.faults().add(Fault::on(Endpoint::Bulk).delay(delay)).unwrap();
        let before = service.requests().len();
        let changed = Instant::now();
        service.set_definition("f", flag("new")).unwrap();
        let expected: Vec<_> = (0..INSTANCES * USERS).map(|id| if id % 2 == 0 { 2 } else { 1 }).collect();
        eventually(async || read(&fleet, &ids).await == expected).await;
        // Reads until the end of the echo window, in which an unchanged flag set may be from before the change.
        while changed.elapsed() < LATE + Duration::from_secs(2) {
            assert_eq!(read(&fleet, &ids).await, expected);
        }
        let requests = requests(&service, before);
        // On a busy machine, the store may not respond in time, and a request is then sent without it.
        let [once, twice] = ["beta", "other"].map(|start| {
            requests.iter().filter(|(id, _)| id.starts_with(start)).map(|(_, requests)| requests).sum::<usize>()
        });
        assert!((USERS / 2..=USERS * 11 / 20).contains(&once), "{once} requests, {delay:?}: {requests:?}");
        assert!((USERS..=USERS * 11 / 10).contains(&twice), "{twice} requests, {delay:?}: {requests:?}");
        let stats: Vec<_> = fleet.iter().map(FlipswitchProvider::stats).collect();
        assert!(stats.iter().map(|stats| stats.store_hits).sum::<u64>() as usize >= USERS, "{stats:?}");
        service.faults().remove(id);
        shut_down(fleet).await;
    }
}

#[tokio::test]
async fn an_instance_that_starts_without_the_service_has_the_last_known_flags() {
    let (service, store, ids) = (service().await, MemoryStore::new(), ids(20));
    let (url, key) = (service.url(), service.api_key());
    let fleet = [streaming(instance(&service, &store)).await];
    let expected = read(&fleet, &ids).await;
    eventually(async || store.entries().len() == ids.len()).await;
    shut_down(fleet.into()).await;
    service.shutdown().await;

    let started = without_service(&key, url, &store).build().unwrap();
    for (id, expected) in ids.iter().zip(expected) {
        let began = Instant::now();
        let flags = in_time(started.flags(&user(id))).await;
        assert!(flags.is_stale() && flags.error().is_some(), "{flags:?}");
        assert_eq!(flags.int("f", 0), expected);
        assert!(began.elapsed() < Duration::from_secs(1) + LATE);
    }
    let flags = in_time(started.flags(&user("unknown"))).await;
    assert_eq!(flags.int("f", 7), 7);
    let stats = started.stats();
    assert_eq!((stats.store_restored, stats.store_hits), (ids.len() as u64, 0));
    // Code that cannot wait also gets the flags, and they are not requested again.
    let (misses, again) = (stats.store_misses, in_time(started.flags(&user(&ids[0]))).await);
    assert!(again.is_stale() && started.stats().store_misses == misses);
    assert!(!started.health().is_ready());
    started.shutdown().await;
}

/// Tests the same with a file, and with writes just before the shutdown.
#[tokio::test]
async fn a_file_keeps_the_last_known_flags_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flags.redb");
    let (service, ids) = (service().await, ids(50));
    let (url, key) = (service.url(), service.api_key());
    let build = |key: &str, url: String| {
        FlipswitchProvider::builder(key).base_url(url).secret(SECRET).store(DiskStore::open(&path).unwrap())
    };
    let provider = streaming(build(&key, url.clone()).stale_wait(PATIENCE).miss_wait(PATIENCE)).await;
    let expected = read(std::slice::from_ref(&provider), &ids).await;
    provider.shutdown().await;
    drop(provider);
    service.shutdown().await;

    let restarted = build(&key, url).build().unwrap();
    for (id, expected) in ids.iter().zip(expected) {
        let flags = in_time(restarted.flags(&user(id))).await;
        assert!(flags.is_stale() && flags.int("f", 0) == expected, "{id}: {flags:?}");
    }
    restarted.shutdown().await;
}

/// Tests entries that this environment has not written for this context and time.
#[tokio::test]
async fn a_foreign_entry_counts_as_missing() {
    let (service, store, ids) = (service().await, MemoryStore::new(), ids(2));
    let (url, key) = (service.url(), service.api_key());
    let fleet = [streaming(instance(&service, &store)).await];
    read(&fleet, &ids).await;
    eventually(async || store.entries().len() == 2).await;
    shut_down(fleet.into()).await;
    service.shutdown().await;
    let good = store.entries();
    let [one, other] = [good[0].clone(), good[1].clone()];
    let with = |change: Change<'_>| {
        store.flush();
        for (mut entry, other) in [(one.clone(), &other), (other.clone(), &one)] {
            change(&mut entry, other);
            store.insert(entry);
        }
    };
    let known = async |builder: FlipswitchProviderBuilder| {
        let provider = builder.build().unwrap();
        let flags = join_all(ids.iter().map(|id| provider.flags(user(id)))).await;
        provider.shutdown().await;
        flags.iter().filter(|flags| flags.int("f", 0) != 0).count()
    };
    let same = || without_service(&key, url.clone(), &store);
    with(&|_, _| {});
    assert_eq!(known(same()).await, 2, "unchanged entries must be found");
    let changes: [(&str, Change<'_>); 9] = [
        ("swapped", &|entry, other| entry.sealed.clone_from(&other.sealed)),
        ("edited", &|entry, _| entry.sealed[30] ^= 1),
        ("cut", &|entry, _| entry.sealed.truncate(30)),
        ("empty", &|entry, _| entry.sealed.clear()),
        ("dated later", &|entry, _| entry.sent += Duration::from_millis(1)),
        ("dated earlier", &|entry, _| entry.sent -= Duration::from_secs(5)),
        ("from the future", &|entry, _| entry.sent += Duration::from_secs(3_600)),
        ("before 1970", &|entry, _| entry.sent = SystemTime::UNIX_EPOCH - Duration::from_secs(9)),
        ("of another version", &|entry, _| entry.key = entry.key.replace(":1:", ":2:")),
    ];
    for (what, change) in changes {
        with(change);
        assert_eq!(known(same()).await, 0, "{what}");
    }
    with(&|_, _| {});
    for (what, builder) in [
        ("another key", without_service("the API key of another environment", url.clone(), &store)),
        ("another secret", same().secret("the secret of another application")),
        ("another service", same().base_url(format!("http://{}", closed_port()))),
        ("another header", same().header("x-flipt-namespace", "other")),
        ("a namespace", same().store_namespace("shop")),
    ] {
        assert_eq!(known(builder).await, 0, "{what}");
    }
    assert_eq!(known(same()).await, 2, "the entries must still be there");
}

#[tokio::test]
async fn nothing_about_users_can_be_read_in_the_store() {
    let (service, store) = (service().await, MemoryStore::new());
    // The service repeats the context.
    let definition = json!({
        "state": "ENABLED", "variants": {"plain": "alice@example.com"}, "defaultVariant": "plain",
        "metadata": {"user": "alice@example.com", "plan": "premium-plan"},
    });
    service.set_definition("echo", definition).unwrap();
    let provider = streaming(instance(&service, &store)).await;
    let context = Context::user("alice@example.com").with("plan", "premium-plan");
    assert_eq!(provider.flags(&context).await.string("echo", ""), "alice@example.com");
    eventually(async || store.entries().len() == 1).await;
    let entry = &store.entries()[0];
    let dump = [entry.key.as_bytes(), &entry.sealed].concat();
    let dump = String::from_utf8_lossy(&dump);
    for secret in ["alice", "premium", "plan", SECRET, &service.api_key(), "targetingKey", "echo"] {
        assert!(!dump.contains(secret), "{secret}");
    }
    provider.shutdown().await;
}

/// Tests each failure of a store: values are correct, and no reader waits for the store.
#[tokio::test]
async fn a_failing_store_changes_only_the_number_of_requests() {
    type Failure = (&'static str, fn(&MemoryStore), fn(&MemoryStore));
    let failures: [Failure; 6] = [
        ("down", |store| store.set_down(true), |store| store.set_down(false)),
        ("slow", |store| store.set_delay(Duration::from_secs(1)), |store| store.set_delay(Duration::ZERO)),
        ("flushed", MemoryStore::flush, |_| {}),
        ("leases are lost", |store| store.set_leases_lost(true), |store| store.set_leases_lost(false)),
        ("ahead", |store| store.advance_clock(Duration::from_secs(3_600)), |_| {}),
        ("behind", |store| store.turn_clock_back(Duration::from_secs(7_200)), |_| {}),
    ];
    let (service, store, ids) = (service().await, MemoryStore::new(), ids(10));
    let waits = Duration::from_millis(500);
    let build = || instance(&service, &store).stale_wait(waits).miss_wait(waits);
    let fleet = [streaming(build()).await, streaming(build()).await];
    for (turn, (name, fail, repair)) in failures.into_iter().enumerate() {
        fail(&store);
        let value = if turn % 2 == 0 { "new" } else { "newer" };
        service.set_definition("f", flag(value)).unwrap();
        let expected = if turn % 2 == 0 { 2 } else { 3 };
        // The users include a new one and a known one.
        let new = format!("beta-{name}");
        let ids = [ids.as_slice(), &[new]].concat();
        let all_new = async || {
            let reads = fleet.iter().flat_map(|provider| {
                ids.iter().map(move |id| async move {
                    let began = Instant::now();
                    let flags = provider.flags(&user(id)).await;
                    assert!(began.elapsed() < waits + LATE, "{name}: {:?}", began.elapsed());
                    !id.starts_with("beta") || flags.int("f", 0) == expected
                })
            });
            join_all(reads).await.into_iter().all(|is_new| is_new)
        };
        eventually(all_new).await;
        // The service works, so no user gets a default because of the store.
        for provider in &fleet {
            let flags = provider.flags(&user(&format!("beta-{name}-first"))).await;
            assert_eq!(flags.int("f", 0), expected, "{name}: {:?}", flags.error());
        }
        assert!(fleet.iter().all(|provider| provider.health().is_ready()), "{name}");
        repair(&store);
        if name != "leases are lost" {
            continue;
        }
        // The leases expire.
        store.flush();
    }
    eventually(async || {
        service.set_definition("f", flag("old")).unwrap();
        read(&fleet, &ids).await;
        fleet.iter().all(|provider| provider.health().store_away_since.is_none())
    })
    .await;
    // Ordinary writes fill the store again.
    eventually(async || {
        read(&fleet, &ids).await;
        store.entries().len() >= ids.len()
    })
    .await;
    shut_down(fleet.into()).await;
}

#[tokio::test]
async fn health_has_the_time_since_when_the_store_is_unavailable() {
    let (service, store) = (service().await, MemoryStore::new());
    let provider = streaming(instance(&service, &store)).await;
    store.set_down(true);
    let mut number = 0;
    let mut read_a_new_user = async || {
        number += 1;
        assert!(!in_time(provider.flags(&user(&number.to_string()))).await.is_stale());
    };
    eventually(async || {
        read_a_new_user().await;
        provider.health().store_away_since.is_some()
    })
    .await;
    let health = provider.health();
    assert!(health.is_ready() && health.is_live());
    assert!(serde_json::to_value(&health).unwrap()["storeAwaySince"].is_string());
    store.set_down(false);
    eventually(async || {
        read_a_new_user().await;
        provider.health().store_away_since.is_none()
    })
    .await;
    provider.shutdown().await;
}

/// Without a stream, nothing in the store is fresh, and no instance waits for another.
#[tokio::test]
async fn without_a_stream_the_store_only_has_last_known_flags() {
    let (service, store, ids) = (service().await, MemoryStore::new(), ids(10));
    let build = || instance(&service, &store).enable_realtime(false).build().unwrap();
    let first = [build()];
    read(&first, &ids).await;
    eventually(async || store.entries().len() == ids.len()).await;
    let before = service.requests().len();
    let second = [build()];
    read(&second, &ids).await;
    assert!(requests(&service, before).values().all(|requests| *requests == 1));
    let stats = second[0].stats();
    assert_eq!((stats.store_hits, stats.store_leases), (0, 0), "{stats:?}");
    for fleet in [first, second] {
        shut_down(fleet.into()).await;
    }
}

#[tokio::test]
async fn flags_in_a_namespace_remain_usable_after_the_key_was_replaced() {
    for namespace in [None, Some("shop")] {
        let (service, store) = (service().await, MemoryStore::new());
        let url = service.url();
        let build = |key: &str| {
            let builder = without_service(key, url.clone(), &store).stale_wait(PATIENCE).miss_wait(PATIENCE);
            match namespace {
                Some(namespace) => builder.store_namespace(namespace),
                None => builder,
            }
        };
        let provider = streaming(build(&service.api_key())).await;
        assert_eq!(provider.flags(&user("beta-1")).await.int("f", 0), 1);
        eventually(async || store.entries().len() == 1).await;
        let new_key = service.rotate_api_key(KeyRotation::new());
        provider.set_api_key(&new_key).unwrap();
        eventually(async || !in_time(provider.flags(&user("beta-1"))).await.is_stale()).await;
        // Without a namespace, the entry has a different name after the key is replaced.
        let expected = if namespace.is_some() { 1 } else { 2 };
        eventually(async || store.entries().len() == expected).await;
        provider.shutdown().await;
        service.shutdown().await;
        let started = build(&new_key).miss_wait(Duration::from_secs(1)).build().unwrap();
        assert_eq!(in_time(started.flags(&user("beta-1"))).await.int("f", 0), 1, "{namespace:?}");
        started.shutdown().await;
    }
}

#[test]
fn a_store_needs_a_secret() {
    let build = |builder: FlipswitchProviderBuilder| builder.store(MemoryStore::new()).build().map(drop);
    let short = build(FlipswitchProvider::builder("short")).unwrap_err();
    assert!(matches!(short, ConfigError::StoreSecret { has_key: true }) && short.to_string().contains("`secret`"));
    let none = build(FlipswitchProvider::ofrep("http://127.0.0.1:9")).unwrap_err();
    assert!(matches!(none, ConfigError::StoreSecret { has_key: false }), "{none}");
    build(FlipswitchProvider::builder("an API key of some length")).unwrap();
    build(FlipswitchProvider::ofrep("http://127.0.0.1:9").secret(SECRET)).unwrap();
}

/// A store whose code panics or never responds.
struct Broken {
    panics: bool,
}

#[async_trait]
impl CacheStore for Broken {
    async fn get(&self, _: &str) -> Result<Lookup, StoreError> {
        assert!(!self.panics, "on purpose");
        std::future::pending().await
    }

    async fn put(&self, _: StoredEntry, _: Duration) -> Result<(), StoreError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_store_that_panics_or_hangs_makes_no_request_fail() {
    let service = service().await;
    for panics in [false, true] {
        let builder = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).secret(SECRET);
        let provider = streaming(builder.store(Broken { panics }).miss_wait(PATIENCE)).await;
        for id in ids(10) {
            let flags = in_time(provider.flags(&user(&id))).await;
            assert_eq!(flags.int("f", 0), 1, "{panics}");
        }
        assert_eq!(provider.sse_status(), ConnectionStatus::Connected);
        provider.shutdown().await;
    }
}
