//! Measures the cost of a store hit, compared with a request to a service on the same machine:
//! `cargo bench -p flipswitch-tests --bench stores`. Needs `redis-server`.
//!
//! The caches hold one context, and many contexts are read in turn, so memory never has the flags that are read.
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use criterion::Criterion;
use flipswitch::{ConnectionStatus, Context, FlipswitchProvider, FlipswitchProviderBuilder, serde_json::json};
use flipswitch_local::LocalServer;
use flipswitch_redis::RedisStore;
use tokio::{net::TcpSocket, runtime::Runtime};

const USERS: usize = 256;

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn started(builder: FlipswitchProviderBuilder) -> FlipswitchProvider {
    let provider = builder.miss_wait(Duration::from_secs(30)).build().unwrap();
    provider.ready(Duration::from_secs(30)).await.unwrap();
    while provider.sse_status() != ConnectionStatus::Connected {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    provider
}

fn main() {
    // On Linux, `redis-server` can listen on an address that this socket reserves, and no other process gets the port.
    let taken = TcpSocket::new_v4().unwrap();
    taken.set_reuseaddr(true).unwrap();
    taken.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let _taken = cfg!(target_os = "linux").then_some(taken);
    let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let _redis = Redis(Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn().unwrap());
    let url = format!("redis://127.0.0.1:{port}");
    let runtime = Runtime::new().unwrap();
    let flags: Vec<_> = (0..20).map(|number| (format!("flag-{number}"), json!(number % 2 == 0))).collect();
    let service = runtime.block_on(LocalServer::start(flags.into_iter().collect())).unwrap();
    let builder = || {
        let builder =
            FlipswitchProvider::builder(service.api_key()).base_url(service.url()).secret("a secret of this bench");
        builder.cache_capacity(1)
    };
    let contexts: Vec<_> =
        (0..USERS).map(|number| Context::user(format!("user-{number}")).with("plan", "free")).collect();
    let with_store = || builder().store(RedisStore::connect(&url).unwrap());
    let (hits, requests) = runtime.block_on(async {
        let hits = started(with_store()).await;
        // Stored flags count as fresh once it is certain that they were requested after the stream opened.
        tokio::time::sleep(Duration::from_millis(500)).await;
        (hits, started(builder()).await)
    });
    // Waits until all flags are stored.
    loop {
        let before = hits.stats().store_hits;
        contexts.iter().for_each(|context| drop(runtime.block_on(hits.flags(context))));
        if hits.stats().store_hits - before == USERS as u64 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, provider) in [("store_hit", &hits), ("request", &requests)] {
        let mut turn = 0;
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % USERS;
                let flags = runtime.block_on(provider.flags(&contexts[turn]));
                assert!(!flags.is_stale());
                flags
            });
        });
    }
    let stats = (hits.stats(), requests.stats());
    // Checks that hits and requests were measured.
    assert!(stats.0.store_hits > 10 * stats.0.requests && stats.1.hits * 10 < stats.1.requests, "{stats:?}");
    runtime.block_on(async {
        hits.shutdown().await;
        requests.shutdown().await;
    });
    criterion.final_summary();
}
