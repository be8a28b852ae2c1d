//! Events about reads of flags, for telemetry.
//!
//! They are emitted with `tracing`, so any subscriber can handle them. Names and attributes follow OpenTelemetry's semantic
//! conventions (version 1.44, `docs/feature-flags/feature-flags-events.md`). The bridge from `tracing` to OpenTelemetry's logs
//! turns them into conforming events.

use std::{
    borrow::Cow,
    cell::Cell,
    sync::{Arc, OnceLock},
};

use open_feature::{
    EvaluationDetails, EvaluationError, EvaluationErrorCode, FlagMetadataValue, HookContext, Value as FeatureValue,
};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::{
    config::{ContextId, EvaluationEvents},
    context::fields,
    error::{Error, FlagError},
    provider::flags::{FlagRead, PlainValue, Recorder},
    sanitize::printable,
    secret::TelemetryKey,
};

/// Creates the events of a provider.
#[derive(Debug)]
pub(crate) struct EventReporter {
    pub(crate) events: EvaluationEvents,
    context_id: ContextId,
    key: TelemetryKey,
}

impl EventReporter {
    pub(crate) fn new(events: EvaluationEvents, context_id: ContextId, key: TelemetryKey) -> Self {
        Self { events, context_id, key }
    }

    /// Returns the id of the context with this targeting key.
    pub(crate) fn context_id(&self, targeting_key: &str) -> Option<String> {
        match self.context_id {
            ContextId::Hashed => Some(self.key.code(targeting_key)),
            ContextId::Plain => Some(printable(targeting_key)),
            ContextId::Off => None,
        }
    }

    /// Returns the reporter for the reads of one `Flags`, if reads are reported.
    pub(crate) fn recorder(self: &Arc<Self>) -> Option<Arc<ReadReporter>> {
        let seen = match self.events {
            EvaluationEvents::Off => return None,
            EvaluationEvents::PerRequest => Some(Mutex::default()),
            EvaluationEvents::PerRead => None,
        };
        Some(Arc::new(ReadReporter { reporter: Arc::clone(self), seen, context_id: OnceLock::new() }))
    }
}

/// Reports an evaluation by an OpenFeature client. `context_id` is the id of its context.
pub(crate) fn report_client_evaluation(
    context: &HookContext<'_>,
    context_id: Option<&str>,
    outcome: Result<&EvaluationDetails<FeatureValue>, &EvaluationError>,
) {
    let mut event = EvaluationEvent::new(context.flag_key, context_id, &context.provider_metadata.name);
    match outcome {
        Ok(details) => {
            if let Some(reason) = &details.reason {
                event.reason = Cow::Owned(lower(&reason.to_string()).into_owned());
            }
            event.variant = details.variant.as_deref().map(text);
            if event.variant.is_none() {
                event.value = Some((&json(&details.value)).into());
            }
            let field = |name| match details.flag_metadata.values.get(name)? {
                FlagMetadataValue::String(text) => Some(printable(text)),
                FlagMetadataValue::Int(number) => Some(number.to_string()),
                FlagMetadataValue::Float(number) => Some(number.to_string()),
                FlagMetadataValue::Bool(_) => None,
            };
            (event.set_id, event.version) = (field(SET_ID), field(VERSION));
        }
        Err(error) => {
            // Leaves out the message, which may contain a part of the context, and the default passed to the call, which is not
            // known: OpenFeature passes the default of the type.
            event.set_error(error_type(&error.code), None);
        }
    }
    event.emit();
}

fn json(value: &FeatureValue) -> Value {
    match value {
        FeatureValue::Bool(value) => (*value).into(),
        FeatureValue::Int(value) => (*value).into(),
        FeatureValue::Float(value) => (*value).into(),
        FeatureValue::String(value) => value.as_str().into(),
        FeatureValue::Array(values) => values.iter().map(json).collect(),
        FeatureValue::Struct(value) => {
            Value::Object(value.fields.iter().map(|(name, value)| (name.clone(), json(value))).collect())
        }
    }
}

/// Reports the reads of one `Flags`.
#[derive(Debug)]
pub(crate) struct ReadReporter {
    reporter: Arc<EventReporter>,
    /// The keys that were reported, if each is reported once.
    seen: Option<Mutex<SmallVec<[Box<str>; 8]>>>,
    context_id: OnceLock<Option<String>>,
}

impl Recorder for ReadReporter {
    fn read(&self, read: &FlagRead<'_>) {
        let is_seen = self.seen.as_ref().is_some_and(|seen| seen.lock().iter().any(|key| **key == *read.key));
        if is_seen || IS_REPORTING.get() {
            return;
        }
        // This is the last check, because subscriber layers remember its result until the next event, which must be this one.
        if !tracing::event_enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        if let Some(seen) = &self.seen {
            let mut seen = seen.lock();
            if seen.len() < MAX_SEEN {
                seen.push(read.key.into());
            }
        }
        // The lock is no longer held from here on.
        let _reporting = Reporting::begin();
        let context_id = self.context_id.get_or_init(|| {
            let targeting_key = read.flags.with_context(fields::targeting_key)?;
            self.reporter.context_id(&targeting_key)
        });
        event_of(read, context_id.as_deref()).emit();
    }
}

thread_local! {
    static IS_REPORTING: Cell<bool> = const { Cell::new(false) };
}

/// Marks that this thread is reporting a read. Reads by the subscriber in the meantime are not reported, because reporting them
/// would never end.
struct Reporting;

impl Reporting {
    fn begin() -> Self {
        IS_REPORTING.set(true);
        Self
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        IS_REPORTING.set(false);
    }
}

/// Maximum number of keys of one `Flags` that are reported only once. Further keys are reported at each read.
const MAX_SEEN: usize = 256;

const TARGET: &str = "flipswitch::evaluation";

/// Names of flag metadata, as in OpenFeature's appendix D.
const SET_ID: &str = "flagSetId";
const VERSION: &str = "version";

/// The name of the provider in OpenFeature.
pub(crate) const PROVIDER: &str = "flipswitch";

fn event_of<'a>(read: &FlagRead<'a>, context_id: Option<&'a str>) -> EvaluationEvent<'a> {
    let mut event = EvaluationEvent::new(read.key, context_id, PROVIDER);
    match read.flags.look_up(read.key) {
        Ok(flag) => {
            let is_mismatch = !read.is_used && !flag.value.is_null();
            event.set_metadata(&flag.metadata);
            if is_mismatch {
                event.set_error("type_mismatch", None);
            } else {
                event.reason = if read.flags.is_flag_stale(read.key) { "stale".into() } else { lower(&flag.reason) };
                event.variant = flag.variant.as_deref().map(text);
            }
            if event.variant.is_none() {
                let value = Some(&flag.value).filter(|value| read.is_used && !value.is_null());
                event.value = value.map(Into::into).or_else(|| read.default.map(Into::into));
            }
        }
        Err(error) => {
            let code = error.to_evaluation_error(read.key).code;
            event.set_error(
                error_type(&code),
                message(&error).filter(|_| matches!(code, EvaluationErrorCode::General(_))),
            );
            event.value = read.default.map(Into::into);
        }
    }
    event
}

/// An evaluation as an event that the semantic conventions define.
#[derive(Debug)]
struct EvaluationEvent<'a> {
    key: &'a str,
    variant: Option<Cow<'a, str>>,
    /// The value of the flag or, after an error, the default passed to the call. Set only if there is no variant.
    value: Option<EventValue>,
    reason: Cow<'a, str>,
    context_id: Option<&'a str>,
    provider_name: &'a str,
    set_id: Option<String>,
    version: Option<String>,
    error_type: Option<&'static str>,
    /// Set only if the type of the error does not say enough.
    error_message: Option<String>,
}

impl<'a> EvaluationEvent<'a> {
    fn new(key: &'a str, context_id: Option<&'a str>, provider_name: &'a str) -> Self {
        Self {
            key,
            variant: None,
            value: None,
            reason: Cow::Borrowed("unknown"),
            context_id,
            provider_name,
            set_id: None,
            version: None,
            error_type: None,
            error_message: None,
        }
    }

    /// Takes the flag set and the version from a flag's metadata (appendix D of OpenFeature).
    fn set_metadata(&mut self, metadata: &Map<String, Value>) {
        let field = |name| match metadata.get(name)? {
            Value::String(text) => Some(printable(text)),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        (self.set_id, self.version) = (field(SET_ID), field(VERSION));
    }

    fn set_error(&mut self, error_type: &'static str, message: Option<String>) {
        self.reason = Cow::Borrowed("error");
        (self.error_type, self.error_message) = (Some(error_type), message);
    }

    /// Emits the event: `feature_flag.evaluation`, with the target `flipswitch::evaluation` at INFO level.
    fn emit(&self) {
        tracing::event!(
            name: "feature_flag.evaluation",
            target: TARGET,
            tracing::Level::INFO,
            "feature_flag.key" = &*text(self.key),
            "feature_flag.result.variant" = self.variant.as_deref(),
            "feature_flag.result.value" = self.value.as_ref().map(EventValue::field),
            "feature_flag.result.reason" = &*self.reason,
            "feature_flag.context.id" = self.context_id,
            "feature_flag.provider.name" = self.provider_name,
            "feature_flag.set.id" = self.set_id.as_deref(),
            "feature_flag.version" = self.version.as_deref(),
            "error.type" = self.error_type,
            "feature_flag.error.message" = self.error_message.as_deref(),
        );
    }
}

/// Removes control characters from a string, and limits its length.
fn text(text: &str) -> Cow<'_, str> {
    if text.len() <= 256 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(printable(text))
    }
}

/// Maximum length of the part of a service's reason that is reported.
const MAX_REASON: usize = 40;

/// Returns a reason in the form that the conventions use.
fn lower(upper: &str) -> Cow<'_, str> {
    const KNOWN: [(&str, &str); 8] = [
        ("TARGETING_MATCH", "targeting_match"),
        ("STATIC", "static"),
        ("SPLIT", "split"),
        ("DEFAULT", "default"),
        ("CACHED", "cached"),
        ("DISABLED", "disabled"),
        ("OVERRIDE", "override"),
        ("UNKNOWN", "unknown"),
    ];
    match KNOWN.iter().find(|known| known.0 == upper) {
        Some((_, lower)) => Cow::Borrowed(lower),
        // Other reasons are words. Anything else may contain a part of the context.
        None if upper.len() <= MAX_REASON && upper.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            Cow::Owned(upper.to_ascii_lowercase())
        }
        None => Cow::Borrowed("unknown"),
    }
}

/// The value of a flag in an event. Structures and lists are JSON text.
#[derive(Debug)]
enum EventValue {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
}

impl EventValue {
    fn field(&self) -> &dyn tracing::Value {
        match self {
            Self::Bool(value) => value,
            Self::Int(value) => value,
            Self::Float(value) => value,
            Self::Text(value) => value,
        }
    }
}

impl From<PlainValue<'_>> for EventValue {
    fn from(value: PlainValue<'_>) -> Self {
        match value {
            PlainValue::Bool(value) => Self::Bool(value),
            PlainValue::Int(value) => Self::Int(value),
            PlainValue::Float(value) => Self::Float(value),
            PlainValue::Text(value) => Self::Text(printable(value)),
        }
    }
}

impl From<&Value> for EventValue {
    fn from(value: &Value) -> Self {
        match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::String(text) => Self::Text(printable(text)),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => Self::Int(integer),
                (None, Some(float)) => Self::Float(float),
                (None, None) => Self::Text(number.to_string()),
            },
            other => Self::Text(printable(&other.to_string())),
        }
    }
}

/// Returns the `error.type` of an OpenFeature error.
fn error_type(code: &EvaluationErrorCode) -> &'static str {
    match code {
        EvaluationErrorCode::FlagNotFound => "flag_not_found",
        EvaluationErrorCode::InvalidContext => "invalid_context",
        EvaluationErrorCode::ParseError => "parse_error",
        EvaluationErrorCode::ProviderNotReady => "provider_not_ready",
        EvaluationErrorCode::TargetingKeyMissing => "targeting_key_missing",
        EvaluationErrorCode::TypeMismatch => "type_mismatch",
        EvaluationErrorCode::General(_) => "general",
    }
}

/// Returns the message of an error, without details from the service.
fn message(error: &FlagError) -> Option<String> {
    match error {
        FlagError::Evaluation { code, .. } | FlagError::Unavailable(Error::Evaluation { code, .. }) => {
            Some(printable(code))
        }
        FlagError::Unavailable(error) => Some(error.to_string()),
        _ => None,
    }
}
