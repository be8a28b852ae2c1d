//! Failures of the stream and of requests in all combinations, with the values of each user during and after them.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use flipswitch::{
    ConnectionStatus, Flags, FlipswitchProvider, FlipswitchProviderBuilder, HealthState,
    open_feature::EvaluationContext, serde_json::json,
};
use flipswitch_local::{Endpoint, Fault, LocalServer};
use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, join_all},
};
use tokio::{task::LocalSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::support::{self, PATIENCE, eventually, in_time, user, whoami};

/// The duration of a fault.
const FAULT: Duration = Duration::from_secs(12);

/// The time limit after the end of a fault until all values are correct: no wait is longer than 30 seconds, and a request takes
/// some time.
const RECOVERY: Duration = Duration::from_secs(35);

/// The time limit of a read: twice the default of `miss_wait`, for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The interval at which users read.
const EVERY: Duration = Duration::from_millis(500);

/// More users than the number of reads in a test.
const NEW_USERS: usize = 1_500;

const PAGE: &str = "<!doctype html><title>Error</title>";

/// The fault of the stream of changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stream {
    Fine,
    /// A proxy refuses it.
    Refused,
    /// Its connections are reset.
    Away,
    /// A load balancer ends it every 3 seconds, ten times as often as a typical load balancer.
    Cut,
}

const STREAMS: [Stream; 4] = [Stream::Fine, Stream::Refused, Stream::Away, Stream::Cut];

/// The fault of requests for flags.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answers {
    Fine,
    PageNotFound,
    JsonNotFound,
    ForbiddenOnce,
    ForbiddenAttribute,
    ErrorForOneContext,
    ErrorForStartUp,
    TimeOut,
    /// A rate limit of 10 requests per second, a tenth of a typical limit.
    RateLimited,
    Page,
}

const ANSWERS: [Answers; 10] = [
    Answers::Fine,
    Answers::PageNotFound,
    Answers::JsonNotFound,
    Answers::ForbiddenOnce,
    Answers::ForbiddenAttribute,
    Answers::ErrorForOneContext,
    Answers::ErrorForStartUp,
    Answers::TimeOut,
    Answers::RateLimited,
    Answers::Page,
];

/// The fault of requests for the contexts of a hostile user, which are all different.
#[derive(Clone, Copy, Debug)]
enum Hostile {
    Rejected,
    Forbidden,
    Error,
    TimeOut,
}

const HOSTILE: [Hostile; 4] = [Hostile::Rejected, Hostile::Forbidden, Hostile::Error, Hostile::TimeOut];

/// An attribute of contexts that the service or a proxy cannot handle.
const BAD: &str = "bad";

impl Stream {
    fn begin(self, service: &LocalServer) {
        let on = || Fault::on(Endpoint::Stream);
        let fault = match self {
            Self::Fine => return,
            Self::Refused => on().status(403).html(PAGE),
            Self::Away => on().reset(),
            Self::Cut => on().finish().after_time(Duration::from_secs(3)),
        };
        service.faults().add(fault).unwrap();
        if self != Self::Cut {
            service.faults().drop_streams();
        }
    }
}

impl Answers {
    fn begin(self, service: &LocalServer) {
        let on = || Fault::on(Endpoint::Bulk);
        let message = json!({"message": "not for you"});
        let fault = match self {
            Self::Fine => return,
            Self::PageNotFound => on().status(404).html(PAGE),
            Self::JsonNotFound => on().status(404).json(message),
            Self::ForbiddenOnce => on().status(403).html(PAGE).times(1),
            Self::ForbiddenAttribute => on().status(403).json(message).for_attribute(BAD),
            Self::ErrorForOneContext => on().status(500).for_targeting_key("poison"),
            Self::ErrorForStartUp => on().status(500).for_targeting_key("_init_"),
            Self::TimeOut => on().hang(),
            Self::RateLimited => on().rate_limit(10),
            Self::Page => on().garbage(PAGE).content_type("text/html"),
        };
        service.faults().add(fault).unwrap();
    }

    /// Returns whether requests for ordinary users succeed.
    fn are_fine_for_others(self) -> bool {
        matches!(self, Self::Fine | Self::ForbiddenAttribute | Self::ErrorForOneContext | Self::ErrorForStartUp)
    }

    /// Returns a context to which the fault applies, and others.
    fn affected(self) -> Option<EvaluationContext> {
        match self {
            Self::ForbiddenAttribute => Some(user("bad").with_custom_field(BAD, true)),
            Self::ErrorForOneContext => Some(user("poison")),
            _ => None,
        }
    }

    /// Returns the number of new users who read at the same time.
    fn new_users(self) -> usize {
        // Twice as many as the service allows.
        if self == Self::RateLimited { 10 } else { 1 }
    }
}

impl Hostile {
    fn begin(self, service: &LocalServer) {
        let on = || Fault::on(Endpoint::Bulk);
        let fault = match self {
            Self::Rejected => on().status(400).json(json!({"errorCode": "INVALID_CONTEXT"})),
            Self::Forbidden => on().status(403).json(json!({"message": "not for you"})),
            Self::Error => on().status(500),
            Self::TimeOut => on().hang(),
        };
        service.faults().add(fault.for_attribute(BAD)).unwrap();
    }
}

/// A service and its provider, and the users who read.
struct Cell {
    name: String,
    service: LocalServer,
    provider: FlipswitchProvider,
    new_users: usize,
}

impl Cell {
    /// Starts a service, and a provider that has not sent anything yet.
    async fn new(name: impl Debug, set: impl Fn(FlipswitchProviderBuilder) -> FlipswitchProviderBuilder) -> Self {
        let ids = (0..3).map(known).chain((0..NEW_USERS).map(new)).chain(["bad", "poison"].map(str::to_owned));
        let mut flags = whoami(ids);
        flags["flags"]["f"] = json!({"value": 1});
        let service = LocalServer::start(flags).await.unwrap();
        let provider = set(support::builder(&service)).build().unwrap();
        Self { name: format!("{name:?}"), service, provider, new_users: 0 }
    }

    /// Starts a service and a provider whose stream is open and that knows some users.
    async fn started(name: impl Debug, set: impl Fn(FlipswitchProviderBuilder) -> FlipswitchProviderBuilder) -> Self {
        let mut cell = Self::new(name, set).await;
        in_time(cell.provider.ready(PATIENCE)).await.unwrap();
        eventually(async || cell.provider.sse_status() == ConnectionStatus::Connected).await;
        eventually(async || cell.users().await.iter().all(|flags| flags.int("f", 0) == 1)).await;
        cell.new_users(1).await;
        cell
    }

    /// Reads the flags of three users. Checks that no user gets the flags of another user.
    async fn users(&self) -> Vec<Flags> {
        let read = join_all((0..3).map(|number| async move { self.provider.flags(&user(&known(number))).await }));
        let read = in_time(read).await;
        for (number, flags) in read.iter().enumerate() {
            let whoami = flags.string("whoami", "-");
            assert!(whoami == "-" || whoami == known(number), "{}: {whoami} for {number}", self.name);
        }
        read
    }

    /// Reads the flags of known users. Checks that they keep their flags.
    async fn known(&self) -> Vec<Flags> {
        let read = self.users().await;
        for flags in &read {
            assert!(matches!(flags.int("f", 0), 1 | 2), "{}: known users keep values: {:?}", self.name, flags.error());
        }
        read
    }

    /// Reads the flags of some new users. Returns the flags of users who have any.
    async fn new_users(&mut self, count: usize) -> Vec<Flags> {
        let ids: Vec<_> = (self.new_users..self.new_users + count).map(new).collect();
        self.new_users += count;
        assert!(self.new_users <= NEW_USERS, "{}", self.name);
        let read = in_time(join_all(ids.iter().map(|id| async { self.provider.flags(&user(id)).await }))).await;
        let has_flags = |(id, flags): (&String, &Flags)| match flags.string("whoami", "-") {
            "-" => false,
            whoami => {
                assert_eq!(whoami, id, "{}", self.name);
                true
            }
        };
        ids.iter().zip(read).filter(|(id, flags)| has_flags((id, flags))).map(|(_, flags)| flags).collect()
    }

    /// Checks that every user gets correct values soon, without help.
    async fn recovers(&mut self, affected: Option<&EvaluationContext>) {
        let ended = Instant::now();
        let is_right = |flags: &Flags| flags.int("f", 0) == 2 && !flags.is_stale() && flags.error().is_none();
        loop {
            let known = self.users().await.iter().all(is_right);
            let new = self.new_users(1).await.iter().filter(|flags| is_right(flags)).count() == 1;
            let affected = match affected {
                Some(context) => is_right(&in_time(self.provider.flags(context)).await),
                None => true,
            };
            let state = self.provider.health().state;
            let is_well = matches!(state, HealthState::Streaming | HealthState::Polling);
            if known && new && affected && is_well {
                break;
            }
            let took = ended.elapsed();
            assert!(
                took < RECOVERY,
                "{}: known {known}, new {new}, affected {affected}, {state:?} after {took:?}; {:?}",
                self.name,
                self.provider.stats().throttling
            );
            tokio::time::sleep(EVERY).await;
        }
    }
}

fn known(number: usize) -> String {
    format!("known-{number}")
}

fn new(number: usize) -> String {
    format!("new-{number}")
}

/// Runs all cases at the same time, and reports all failures.
async fn run_all(cells: impl IntoIterator<Item = LocalBoxFuture<'static, ()>>) {
    let local = LocalSet::new();
    let cells: Vec<_> = cells.into_iter().map(|cell| local.spawn_local(cell)).collect();
    let count = cells.len();
    let failed = local.run_until(join_all(cells)).await.into_iter().filter(Result::is_err).count();
    assert_eq!(failed, 0, "failed cases of {count}; see above");
}

/// Makes evaluations wait for the outcome of their requests, even on a busy machine.
fn patient(builder: FlipswitchProviderBuilder) -> FlipswitchProviderBuilder {
    builder.miss_wait(2 * TIMEOUT).stale_wait(2 * TIMEOUT).request_timeout(TIMEOUT)
}

async fn combination(stream: Stream, answers: Answers) {
    let mut cell = Cell::started((stream, answers), patient).await;
    let name = cell.name.clone();
    answers.begin(&cell.service);
    stream.begin(&cell.service);
    let began = Instant::now();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_changed = false;
    while began.elapsed() < FAULT {
        every.tick().await;
        if !is_changed && began.elapsed() >= FAULT / 2 {
            is_changed = true;
            cell.service.set_flag("f", 2);
        }
        let known = cell.known().await;
        let count = answers.new_users();
        let new = cell.new_users(count).await;
        assert!(new.iter().all(|flags| matches!(flags.int("f", 0), 1 | 2)), "{name}: new users have all flags");
        if answers.are_fine_for_others() {
            assert_eq!(new.len(), count, "{name}: no new user gets defaults");
            assert!(!known.iter().chain(&new).any(Flags::is_stale), "{name}: no user gets stale values");
        }
        if let Some(context) = answers.affected() {
            let flags = in_time(cell.provider.flags(&context)).await;
            assert!(flags.string("whoami", "-") == "-" && flags.error().is_some(), "{name}: {flags:?}");
        }
        assert_ne!(cell.provider.health().state, HealthState::Unauthorized, "{name}");
    }
    assert!(is_changed, "{name}: each cell has a change during the fault");
    cell.service.faults().clear();
    cell.recovers(answers.affected().as_ref()).await;
    in_time(cell.provider.shutdown()).await;
}

#[tokio::test]
async fn values_are_correct_stale_or_defaults_during_each_failure_and_correct_afterwards() {
    run_all(
        STREAMS.into_iter().flat_map(|stream| ANSWERS.map(move |answers| combination(stream, answers).boxed_local())),
    )
    .await;
}

async fn start_during(stream: Stream, answers: Answers) {
    let mut cell = Cell::new((stream, answers), patient).await;
    let name = cell.name.clone();
    answers.begin(&cell.service);
    stream.begin(&cell.service);
    let began = Instant::now();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let count = answers.new_users();
    while began.elapsed() < FAULT / 2 {
        every.tick().await;
        let new = cell.new_users(count).await;
        assert!(new.iter().all(|flags| flags.int("f", 0) == 1), "{name}: new users have all flags");
        if answers.are_fine_for_others() {
            assert_eq!(new.len(), count, "{name}: no new user gets defaults");
            assert!(cell.provider.health().is_ready(), "{name}");
        }
        assert_ne!(cell.provider.health().state, HealthState::Unauthorized, "{name}");
    }
    cell.service.set_flag("f", 2);
    cell.service.faults().clear();
    let ready = cell.provider.clone();
    let ready = async { ready.ready(RECOVERY).await.unwrap_or_else(|error| panic!("{name}: {error:?}")) };
    let affected = answers.affected();
    tokio::join!(ready, cell.recovers(affected.as_ref()));
    in_time(cell.provider.shutdown()).await;
}

#[tokio::test]
async fn a_provider_that_starts_during_a_failure_works_after_it() {
    let cells =
        STREAMS.into_iter().flat_map(|stream| ANSWERS.map(move |answers| start_during(stream, answers).boxed_local()));
    run_all(cells).await;
}

async fn hostile_user(stream: Stream, hostile: Hostile) {
    let mut cell = Cell::started((stream, hostile), |builder| {
        // Requests without a response are in flight for `request_timeout`, by default for 10 seconds.
        builder.miss_wait(TIMEOUT).stale_wait(3 * TIMEOUT)
    })
    .await;
    let name = cell.name.clone();
    hostile.begin(&cell.service);
    stream.begin(&cell.service);
    let stop = CancellationToken::new();
    let attack = tokio::spawn(stop.clone().run_until_cancelled_owned({
        let provider = cell.provider.clone();
        async move {
            let mut every = tokio::time::interval(Duration::from_millis(100));
            let mut number = 0;
            loop {
                every.tick().await;
                number += 1;
                let context = user(&format!("hostile-{number}")).with_custom_field(BAD, true);
                let provider = provider.clone();
                tokio::spawn(async move { provider.flags(&context).await });
            }
        }
    }));
    let began = Instant::now();
    let mut is_changed = false;
    while began.elapsed() < FAULT {
        if !is_changed && began.elapsed() >= FAULT / 2 {
            is_changed = true;
            cell.service.set_flag("f", 2);
        }
        let known = cell.known().await;
        let new = cell.new_users(1).await;
        assert_eq!(new.len(), 1, "{name}: no new user gets defaults");
        for flags in known.iter().chain(&new) {
            assert!(
                matches!(flags.int("f", 0), 1 | 2) && !flags.is_stale(),
                "{name}: {flags:?}; {:?}",
                cell.provider.stats()
            );
        }
        let health = cell.provider.health();
        assert_ne!(health.state, HealthState::Unauthorized, "{name}");
        assert!(!health.throttling.is_circuit_open, "{name}");
        tokio::time::sleep(EVERY).await;
    }
    assert!(is_changed && !attack.is_finished(), "{name}");
    cell.service.faults().clear();
    stop.cancel();
    cell.recovers(None).await;
    in_time(cell.provider.shutdown()).await;
}

#[tokio::test]
async fn a_user_whose_requests_fail_does_not_affect_other_users() {
    run_all(
        STREAMS.into_iter().flat_map(|stream| HOSTILE.map(move |hostile| hostile_user(stream, hostile).boxed_local())),
    )
    .await;
}
