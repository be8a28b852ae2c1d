//! Runs two providers that share a store, with every kind of fault of the service and of the store:
//! `soak [--minutes N] [--seed N]`.
//!
//! Threads continuously read flags for many contexts, while flags change and faults come and go. A storm is a phase with several
//! faults, and a calm is a phase without faults. In each calm, the providers must become healthy again, and agree with the
//! service for every context once their backoffs have elapsed. A reader must never get a fresh value that is older than the last
//! change reported before the read, or a value of another user. The program prints what it did and how long the recoveries took,
//! and fails if a reader got a wrong value or a provider did not recover.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the program prints its results")]

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use flipswitch::{
    ConnectionStatus, FlipswitchProvider, HealthState, StoredEntry,
    open_feature::EvaluationContext,
    serde_json::{Map, Value, json},
    testing::MemoryStore,
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use time::OffsetDateTime;
use tokio::runtime::{Builder, Handle, Runtime};

type Outcome<T> = Result<T, Box<dyn Error>>;

const CONTEXTS: usize = 1_000;
const INSTANCES: usize = 2;
const READERS: u64 = 4;
const KEY: &str = "soak";

/// Slightly more than the longest backoff. After this time, all contexts must have the values of the service.
const BACKOFF: Duration = Duration::from_secs(35);

fn main() -> ExitCode {
    match options().and_then(|(minutes, seed)| soak(minutes, seed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Outcome<(f64, u64)> {
    use lexopt::{Arg::Long, ValueExt};

    let (mut minutes, mut seed) = (10.0, fastrand::u64(..));
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("minutes") => minutes = arguments.value()?.parse()?,
            Long("seed") => seed = arguments.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((minutes, seed))
}

/// The results of the readers.
#[derive(Default)]
struct Seen {
    /// The last reported value. Every later fresh read must return this value or a newer one.
    reported: AtomicI64,
    fresh: AtomicU64,
    stale: AtomicU64,
    absent: AtomicU64,
    /// Fresh values older than the last change reported before the read.
    older: AtomicU64,
    /// Values of another user.
    mixed: AtomicU64,
    stop: AtomicBool,
}

fn soak(minutes: f64, seed: u64) -> Outcome<()> {
    println!("{minutes} minutes, --seed {seed}");
    let until = Instant::now() + Duration::from_secs_f64(60.0 * minutes);
    let (services, home) = (Runtime::new()?, Builder::new_multi_thread().worker_threads(1).enable_all().build()?);
    let mut soak = services.block_on(Soak::start(home.handle(), Rng::with_seed(seed)))?;
    let seen = soak.instances.each_ref().map(|instance| Arc::clone(&instance.seen));
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let Instance { provider, seen } = soak.instances[number as usize % INSTANCES].clone();
            thread::spawn(move || read(&provider, &seen, &mut Rng::with_seed(seed ^ number)))
        })
        .collect();
    let outcome = services.block_on(soak.run(until));
    seen.iter().for_each(|seen| seen.stop.store(true, Relaxed));
    let panicked = readers.into_iter().filter_map(|reader| reader.join().err()).count();
    for Instance { provider, .. } in &soak.instances {
        services.block_on(provider.shutdown());
    }
    soak.report();
    outcome?;
    soak.grew()?;
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(|seen| of(seen)).sum::<u64>();
    let (older, mixed) = (sum(|seen| seen.older.load(Relaxed)), sum(|seen| seen.mixed.load(Relaxed)));
    if older + mixed > 0 || panicked > 0 {
        let values = format!("{older} fresh values older than the reported change, {mixed} of another user");
        return Err(format!("{values}, {panicked} panics").into());
    }
    Ok(())
}

fn name(number: usize) -> String {
    format!("user-{number}")
}

fn context(number: usize) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(name(number)).with_custom_field("plan", "premium")
}

/// Reads flags of random users until the end.
fn read(provider: &FlipswitchProvider, seen: &Seen, random: &mut Rng) {
    while !seen.stop.load(Relaxed) {
        for _ in 0..50 {
            let number = random.usize(..CONTEXTS);
            let reported = seen.reported.load(Relaxed);
            let flags = pollster::block_on(provider.flags(&context(number)));
            let is_stale = flags.is_flag_stale("counter");
            let count = match (flags.evaluation("counter").is_ok(), is_stale) {
                (false, _) => &seen.absent,
                (true, true) => &seen.stale,
                (true, false) => &seen.fresh,
            };
            count.fetch_add(1, Relaxed);
            if flags.evaluation("counter").is_ok() {
                seen.mixed.fetch_add(u64::from(flags.string("whoami", "") != name(number)), Relaxed);
                let is_older = !is_stale && flags.int("counter", 0) < reported;
                seen.older.fetch_add(u64::from(is_older), Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A provider, and the results of its readers.
#[derive(Clone)]
struct Instance {
    provider: FlipswitchProvider,
    seen: Arc<Seen>,
}

struct Soak {
    service: LocalServer,
    address: SocketAddr,
    home: Handle,
    instances: [Instance; INSTANCES],
    store: MemoryStore,
    /// Entries from an earlier time.
    backup: Vec<StoredEntry>,
    random: Rng,
    changes: i64,
    storms: u64,
    /// The times until the providers were healthy, with and without a call to `reconnect_sse`, and from then on until all
    /// contexts agreed.
    healthy_with_help: Vec<Duration>,
    healthy: Vec<Duration>,
    agreed: Vec<Duration>,
    /// Resident kilobytes, threads and tasks in each calm.
    sizes: Vec<(u64, u64, usize)>,
}

impl Soak {
    async fn start(home: &Handle, random: Rng) -> Outcome<Self> {
        let service = serve("127.0.0.1:0".parse()?, 0).await?;
        let address = service.url().trim_start_matches("http://").parse()?;
        let store = MemoryStore::new();
        let instances = [Self::instance(home, &service, &store).await?, Self::instance(home, &service, &store).await?];
        Ok(Self {
            service,
            address,
            home: home.clone(),
            instances,
            store,
            backup: Vec::new(),
            random,
            changes: 0,
            storms: 0,
            healthy_with_help: Vec::new(),
            healthy: Vec::new(),
            agreed: Vec::new(),
            sizes: Vec::new(),
        })
    }

    async fn instance(home: &Handle, service: &LocalServer, store: &MemoryStore) -> Outcome<Instance> {
        let seen = Arc::new(Seen::default());
        let provider = FlipswitchProvider::builder(KEY)
            .base_url(service.url())
            .runtime(home.clone())
            .secret("the secret of both instances")
            .store(store.clone())
            // Short enough to elapse during a storm.
            .request_timeout(Duration::from_secs(1))
            .stream_idle_timeout(Duration::from_secs(2))
            .polling_interval(Duration::from_secs(1))
            .max_sse_retries(2)
            .stale_wait(Duration::from_millis(50))
            .build()?;
        // The mark is set after the counter. Once the mark is reported, every read must return this counter.
        let reported = Arc::clone(&seen);
        let listener = provider.add_flag_change_listener(move |change| {
            let mark = change.flag_key.as_ref().and_then(|key| key.strip_prefix("mark-")?.parse().ok());
            reported.reported.fetch_max(mark.unwrap_or(0), Relaxed);
        });
        listener.detach();
        provider.ready(BACKOFF).await?;
        // Waits, because `calm` counts later connections as reconnects.
        while provider.sse_status() != ConnectionStatus::Connected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Instance { provider, seen })
    }

    async fn run(&mut self, until: Instant) -> Outcome<()> {
        while Instant::now() < until {
            self.storm().await?;
            self.calm().await?;
        }
        Ok(())
    }

    /// Sets some faults at the same time, while flags change.
    async fn storm(&mut self) -> Outcome<()> {
        self.storms += 1;
        for _ in 0..self.random.u32(1..=3) {
            let fault = self.fault();
            self.service.faults().add(fault)?;
        }
        let faults = self.service.faults();
        match self.random.u32(..8) {
            0 => drop(faults.drop_streams()),
            1 => drop(faults.reset_streams()),
            2 => drop(faults.finish_streams()),
            3 => drop(faults.inject(&b"data: \xff\xfe\nevent: flag-upd\n\n\0retry: 0\n"[..])),
            4 => self.restart().await?,
            _ => {}
        }
        if self.random.bool() {
            self.break_store();
        }
        let end = Instant::now() + Duration::from_millis(self.random.u64(200..4_000));
        self.change_until(end).await;
        Ok(())
    }

    fn break_store(&mut self) {
        let store = &self.store;
        match self.random.u32(..9) {
            0 => store.set_down(true),
            1 => store.set_delay(Duration::from_millis(self.random.u64(..1_500))),
            2 => store.flush(),
            3 => store.set_leases_lost(true),
            4 => store.advance_clock(Duration::from_millis(self.random.u64(..10_000))),
            5 => store.turn_clock_back(Duration::from_millis(self.random.u64(..10_000))),
            6 => self.backup = store.entries(),
            7 => self.backup.drain(..).for_each(|entry| store.insert(entry)),
            _ => {
                // Stores entries under the keys of other entries.
                let entries = store.entries();
                let names: Vec<_> = entries.iter().rev().map(|entry| entry.key.clone()).collect();
                entries.into_iter().zip(names).for_each(|(entry, key)| store.insert(StoredEntry { key, ..entry }));
            }
        }
    }

    fn fault(&mut self) -> Fault {
        let endpoint = [Endpoint::Bulk, Endpoint::Stream, Endpoint::All][self.random.usize(..3)];
        let fault = Fault::on(endpoint);
        let bytes = self.random.u64(..400);
        let user = name(self.random.usize(..CONTEXTS));
        let millis = Duration::from_millis(self.random.u64(500..3_000));
        match self.random.u32(..28) {
            0 => fault.status(503),
            1 => fault.status(500).body("<html>"),
            2 => fault.status(429).header("retry-after", "1"),
            3 => fault.close(),
            4 => fault.close().after_bytes(bytes),
            5 => fault.reset(),
            6 => fault.reset().after_bytes(bytes),
            7 => fault.half_open().after_bytes(bytes),
            8 => fault.hang(),
            9 => fault.garbage(vec![b'x'; 100_000]),
            10 => fault.content_type("text/html"),
            11 => fault.delay(Duration::from_millis(self.random.u64(..1_500))),
            12 => fault.trickle(20, Duration::from_millis(5)),
            13 => fault.status(404).html("<h1>404</h1>"),
            14 => fault.status(404).json(json!({"message": "no route"})),
            15 => fault.status(403).html("<h1>403</h1>").times(1),
            16 => fault.status(403).json(json!({})),
            17 => Fault::on(Endpoint::Bulk).status(500).for_targeting_key("_init_"),
            18 => Fault::on(Endpoint::Bulk).status(500).except_targeting_key("_init_"),
            19 => Fault::on(Endpoint::Bulk).status(500).for_targeting_key(user),
            20 => Fault::on(Endpoint::Bulk).status(403).json(json!({})).for_attribute("plan"),
            21 => Fault::on(Endpoint::Bulk).hang().for_targeting_key(user),
            22 => Fault::on(Endpoint::Bulk).status(412).if_none_match(true),
            23 => Fault::on(Endpoint::Bulk).rate_limit(100).header("retry-after", "1"),
            24 => Fault::on(Endpoint::Bulk).flag_error("counter", "GENERAL"),
            25 => Fault::on(Endpoint::Stream).finish().after_time(millis),
            26 => Fault::on(Endpoint::Connections).half_open(),
            _ => Fault::on(Endpoint::Stream).no_heartbeats(),
        }
    }

    /// Restarts the service at the same address, with the same flags.
    async fn restart(&mut self) -> Outcome<()> {
        let new = serve("127.0.0.1:0".parse()?, self.changes).await?;
        std::mem::replace(&mut self.service, new).shutdown().await;
        let new = serve(self.address, self.changes).await?;
        std::mem::replace(&mut self.service, new).shutdown().await;
        Ok(())
    }

    async fn change_until(&mut self, end: Instant) {
        while Instant::now() < end {
            self.change();
            tokio::time::sleep(Duration::from_millis(self.random.u64(1..100))).await;
        }
    }

    fn change(&mut self) {
        self.changes += 1;
        self.service.set_flag("counter", self.changes);
        self.service.set_flag(&format!("mark-{}", self.changes), true);
        self.service.remove_flag(&format!("mark-{}", self.changes - 1));
    }

    /// Ends all faults and waits until all contexts agree.
    async fn calm(&mut self) -> Outcome<()> {
        self.service.faults().clear();
        self.store.set_down(false);
        self.store.set_delay(Duration::ZERO);
        self.store.set_leases_lost(false);
        self.change();
        let (began, at) = (Instant::now(), OffsetDateTime::now_utc());
        let connections = self.instances.each_ref().map(|instance| instance.provider.stats().reconnects);
        let helped = self.random.u32(..4) > 0;
        if helped {
            self.instances.iter().for_each(|instance| instance.provider.reconnect_sse());
        }
        // Checks for a new response, because a connection that a fault has silenced may still look open.
        let is_healthy = |(Instance { provider, .. }, connections): (&Instance, &u64)| {
            provider.sse_status() == ConnectionStatus::Connected
                && provider.health().state == HealthState::Streaming
                && provider.health().last_success.is_some_and(|success| success >= at)
                && !(helped && provider.stats().reconnects == *connections)
        };
        while self.service.streams() != INSTANCES || !self.instances.iter().zip(&connections).all(is_healthy) {
            if began.elapsed() > BACKOFF {
                let health = self.instances.each_ref().map(|instance| instance.provider.health());
                return Err(format!("{health:?}: not healthy after {BACKOFF:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let healthy = Instant::now();
        if helped { &mut self.healthy_with_help } else { &mut self.healthy }.push(healthy - began);
        while let Some(disagreement) = self.disagreement().await {
            if began.elapsed() > BACKOFF {
                return Err(format!("{:?} after it was healthy: {disagreement}", healthy.elapsed()).into());
            }
        }
        self.agreed.push(healthy.elapsed());
        self.sizes.push(size(&self.home)?);
        self.change_until(Instant::now() + Duration::from_secs(1)).await;
        Ok(())
    }

    /// Returns a context that does not have the values of the service, or has them as stale.
    async fn disagreement(&self) -> Option<String> {
        for number in 0..INSTANCES * CONTEXTS {
            let (provider, number) = (&self.instances[number % INSTANCES].provider, number / INSTANCES);
            let flags = provider.flags(&context(number)).await;
            let value = flags.int("counter", -1);
            if value != self.changes || flags.is_flag_stale("counter") {
                let (health, changes) = (provider.health(), self.changes);
                return Some(format!("{} has {value} of {changes}, {:?}, {health:?}", name(number), flags.error()));
            }
        }
        None
    }

    /// Checks that memory, threads and tasks do not grow once every kind of fault has occurred.
    fn grew(&self) -> Outcome<()> {
        let (Some(quarter), Some(last)) = (self.sizes.get(self.sizes.len() / 4), self.sizes.last()) else {
            return Ok(());
        };
        // A short run has not seen every fault yet, and a calm may find some requests in flight.
        let is_long = self.sizes.len() >= 40;
        if is_long && (last.0 > quarter.0 + 64_000 || last.1 > quarter.1 + 4 || last.2 > quarter.2 + 32) {
            return Err(format!("grew from {quarter:?} to {last:?} (kB, threads, tasks)").into());
        }
        Ok(())
    }

    fn report(&mut self) {
        println!("{} storms, {} changes", self.storms, self.changes);
        for Instance { provider, seen } in &self.instances {
            let Seen { fresh, stale, absent, older, mixed, .. } = &**seen;
            println!("reads: {fresh:?} fresh, {stale:?} stale, {absent:?} without flags");
            println!("wrong: {older:?} fresh, but older than the reported change; {mixed:?} of another user");
            let stats = provider.stats();
            let (requests, reconnects, polls) = (stats.requests, stats.reconnects, stats.polls);
            println!("{requests} requests, {reconnects} reconnects, {polls} polls, {} store hits", stats.store_hits);
        }
        println!("until both providers were healthy, with `reconnect_sse`: {}", shown(&mut self.healthy_with_help));
        println!("until both providers were healthy, without it: {}", shown(&mut self.healthy));
        println!("until all contexts agreed, from then on: {}", shown(&mut self.agreed));
        let at = |part: usize| self.sizes.get(self.sizes.len().saturating_sub(1) * part / 4);
        for (what, part) in [("first calm", 0), ("after a quarter", 1), ("after half", 2), ("last calm", 4)] {
            if let Some((memory, threads, tasks)) = at(part) {
                println!("{what}: {} MB resident, {threads} threads, {tasks} tasks", memory / 1_000);
            }
        }
    }
}

async fn serve(address: SocketAddr, counter: i64) -> Outcome<LocalServer> {
    let variants: Map<_, Value> = (0..CONTEXTS).map(|number| (name(number), json!(name(number)))).collect();
    let whoami = json!({"state": "ENABLED", "variants": variants, "targeting": {"var": "targetingKey"}});
    let service = LocalServer::builder()
        .flags(json!({"flags": {"whoami": whoami}}))
        .listen(address)
        .api_key(KEY)
        .heartbeat(Duration::from_millis(300))
        .start()
        .await?;
    service.set_flag("counter", counter);
    Ok(service)
}

/// Formats median, 99th percentile and maximum.
fn shown(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    match (at(50), at(99), times.last()) {
        (Some(median), Some(high), Some(most)) => format!("p50 {median:.0?}, p99 {high:.0?}, max {most:.0?}"),
        _ => "never".to_owned(),
    }
}

/// Returns resident kilobytes, threads of this process, and tasks of the provider.
fn size(home: &Handle) -> Outcome<(u64, u64, usize)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let (memory, threads) = field("VmRSS:").zip(field("Threads:")).ok_or("no sizes in /proc/self/status")?;
    Ok((memory, threads, home.metrics().num_alive_tasks()))
}
