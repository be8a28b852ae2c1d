//! The numbers and the state of a provider as observable instruments.

use std::sync::Arc;

use flipswitch::{
    ConnectionStatus, FlipswitchProvider, Health, HealthState, Stats, WeakProvider, time::OffsetDateTime,
};
use opentelemetry::{KeyValue, metrics::Meter};
use parking_lot::Mutex;

/// What a provider says about itself at one moment.
struct Report {
    stats: Stats,
    health: Health,
}

/// An instrument with one number.
struct Instrument {
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    kind: Kind,
    /// Returns the number, if there is one.
    read: fn(&Report) -> Option<f64>,
}

enum Kind {
    /// Only grows.
    Counter,
    /// Adds up over providers and instances.
    UpDownCounter,
    /// Does not add up.
    Gauge,
}

/// An instrument whose number is 1 for the present state, and 0 for all others.
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

/// Names and units follow OpenTelemetry's rules: lower case, namespaces with dots, units of UCUM, no suffix `_total`.
const INSTRUMENTS: &[Instrument] = instruments! {
    Counter "flipswitch.evaluations", "{evaluation}", "Evaluations of all flags of a context.",
        |now| number(now.stats.evaluations);
    Counter "flipswitch.evaluation.hits", "{evaluation}", "Evaluations answered from memory with fresh flags.",
        |now| number(now.stats.hits);
    Counter "flipswitch.evaluation.coalesced", "{evaluation}", "Evaluations that joined a request in flight.",
        |now| number(now.stats.coalesced);
    Counter "flipswitch.evaluation.stale", "{evaluation}", "Evaluations answered with stale flags or bootstrap values.",
        |now| number(now.stats.stale_served);
    Counter "flipswitch.evaluation.unavailable", "{evaluation}", "Evaluations without flags from the service.",
        |now| number(now.stats.unavailable);
    Counter "flipswitch.requests", "{request}", "Requests for flags that were sent to the service.",
        |now| number(now.stats.requests);
    Counter "flipswitch.request.not_modified", "{request}", "Requests answered with 304 Not Modified.",
        |now| number(now.stats.not_modified);
    Counter "flipswitch.stream.reconnects", "{connection}", "Connections of the stream of changes after the first one.",
        |now| number(now.stats.reconnects);
    Counter "flipswitch.polls", "{poll}", "Polls while the stream of changes was closed.",
        |now| number(now.stats.polls);
    Counter "flipswitch.context.added", "{context}", "Contexts that entered the cache.",
        |now| number(now.stats.new_contexts);
    Counter "flipswitch.context.attributes_left_out", "{attribute}", "Attributes of contexts that cannot be sent.",
        |now| number(now.stats.attributes_left_out);
    Counter "flipswitch.store.hits", "{context}", "Contexts whose flags were found in the store, up to date.",
        |now| number(now.stats.store_hits);
    Counter "flipswitch.store.misses", "{request}", "Requests for which the store had no fresh flags.",
        |now| number(now.stats.store_misses);
    Counter "flipswitch.store.restored", "{context}", "Contexts whose last known flags came from the store.",
        |now| number(now.stats.store_restored);
    Counter "flipswitch.store.leases", "{request}", "Requests that were sent with a lease of the store.",
        |now| number(now.stats.store_leases);
    Counter "flipswitch.store.waits", "{request}", "Times that a request waited for that of another instance.",
        |now| number(now.stats.store_waits);
    Gauge "flipswitch.store.away", "1", "1 while the store does not work, otherwise 0.",
        |now| truth(now.health.store_away_since.is_some());
    UpDownCounter "flipswitch.cache.contexts", "{context}", "Contexts in the cache.",
        |now| number(now.stats.contexts);
    UpDownCounter "flipswitch.cache.size", "By", "Approximate memory of the cache.",
        |now| number(now.stats.bytes);
    UpDownCounter "flipswitch.throttling.backed_off_contexts", "{context}",
        "Contexts that wait because the service failed for them.",
        |now| number(now.stats.throttling.backed_off_contexts);
    UpDownCounter "flipswitch.throttling.queued_requests", "{request}", "Requests that wait to be sent.",
        |now| number(now.stats.throttling.queued_requests);
    Gauge "flipswitch.throttling.request_limit", "{request}/s", "Requests a second that the service allows, if it limits them.",
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
    Gauge "flipswitch.health.last_event.age", "s", "Time since the last event on the stream of changes, heartbeats included.",
        |now| now.health.last_event.map(age);
};

const STATES: &[States] = &[
    States {
        name: "flipswitch.health.state",
        description: "1 for the present state of the provider, 0 for others.",
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
        description: "1 for the present state of the stream of changes, 0 for others.",
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

/// One report for all instruments: counting the bytes of a large cache takes milliseconds.
struct ReportCache {
    provider: WeakProvider,
    /// The report, and which instruments have read it.
    current: Mutex<(Option<Report>, u64)>,
}

impl ReportCache {
    /// Reads the report for an instrument: a new one if the instrument has read the one before.
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

/// Reports [`Stats`] and [`Health`] of a provider as observable instruments of a meter. They have the attribute
/// `flipswitch.provider` if the provider has a [name](flipswitch::FlipswitchProviderBuilder::name).
///
/// Call it once for each provider, with a meter of the provider of meters that exports: one that was obtained before
/// [`set_meter_provider`](opentelemetry::global::set_meter_provider) reports nothing. Give each of several Flipswitch providers a
/// name, since their series are the same otherwise. The instruments do not keep the provider alive: once its last handle is dropped,
/// they report nothing.
///
/// ```
/// use flipswitch::{FlipswitchProvider, serde_json::json};
///
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
/// flipswitch_otel::observe(&opentelemetry::global::meter("my-application"), &provider);
/// ```
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
