//! The counters and the state of a provider as observable instruments.

use std::sync::Arc;

use flipswitch::{
    ConnectionStatus, FlipswitchProvider, Health, HealthState, Stats, WeakProvider, time::OffsetDateTime,
};
use opentelemetry::{KeyValue, metrics::Meter};
use parking_lot::Mutex;

/// The counters and the state of a provider at one moment.
struct Report {
    stats: Stats,
    health: Health,
}

/// An instrument with one value.
struct Instrument {
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    kind: Kind,
    /// Returns the value, if there is one.
    read: fn(&Report) -> Option<f64>,
}

enum Kind {
    /// Only increases.
    Counter,
    /// Can be added up across providers and instances.
    UpDownCounter,
    /// Cannot be added up.
    Gauge,
}

/// An instrument whose value is 1 for the current state, and 0 for all others.
struct States {
    name: &'static str,
    description: &'static str,
    states: &'static [&'static str],
    read: fn(&Report) -> &'static str,
}

macro_rules! instruments {
    ($($kind:ident $name:literal, $unit:literal, $description:literal, $read:expr;)*) => {
        &[$(Instrument { name: $name, unit: $unit, description: $description, kind: Kind::$kind, read: $read }),*]
    };
}

/// Names and units follow OpenTelemetry's rules: lower case, namespaces with dots, UCUM units, no `_total` suffix.
const INSTRUMENTS: &[Instrument] = instruments! {
    Counter "flipswitch.evaluations", "{evaluation}", "Evaluations of all flags for a context.",
        |now| number(now.stats.evaluations);
    Counter "flipswitch.evaluation.hits", "{evaluation}", "Evaluations that returned fresh flags from memory.",
        |now| number(now.stats.hits);
    Counter "flipswitch.evaluation.coalesced", "{evaluation}", "Evaluations that joined a request in flight.",
        |now| number(now.stats.coalesced);
    Counter "flipswitch.evaluation.stale", "{evaluation}", "Evaluations that returned stale flags or bootstrap values.",
        |now| number(now.stats.stale_served);
    Counter "flipswitch.evaluation.unavailable", "{evaluation}", "Evaluations without flags from the service.",
        |now| number(now.stats.unavailable);
    Counter "flipswitch.requests", "{request}", "Requests for flags that were sent to the service.",
        |now| number(now.stats.requests);
    Counter "flipswitch.request.not_modified", "{request}", "Requests that received the response 304 Not Modified.",
        |now| number(now.stats.not_modified);
    Counter "flipswitch.stream.reconnects", "{connection}", "Connections to the stream of changes after the first one.",
        |now| number(now.stats.reconnects);
    Counter "flipswitch.polls", "{poll}", "Polls while the stream of changes was closed.",
        |now| number(now.stats.polls);
    Counter "flipswitch.context.added", "{context}", "Contexts that were added to the cache.",
        |now| number(now.stats.new_contexts);
    Counter "flipswitch.context.attributes_left_out", "{attribute}", "Context attributes that cannot be sent.",
        |now| number(now.stats.attributes_left_out);
    Counter "flipswitch.store.hits", "{context}", "Contexts whose fresh flags were found in the store.",
        |now| number(now.stats.store_hits);
    Counter "flipswitch.store.misses", "{request}", "Requests for which the store had no fresh flags.",
        |now| number(now.stats.store_misses);
    Counter "flipswitch.store.restored", "{context}", "Contexts whose last known flags came from the store.",
        |now| number(now.stats.store_restored);
    Counter "flipswitch.store.leases", "{request}", "Requests that were sent with a lease from the store.",
        |now| number(now.stats.store_leases);
    Counter "flipswitch.store.waits", "{request}", "Times that a request waited for another instance.",
        |now| number(now.stats.store_waits);
    Gauge "flipswitch.store.away", "1", "1 while reads from or writes to the store fail, otherwise 0.",
        |now| truth(now.health.store_away_since.is_some());
    UpDownCounter "flipswitch.cache.contexts", "{context}", "Contexts in the cache.",
        |now| number(now.stats.contexts);
    UpDownCounter "flipswitch.cache.size", "By", "Approximate memory of the cache.",
        |now| number(now.stats.bytes);
    UpDownCounter "flipswitch.throttling.backed_off_contexts", "{context}",
        "Contexts that wait after a failure.",
        |now| number(now.stats.throttling.backed_off_contexts);
    UpDownCounter "flipswitch.throttling.queued_requests", "{request}", "Requests that wait to be sent.",
        |now| number(now.stats.throttling.queued_requests);
    Gauge "flipswitch.throttling.request_limit", "{request}/s", "Requests per second that the service allows, if limited.",
        |now| now.stats.throttling.requests_per_second.and_then(number);
    Gauge "flipswitch.throttling.circuit_open", "1", "1 while the service counts as down, otherwise 0.",
        |now| truth(now.stats.throttling.is_circuit_open);
    Gauge "flipswitch.throttling.tags_off", "1", "1 while requests carry no entity tags, otherwise 0.",
        |now| truth(now.stats.throttling.are_tags_off);
    Gauge "flipswitch.throttling.failing_flags", "{flag}", "Flags that the service failed to evaluate.",
        |now| number(now.stats.throttling.failing_flags);
    Gauge "flipswitch.health.ready", "1", "1 once the service has responded, otherwise 0.",
        |now| truth(now.health.is_ready());
    Gauge "flipswitch.health.polling", "1", "1 while the service is polled, otherwise 0.",
        |now| truth(now.health.polling);
    Gauge "flipswitch.health.last_success.age", "s", "Time since the last successful request for flags.",
        |now| now.health.last_success.map(age);
    Gauge "flipswitch.health.last_event.age", "s", "Time since the last event or heartbeat on the stream of changes.",
        |now| now.health.last_event.map(age);
};

const STATES: &[States] = &[
    States {
        name: "flipswitch.health.state",
        description: "1 for the current state of the provider, 0 for others.",
        states: &["starting", "streaming", "polling", "stale", "unauthorized", "shut_down"],
        read: |now| match now.health.state {
            HealthState::Starting => "starting",
            HealthState::Streaming => "streaming",
            HealthState::Polling => "polling",
            HealthState::Stale => "stale",
            HealthState::Unauthorized => "unauthorized",
            HealthState::ShutDown => "shut_down",
            _ => "unknown",
        },
    },
    States {
        name: "flipswitch.stream.state",
        description: "1 for the current state of the stream of changes, 0 for others.",
        states: &["connecting", "connected", "disconnected", "error"],
        read: |now| match now.health.stream {
            ConnectionStatus::Connecting => "connecting",
            ConnectionStatus::Connected => "connected",
            ConnectionStatus::Disconnected => "disconnected",
            ConnectionStatus::Error => "error",
            _ => "unknown",
        },
    },
];

#[expect(clippy::unnecessary_wraps, reason = "an instrument may have no number")]
fn number(number: u64) -> Option<f64> {
    Some(number as f64)
}

#[expect(clippy::unnecessary_wraps, reason = "an instrument may have no number")]
fn truth(truth: bool) -> Option<f64> {
    Some(f64::from(u8::from(truth)))
}

fn age(since: OffsetDateTime) -> f64 {
    (OffsetDateTime::now_utc() - since).as_seconds_f64().max(0.0)
}

/// One report for all instruments, because counting the bytes of a large cache takes milliseconds.
struct ReportCache {
    provider: WeakProvider,
    /// The report, and one bit for each instrument that has read it.
    current: Mutex<(Option<Report>, u64)>,
}

impl ReportCache {
    /// Calls `read` with a report. This is a new report if the instrument has already read the current one.
    fn read<T>(&self, number: usize, read: impl FnOnce(&Report) -> T) -> Option<T> {
        let bit = 1 << number;
        let mut current = self.current.lock();
        if current.0.is_none() || current.1 & bit != 0 {
            let provider = self.provider.upgrade();
            *current = (provider.map(|provider| Report { stats: provider.stats(), health: provider.health() }), 0);
        }
        current.1 |= bit;
        current.0.as_ref().map(read)
    }
}

/// Reports the [`Stats`] and the [`Health`] of a provider as observable instruments of a meter.
///
/// Call it once for each provider. The meter must come from the meter provider that exports the metrics. A meter that was
/// obtained before [`set_meter_provider`](opentelemetry::global::set_meter_provider) reports nothing.
///
/// The instruments are read when metrics are collected, without a background task. They do not keep the provider alive, and
/// report nothing after its last handle has been dropped.
///
/// If the provider has a [name](flipswitch::FlipswitchProviderBuilder::name), the instruments have it as the attribute
/// `flipswitch.provider`. If an application has several providers, give each of them a name, because otherwise their series are
/// the same. No attribute identifies a user or a flag.
///
/// ```
/// use flipswitch::{FlipswitchProvider, serde_json::json};
///
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
/// flipswitch_otel::observe(&opentelemetry::global::meter("my-application"), &provider);
/// ```
///
/// # Instruments
///
/// An evaluation is a call to [`flags`](FlipswitchProvider::flags) or to an OpenFeature client. Reads of individual flags are not
/// counted; [`evaluation_events`](flipswitch::FlipswitchProviderBuilder::evaluation_events) reports them.
///
/// | name | instrument | unit | |
/// |---|---|---|---|
/// | `flipswitch.evaluations` | counter | `{evaluation}` | Evaluations of all flags for a context |
/// | `flipswitch.evaluation.hits` | counter | `{evaluation}` | Evaluations that returned fresh flags from memory |
/// | `flipswitch.evaluation.coalesced` | counter | `{evaluation}` | Evaluations that joined a request in flight |
/// | `flipswitch.evaluation.stale` | counter | `{evaluation}` | Evaluations that returned stale flags or bootstrap values |
/// | `flipswitch.evaluation.unavailable` | counter | `{evaluation}` | Evaluations without flags from the service |
/// | `flipswitch.requests` | counter | `{request}` | Requests for flags that were sent to the service |
/// | `flipswitch.request.not_modified` | counter | `{request}` | Requests that received the response 304 Not Modified |
/// | `flipswitch.stream.reconnects` | counter | `{connection}` | Connections to the stream of changes after the first one |
/// | `flipswitch.polls` | counter | `{poll}` | Polls while the stream of changes was closed |
/// | `flipswitch.context.added` | counter | `{context}` | Contexts that were added to the cache |
/// | `flipswitch.context.attributes_left_out` | counter | `{attribute}` | Context attributes that cannot be sent |
/// | `flipswitch.store.hits` | counter | `{context}` | Contexts whose fresh flags were found in the store |
/// | `flipswitch.store.misses` | counter | `{request}` | Requests for which the store had no fresh flags |
/// | `flipswitch.store.restored` | counter | `{context}` | Contexts whose last known flags came from the store |
/// | `flipswitch.store.leases` | counter | `{request}` | Requests that were sent with a lease from the store |
/// | `flipswitch.store.waits` | counter | `{request}` | Times that a request waited for another instance |
/// | `flipswitch.store.away` | gauge | `1` | 1 while reads from or writes to the store fail, otherwise 0 |
/// | `flipswitch.cache.contexts` | up-down counter | `{context}` | Contexts in the cache |
/// | `flipswitch.cache.size` | up-down counter | `By` | Approximate memory of the cache |
/// | `flipswitch.throttling.backed_off_contexts` | up-down counter | `{context}` | Contexts that wait after a failure |
/// | `flipswitch.throttling.queued_requests` | up-down counter | `{request}` | Requests that wait to be sent |
/// | `flipswitch.throttling.request_limit` | gauge | `{request}/s` | Requests per second that the service allows, if limited |
/// | `flipswitch.throttling.circuit_open` | gauge | `1` | 1 while the service counts as down, otherwise 0 |
/// | `flipswitch.throttling.tags_off` | gauge | `1` | 1 while requests carry no entity tags, otherwise 0 |
/// | `flipswitch.throttling.failing_flags` | gauge | `{flag}` | Flags that the service failed to evaluate |
/// | `flipswitch.health.ready` | gauge | `1` | 1 once the service has responded, otherwise 0 |
/// | `flipswitch.health.polling` | gauge | `1` | 1 while the service is polled, otherwise 0 |
/// | `flipswitch.health.last_success.age` | gauge | `s` | Time since the last successful request for flags |
/// | `flipswitch.health.last_event.age` | gauge | `s` | Time since the last event or heartbeat on the stream of changes |
/// | `flipswitch.health.state` | up-down counter | `1` | 1 for the current state of the provider, 0 for others |
/// | `flipswitch.stream.state` | up-down counter | `1` | 1 for the current state of the stream of changes, 0 for others |
///
/// The last two instruments have one series for each state, with the state in an attribute that has the same name as the
/// instrument. The states of the provider are `starting`, `streaming`, `polling`, `stale`, `unauthorized` and `shut_down`. The
/// states of the stream are `connecting`, `connected`, `disconnected` and `error`.
pub fn observe(meter: &Meter, provider: &FlipswitchProvider) {
    let shared = Arc::new(ReportCache { provider: provider.downgrade(), current: Mutex::default() });
    let attributes: Arc<[KeyValue]> =
        provider.name().map(|name| KeyValue::new("flipswitch.provider", name.to_owned())).into_iter().collect();
    for (number, instrument) in INSTRUMENTS.iter().enumerate() {
        let Instrument { name, unit, description, kind, read } = instrument;
        let (shared, attributes) = (Arc::clone(&shared), Arc::clone(&attributes));
        let value = move || shared.read(number, read).flatten();
        // An instrument lives as long as its meter.
        macro_rules! build {
            ($instrument:ident, $number:ty) => {{
                meter
                    .$instrument(*name)
                    .with_unit(*unit)
                    .with_description(*description)
                    .with_callback(move |observer| {
                        if let Some(value) = value() {
                            observer.observe(value as $number, &attributes);
                        }
                    })
                    .build();
            }};
        }
        match kind {
            Kind::Counter => build!(u64_observable_counter, u64),
            Kind::UpDownCounter => build!(i64_observable_up_down_counter, i64),
            Kind::Gauge => build!(f64_observable_gauge, f64),
        }
    }
    for (number, States { name, description, states, read }) in (INSTRUMENTS.len()..).zip(STATES) {
        let shared = Arc::clone(&shared);
        let all: Vec<_> =
            states.iter().map(|state| (*state, [&[KeyValue::new(*name, *state)], &*attributes].concat())).collect();
        meter
            .i64_observable_up_down_counter(*name)
            .with_unit("1")
            .with_description(*description)
            .with_callback(move |observer| {
                if let Some(present) = shared.read(number, read) {
                    for (state, attributes) in &all {
                        observer.observe(i64::from(*state == present), attributes);
                    }
                }
            })
            .build();
    }
}
