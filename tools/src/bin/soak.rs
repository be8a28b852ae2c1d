//! Runs a provider against a service with every kind of fault: `soak [--minutes N] [--seed N]`.
//!
//! Threads read flags for many contexts all the time, while flags change and faults come and go. After each storm of
//! faults the provider must be healthy again, and agree with the service for every context, once its waits after failures
//! are over. A reader must never get a fresh value that is older than the last change
//! reported before the read, or a value of another user. Prints what was done and how long it took. Fails if something
//! was wrong.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program speaks to its user")]

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
    ConnectionStatus, FlipswitchProvider, HealthState,
    open_feature::EvaluationContext,
    serde_json::{Map, Value, json},
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use time::OffsetDateTime;
use tokio::runtime::{Builder, Handle, Runtime};

type Outcome<T> = Result<T, Box<dyn Error>>;

const CONTEXTS: usize = 1_000;
const READERS: u64 = 4;
const KEY: &str = "soak";

/// The longest wait of the backoff, and a little more. After this time all contexts have the values of the service.
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

/// What the readers got.
#[derive(Default)]
struct Seen {
    /// The last reported value, which every later fresh read must have.
    told: AtomicI64,
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
    let seen = Arc::new(Seen::default());
    let mut soak = services.block_on(Soak::start(home.handle(), Arc::clone(&seen), Rng::with_seed(seed)))?;
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let (provider, seen) = (soak.provider.clone(), Arc::clone(&seen));
            thread::spawn(move || read(&provider, &seen, &mut Rng::with_seed(seed ^ number)))
        })
        .collect();
    let outcome = services.block_on(soak.run(until));
    seen.stop.store(true, Relaxed);
    let panicked = readers.into_iter().filter_map(|reader| reader.join().err()).count();
    services.block_on(soak.provider.shutdown());
    soak.report();
    outcome?;
    soak.grew()?;
    let (older, mixed) = (seen.older.load(Relaxed), seen.mixed.load(Relaxed));
    if older + mixed > 0 || panicked > 0 {
        return Err(format!("{older} values older than told, {mixed} of another user, {panicked} panics").into());
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
            let told = seen.told.load(Relaxed);
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
                let is_older = !is_stale && flags.int("counter", 0) < told;
                seen.older.fetch_add(u64::from(is_older), Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

struct Soak {
    service: LocalServer,
    address: SocketAddr,
    home: Handle,
    provider: FlipswitchProvider,
    random: Rng,
    seen: Arc<Seen>,
    changes: i64,
    storms: u64,
    /// The times until the provider was healthy, with `reconnect_sse` and without, and until all contexts agreed after
    /// that.
    well_with_help: Vec<Duration>,
    well: Vec<Duration>,
    agreed: Vec<Duration>,
    /// Resident kilobytes, threads and tasks at each calm.
    sizes: Vec<(u64, u64, usize)>,
}

impl Soak {
    async fn start(home: &Handle, seen: Arc<Seen>, random: Rng) -> Outcome<Self> {
        let service = serve("127.0.0.1:0".parse()?, 0).await?;
        let address = service.url().trim_start_matches("http://").parse()?;
        let provider = FlipswitchProvider::builder(KEY)
            .base_url(service.url())
            .runtime(home.clone())
            // Short enough to elapse during a storm.
            .request_timeout(Duration::from_secs(1))
            .stream_idle_timeout(Duration::from_secs(2))
            .polling_interval(Duration::from_secs(1))
            .max_sse_retries(2)
            .stale_wait(Duration::from_millis(50))
            .build()?;
        // A mark is set after the counter: once the mark is reported, every read must have the counter.
        let heard = Arc::clone(&seen);
        let listener = provider.add_flag_change_listener(move |change| {
            let mark = change.flag_key.as_ref().and_then(|key| key.strip_prefix("mark-")?.parse().ok());
            heard.told.fetch_max(mark.unwrap_or(0), Relaxed);
        });
        listener.detach();
        provider.ready(BACKOFF).await?;
        // Later connections count as new ones.
        while provider.sse_status() != ConnectionStatus::Connected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self {
            service,
            address,
            home: home.clone(),
            provider,
            random,
            seen,
            changes: 0,
            storms: 0,
            well_with_help: Vec::new(),
            well: Vec::new(),
            agreed: Vec::new(),
            sizes: Vec::new(),
        })
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
        let end = Instant::now() + Duration::from_millis(self.random.u64(200..4_000));
        self.change_until(end).await;
        Ok(())
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
        self.change();
        let (began, at, connections) = (Instant::now(), OffsetDateTime::now_utc(), self.provider.stats().reconnects);
        let helped = self.random.u32(..4) > 0;
        if helped {
            self.provider.reconnect_sse();
        }
        // Healthy with this service: a connection that a fault has silenced may still look open.
        while self.provider.sse_status() != ConnectionStatus::Connected
            || self.service.streams() != 1
            || self.provider.health().state != HealthState::Streaming
            || self.provider.health().last_success.is_none_or(|success| success < at)
            || helped && self.provider.stats().reconnects == connections
        {
            if began.elapsed() > BACKOFF {
                return Err(format!("{:?}: not well after {BACKOFF:?}", self.provider.health()).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let well = Instant::now();
        if helped { &mut self.well_with_help } else { &mut self.well }.push(well - began);
        while let Some(disagreement) = self.disagreement().await {
            if began.elapsed() > BACKOFF {
                return Err(format!("{:?} after it was well: {disagreement}", well.elapsed()).into());
            }
        }
        self.agreed.push(well.elapsed());
        self.sizes.push(size(&self.home)?);
        self.change_until(Instant::now() + Duration::from_secs(1)).await;
        Ok(())
    }

    /// Returns a context that does not have the values of the service, or has them as stale.
    async fn disagreement(&self) -> Option<String> {
        for number in 0..CONTEXTS {
            let flags = self.provider.flags(&context(number)).await;
            let value = flags.int("counter", -1);
            if value != self.changes || flags.is_flag_stale("counter") {
                let (health, changes) = (self.provider.health(), self.changes);
                return Some(format!("{} has {value} of {changes}, {:?}, {health:?}", name(number), flags.error()));
            }
        }
        None
    }

    /// Checks that memory, threads and tasks stay as they were once every kind of fault had occurred.
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
        let Seen { fresh, stale, absent, older, mixed, .. } = &*self.seen;
        println!("{} storms, {} changes", self.storms, self.changes);
        println!("reads: {fresh:?} fresh, {stale:?} stale, {absent:?} without an answer");
        println!("wrong: {older:?} older than told and called fresh, {mixed:?} of another user");
        println!("until it was well, with `reconnect_sse`: {}", shown(&mut self.well_with_help));
        println!("until it was well by itself: {}", shown(&mut self.well));
        println!("until everybody agreed after that: {}", shown(&mut self.agreed));
        let (stats, requests) = (self.provider.stats(), self.provider.stats().requests);
        println!("{requests} requests, {} reconnects, {} polls", stats.reconnects, stats.polls);
        let at = |part: usize| self.sizes.get(self.sizes.len().saturating_sub(1) * part / 4);
        for (what, part) in [("first", 0), ("quarter", 1), ("half", 2), ("last", 4)] {
            if let Some((memory, threads, tasks)) = at(part) {
                println!("at the {what} calm: {} MB resident, {threads} threads, {tasks} tasks", memory / 1_000);
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
