//! Runs several instances of an application that share a store in Redis:
//! `fleet [--instances N] [--users N] [--changes N] [--delay MILLISECONDS] [--fault NAME] [--polling] [--no-store]`.
//!
//! The program starts `redis-server`, a flag service, and the instances, each in its own process. After each change, all
//! instances read the flags of all users at the same time, in random order, until all of them have the new flags. A change
//! affects the flags of half of the users. Between changes, there are a heartbeat, a new API key, and a restart of one instance.
//! At the end, an instance starts without the service. It must have the last known flags of all users from the store, unless
//! there was a fault. The program prints how many requests each change has cost. It fails if an instance reads a value of another
//! user, or an old value as fresh, or if instances do not agree within 60 seconds. With a store, a stream and no fault, it also
//! fails if there are more than 1.05 requests for each user and change (2.1 for unchanged flags).
//!
//! A fault occurs during each change: `flush`, `kill` (Redis restarts after a second), `slow` (Redis responds after a
//! second), `member` (an instance is killed while it reads, and restarts), or `cut` (all streams end).
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the program prints its results")]

use std::{
    env,
    error::Error,
    io,
    process::{ExitCode, Stdio},
    time::{Duration, Instant, SystemTime},
};

use flipswitch::{
    ConnectionStatus, FlipswitchProvider, ProviderEvent,
    open_feature::EvaluationContext,
    serde_json::{self, Value, json},
};
use flipswitch_local::{Endpoint, Fault, KeyRotation, LocalServer};
use flipswitch_redis::{RedisStore, redis};
use futures_util::future::{join_all, try_join_all};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, Stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    time::sleep,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The environment variable that makes a process an instance. It contains the options of the instance.
const INSTANCE: &str = "FLIPSWITCH_FLEET_INSTANCE";
const SECRET: &str = "the secret of all instances in this fleet";

/// Slightly more than the echo window, in which a flag set that seems unchanged may be from before the change.
const ECHO_WINDOW: Duration = Duration::from_millis(2_300);

/// The maximum wait of a reader in milliseconds: `miss_wait`, and a margin for a busy machine.
const LONGEST_READ: f64 = 4_000.0;

/// The polling interval without streams.
const POLLING: Duration = Duration::from_secs(2);

/// The time limit until all instances have the new flags.
const LIMIT: Duration = Duration::from_secs(60);

struct Options {
    instances: usize,
    users: usize,
    changes: usize,
    delay: Duration,
    fault: Option<String>,
    polls: bool,
    has_store: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match env::var(INSTANCE) {
        Ok(options) => instance(&options).await,
        Err(_) => match options() {
            Ok(options) => fleet(&options).await,
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Outcome<Options> {
    use lexopt::{Arg::Long, ValueExt};

    let mut options = Options {
        instances: 4,
        users: 1_000,
        changes: 10,
        delay: Duration::from_millis(1),
        fault: None,
        polls: false,
        has_store: true,
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("instances") => options.instances = arguments.value()?.parse()?,
            Long("users") => options.users = arguments.value()?.parse()?,
            Long("changes") => options.changes = arguments.value()?.parse()?,
            Long("delay") => options.delay = Duration::from_millis(arguments.value()?.parse()?),
            Long("fault") => options.fault = Some(arguments.value()?.string()?),
            Long("polling") => options.polls = true,
            Long("no-store") => options.has_store = false,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// Returns the id of a user. The flags of every second user are the same after each change.
fn id(user: usize) -> String {
    format!("{}-{user}", if is_changed(user) { "changed" } else { "same" })
}

fn is_changed(user: usize) -> bool {
    user.is_multiple_of(2)
}

/// Returns the flags after this number of changes: one flag with the number, and one that identifies the user.
fn flags(users: usize, change: usize) -> Value {
    let ids: serde_json::Map<_, _> = (0..users).map(|user| (id(user), id(user).into())).collect();
    json!({
        "number": {
            "state": "ENABLED", "variants": {"none": 0, "new": change}, "defaultVariant": "none",
            "targeting": {"if": [{"starts_with": [{"var": "targetingKey"}, "changed"]}, "new"]},
        },
        "whoami": {
            "state": "ENABLED", "variants": ids, "defaultVariant": id(0), "targeting": {"var": "targetingKey"},
        },
    })
}

/// The results of the reads of one instance.
#[derive(Default)]
struct Reads {
    fresh: u64,
    stale: u64,
    /// Stale values from the last change.
    last: u64,
    absent: u64,
    /// Fresh values from before the last change.
    old: u64,
    /// Values of other users.
    foreign: u64,
    slowest: f64,
}

impl Reads {
    const NAMES: [&str; 7] = ["fresh", "stale", "last", "absent", "old", "foreign", "slowest"];

    fn to_json(&self) -> Value {
        let Self { fresh, stale, last, absent, old, foreign, slowest } = *self;
        let [fresh, stale, last, absent, old, foreign] = [fresh, stale, last, absent, old, foreign].map(Value::from);
        let numbers = [fresh, stale, last, absent, old, foreign, slowest.into()];
        Self::NAMES.map(str::to_owned).into_iter().zip(numbers).collect::<serde_json::Map<_, _>>().into()
    }

    fn add(&mut self, read: &Value) {
        let [fresh, stale, last, absent, old, foreign, _] =
            Self::NAMES.map(|name| read[name].as_u64().unwrap_or_default());
        self.fresh += fresh;
        self.stale += stale;
        self.last += last;
        self.absent += absent;
        self.old += old;
        self.foreign += foreign;
        self.slowest = self.slowest.max(read["slowest"].as_f64().unwrap_or_default());
    }
}

/// Runs an instance. It reads commands from its input (`prepare`, `read CHANGE`, `key KEY` and `stats`), and responds to each
/// with one line.
async fn instance(options: &str) -> Outcome<()> {
    let options: Value = serde_json::from_str(options)?;
    let text = |name: &str| options[name].as_str().unwrap_or_default().to_owned();
    let users = usize::try_from(options["users"].as_u64().unwrap_or_default())?;
    let polls = options["polls"] == true;
    let mut builder = FlipswitchProvider::builder(text("key")).base_url(text("service")).secret(SECRET);
    if let Some(redis) = options["redis"].as_str() {
        builder = builder.store(RedisStore::connect(redis)?).store_namespace("fleet");
    }
    let provider = builder.polling_interval(POLLING).enable_realtime(!polls).build()?;
    if options["away"] != true {
        provider.ready(LIMIT).await?;
        while !polls && provider.sse_status() != ConnectionStatus::Connected {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let (changes, mut seen) = watch::channel(0_u64);
    let mut events = provider.events();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if matches!(event, ProviderEvent::ConfigurationChanged(_)) {
                changes.send_modify(|changes| *changes += 1);
            }
        }
    });
    let mut commands: Lines<BufReader<Stdin>> = BufReader::new(tokio::io::stdin()).lines();
    println!("{}", json!({"ready": true}));
    while let Some(command) = commands.next_line().await? {
        let response = match command.split_once(' ').unwrap_or((&command, "")) {
            ("prepare", _) => {
                seen.mark_unchanged();
                json!({})
            }
            ("read", change) => {
                // A fresh value must be new only once the instance has received the change.
                let is_known = tokio::time::timeout(Duration::from_secs(3), async {
                    while *seen.borrow() == 0 || !polls && !seen.has_changed().unwrap_or_default() {
                        sleep(Duration::from_millis(1)).await;
                    }
                });
                let is_known = !polls && is_known.await.is_ok();
                read(&provider, users, change.parse()?, is_known).await.to_json()
            }
            ("key", key) => {
                provider.set_api_key(key)?;
                json!({})
            }
            _ => serde_json::to_value(provider.stats())?,
        };
        println!("{response}");
    }
    provider.shutdown().await;
    Ok(())
}

/// Reads the flags of all users at the same time, in random order. `is_known` is true if the instance has received the change.
async fn read(provider: &FlipswitchProvider, users: usize, change: i64, is_known: bool) -> Reads {
    let mut order: Vec<_> = (0..users).collect();
    fastrand::shuffle(&mut order);
    let read = join_all(order.into_iter().map(|user| async move {
        let context = EvaluationContext::default().with_targeting_key(id(user));
        let began = Instant::now();
        let flags = provider.flags(&context).await;
        (user, flags, began.elapsed())
    }));
    let mut reads = Reads::default();
    for (user, flags, took) in read.await {
        reads.slowest = reads.slowest.max(took.as_secs_f64() * 1e3);
        let whoami = flags.string("whoami", "");
        if whoami.is_empty() {
            reads.absent += 1;
            continue;
        }
        reads.foreign += u64::from(whoami != id(user));
        let expected = if is_changed(user) { change } else { 0 };
        if flags.is_stale() {
            reads.stale += 1;
            reads.last += u64::from(flags.int("number", -1) == expected);
        } else {
            reads.fresh += 1;
            reads.old += u64::from(is_known && flags.int("number", -1) != expected);
            // Without a stream, an old value remains fresh for a while. The caller waits until this has passed.
            reads.stale += u64::from(!is_known && flags.int("number", -1) != expected);
        }
    }
    reads
}

/// The process of an instance.
struct Instance {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Instance {
    async fn start(options: &Value) -> Outcome<Self> {
        let mut process = Command::new(env::current_exe()?)
            .env(INSTANCE, options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("an instance has no input or output".into());
        };
        let mut started = Self { process, input, output: BufReader::new(output).lines() };
        started.response().await?;
        Ok(started)
    }

    async fn ask(&mut self, command: &str) -> Outcome<Value> {
        self.input.write_all(format!("{command}\n").as_bytes()).await?;
        self.response().await
    }

    async fn response(&mut self) -> Outcome<Value> {
        let line = tokio::time::timeout(LIMIT, self.output.next_line()).await??;
        Ok(serde_json::from_str(&line.ok_or("an instance has ended")?)?)
    }
}

/// A `redis-server` on its own port, without persistence.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    async fn start() -> Outcome<Self> {
        loop {
            // Below the ports that the system chooses for others.
            let port = fastrand::u16(10_000..20_000);
            let mut redis = Self { process: Self::spawn(port)?, port };
            if redis.is_up().await? {
                return Ok(redis);
            }
        }
    }

    fn spawn(port: u16) -> io::Result<Child> {
        let port = port.to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        Command::new("redis-server").args(arguments).stdout(Stdio::null()).kill_on_drop(true).spawn()
    }

    /// Waits for the server. Returns `false` if it has ended because another process uses its port.
    async fn is_up(&mut self) -> Outcome<bool> {
        let began = Instant::now();
        while self.run(&["PING"]).await.is_err() {
            if self.process.try_wait()?.is_some() {
                return Ok(false);
            }
            if began.elapsed() > LIMIT {
                return Err("redis-server does not start".into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(self.process.try_wait()?.is_none())
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn run(&self, command: &[&str]) -> redis::RedisResult<()> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let (name, arguments) = command.split_first().unwrap_or((&"PING", &[]));
        redis::cmd(name).arg(arguments).exec_async(&mut connection).await
    }

    async fn restart(&mut self) -> Outcome<()> {
        self.process.kill().await?;
        sleep(Duration::from_secs(1)).await;
        self.process = Self::spawn(self.port)?;
        if self.is_up().await? { Ok(()) } else { Err("redis-server has ended".into()) }
    }
}

struct Fleet<'a> {
    options: &'a Options,
    service: LocalServer,
    redis: Redis,
    key: String,
    instances: Vec<Instance>,
}

async fn fleet(options: &Options) -> Outcome<()> {
    let Options { instances, users, changes, delay, .. } = *options;
    let service = LocalServer::builder().flags(json!({"flags": flags(users, 0)}));
    let service = service.api_key("the first key").heartbeat(Duration::from_secs(3_600)).start().await?;
    let redis = Redis::start().await?;
    let key = service.api_key();
    let mut fleet = Fleet { options, service, redis, key, instances: Vec::new() };
    let each = fleet.options();
    fleet.instances = try_join_all((0..instances).map(|_| Instance::start(&each))).await?;
    fleet.service.faults().add(Fault::on(Endpoint::Bulk).delay(delay))?;
    println!("{instances} instances, {users} users, a service that responds after {delay:?}");
    let began = Instant::now();
    fleet.converge(0, began, None).await?;
    println!("{:>7} {:>9} {:>9} {:>9} {:>9} {:>9}", "change", "changed", "same", "stale", "slowest", "took");
    let mut total = [0; 2];
    for change in 1..=changes {
        fleet.between(change).await?;
        fleet.send("prepare").await?;
        let began = Instant::now();
        fleet.service.set_definition("number", flags(users, change)["number"].clone())?;
        let reads = fleet.converge(change, began, options.fault.as_deref()).await?;
        let requests = fleet.requests(began);
        // The requests for each user of the two kinds.
        let [changed, same] = requests.map(|requests| requests as f64 / (users / 2) as f64);
        println!(
            "{change:>7} {changed:>9.3} {same:>9.3} {:>9} {:>6.0} ms {:>6.1} s",
            reads.stale,
            reads.slowest,
            began.elapsed().as_secs_f64()
        );
        total = [total[0] + requests[0], total[1] + requests[1]];
    }
    let stats = fleet.send("stats").await?;
    for name in ["requests", "storeHits", "storeMisses", "storeRestored", "storeLeases", "storeWaits"] {
        println!("{name}: {}", stats.iter().filter_map(|stats| stats[name].as_u64()).sum::<u64>());
    }
    let [changed, same] = total.map(|requests| requests as f64 / (changes * users / 2) as f64);
    println!("requests for each user and change: {changed:.3} for changed flags, {same:.3} for unchanged flags");
    if options.has_store {
        fleet.start_without_service(changes).await?;
    }
    let promises = options.has_store && !options.polls && options.fault.is_none();
    if promises && (changed > 1.05 || same > 2.1) {
        return Err("more than 1.05 requests for changed flags, or more than 2.1 for unchanged flags".into());
    }
    Ok(())
}

impl Fleet<'_> {
    /// Returns the options of an instance.
    fn options(&self) -> Value {
        let Options { users, polls, has_store, .. } = *self.options;
        let redis = has_store.then(|| self.redis.url());
        json!({"service": self.service.url(), "key": self.key, "redis": redis, "users": users, "polls": polls})
    }

    /// Sends a command to all instances, and returns their responses.
    async fn send(&mut self, command: &str) -> Outcome<Vec<Value>> {
        try_join_all(self.instances.iter_mut().map(|instance| instance.ask(command))).await
    }

    /// Causes the other events of the run, between changes. Users continue to read.
    async fn between(&mut self, change: usize) -> Outcome<()> {
        match change {
            3 => {
                self.service.send_event("heartbeat", json!({}));
                sleep(Duration::from_millis(500)).await;
            }
            5 => self.restart(0).await?,
            7 => {
                let in_a_minute = SystemTime::now() + Duration::from_secs(60);
                let rotation = KeyRotation::new().key("another key").valid_until(in_a_minute);
                self.key = self.service.rotate_api_key(rotation);
                let command = format!("key {}", self.key);
                self.send(&command).await?;
                // The streams reconnect with the new key.
                sleep(Duration::from_secs(2)).await;
            }
            _ => return Ok(()),
        }
        self.converge(change - 1, Instant::now(), None).await?;
        Ok(())
    }

    async fn restart(&mut self, number: usize) -> Outcome<()> {
        self.instances[number].process.kill().await?;
        self.instances[number] = Instance::start(&self.options()).await?;
        Ok(())
    }

    /// Starts an instance while the service is unavailable. The instance must have the last known flags of all users.
    async fn start_without_service(mut self, change: usize) -> Outcome<()> {
        let mut each = self.options();
        each["away"] = true.into();
        self.service.shutdown().await;
        self.instances.clear();
        let mut started = Instance::start(&each).await?;
        let users = self.options.users as u64;
        let mut reads = Reads::default();
        // On a busy machine, some of the concurrent reads exceed the time limit of the store. A second read has all flags.
        for _ in 0..2 {
            reads = Reads::default();
            reads.add(&started.ask(&format!("read {change}")).await?);
            if reads.last == users {
                break;
            }
        }
        let Reads { last, stale, slowest, .. } = reads;
        println!("without the service: {last} of {users} users have their last flags; slowest read {slowest:.0} ms");
        let expected = match self.options.fault.as_deref() {
            None => users,
            // Flags that were requested while Redis accepted no writes are missing, or older flags are stored.
            Some("kill" | "slow") => last,
            Some(_) => stale,
        };
        if last != expected || slowest > LONGEST_READ {
            return Err(format!("expected {expected} users to have them, within {LONGEST_READ} ms").into());
        }
        Ok(())
    }

    /// Reads until all instances have the flags of a change, but at least until the echo window has ended.
    async fn converge(&mut self, change: usize, began: Instant, fault: Option<&str>) -> Outcome<Reads> {
        let mut all = Reads::default();
        let mut fault = fault;
        let command = format!("read {change}");
        loop {
            let is_over = began.elapsed() > ECHO_WINDOW;
            let reads = match fault.take() {
                Some(fault) => self.read_with(fault, &command).await?,
                None => self.send(&command).await?,
            };
            let mut round = Reads::default();
            reads.iter().for_each(|read| [&mut round, &mut all].into_iter().for_each(|sum| sum.add(read)));
            if all.old > 0 || all.foreign > 0 {
                return Err(
                    format!("{} old values were fresh, {} values were of other users", all.old, all.foreign).into()
                );
            }
            if all.slowest > LONGEST_READ {
                return Err(format!("a read took {} ms", all.slowest).into());
            }
            if is_over && round.stale == 0 && round.absent == 0 {
                return Ok(all);
            }
            if began.elapsed() > LIMIT {
                return Err(format!("{} stale and {} absent values after {LIMIT:?}", round.stale, round.absent).into());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads while a fault occurs.
    async fn read_with(&mut self, fault: &str, command: &str) -> Outcome<Vec<Value>> {
        let faulty = async |redis: &mut Redis| match fault {
            "flush" => Ok(redis.run(&["FLUSHALL"]).await?),
            "kill" => redis.restart().await,
            "slow" => Ok(redis.run(&["CLIENT", "PAUSE", "1000", "ALL"]).await?),
            _ => Ok(()),
        };
        match fault {
            "member" => {
                self.instances[0].input.write_all(format!("{command}\n").as_bytes()).await?;
                sleep(Duration::from_millis(20)).await;
                self.restart(0).await?;
                self.send(command).await
            }
            "cut" => {
                self.service.faults().finish_streams();
                self.send(command).await
            }
            "flush" | "kill" | "slow" => {
                let Self { instances, redis, .. } = self;
                let reads = try_join_all(instances.iter_mut().map(|instance| instance.ask(command)));
                let (reads, failed) = tokio::join!(reads, faulty(redis));
                failed?;
                reads
            }
            other => Err(format!("there is no fault {other:?}").into()),
        }
    }

    /// Returns the number of requests since an instant, for users whose flags change and for other users.
    fn requests(&self, since: Instant) -> [usize; 2] {
        let bodies = self.service.requests().into_iter().filter(|request| request.at >= since);
        let users: Vec<String> = bodies
            .filter_map(|request| serde_json::from_slice::<Value>(&request.body).ok())
            .filter_map(|body| body["context"]["targetingKey"].as_str().map(str::to_owned))
            .collect();
        ["changed", "same"].map(|kind| users.iter().filter(|id| id.starts_with(kind)).count())
    }
}
