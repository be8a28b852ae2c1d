//! The steps of scenarios.

use std::rc::Rc;

use cucumber::step::{self, Collection};
use flipswitch::{
    FlagChangeEvent, ProviderEvent, ProviderEvents,
    open_feature::{
        self, EvaluationContext, EvaluationContextFieldValue, EvaluationDetails, EvaluationErrorCode, EvaluationReason,
        EvaluationResult, FlagMetadataValue, StructValue,
    },
    serde_json::{self, Value, json},
};
use futures_util::future::LocalBoxFuture;
use regex::Regex;

use crate::{
    bed::{ALL_FLAGS, Bed, EVALUATORS_FLAGS, Service},
    json::fields,
    support::in_time,
};

/// The state of a scenario.
#[derive(Debug, Default)]
pub(crate) struct World {
    bed: Option<Rc<Bed>>,
    set: String,
    flag: Option<Flag>,
    context: EvaluationContext,
    result: Option<Evaluation>,
    events: Option<ProviderEvents>,
    change: Option<FlagChangeEvent>,
}

/// A flag as its caller reads it.
#[derive(Debug)]
struct Flag {
    kind: Kind,
    key: String,
    default: Value,
}

/// The types of flags in scenarios.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Boolean,
    String,
    Integer,
    Float,
    Object,
}

/// The result of an evaluation.
#[derive(Debug)]
struct Evaluation {
    value: Value,
    variant: Option<String>,
    reason: String,
    error: Option<String>,
    metadata: Vec<(String, FlagMetadataValue)>,
}

impl cucumber::World for World {
    type Error = std::convert::Infallible;

    async fn new() -> Result<Self, Self::Error> {
        Ok(Self::default())
    }
}

/// Returns all steps. Any other text has no step, and fails.
pub(crate) fn steps() -> Collection<World> {
    let text = r#""(.*)""#;
    let regex = |pattern: &str| Regex::new(&format!("^{}$", pattern.replace("{}", text))).unwrap();
    Collection::new()
        .given(None, regex("an option {} of type {} with value {}"), option)
        .given(None, regex("a (?:stable|metadata) flagd provider"), provider)
        .given(None, regex("an evaluator"), evaluator)
        .given(None, regex("an? (.*)-flag with key {} and a (?:default|fallback) value {}"), flag)
        .given(None, regex("a context containing a key {}, with type {} and with value {}"), field)
        .given(None, regex("a context containing a targeting key with value {}"), targeting_key)
        .given(
            None,
            regex("a context containing a nested property with outer key {} and inner key {}, with value {}"),
            nested_field,
        )
        .given(None, regex("a change event handler"), listens)
        .when(None, regex("the flag was modified"), modified)
        .when(None, regex("a change event was fired"), receives)
        .when(None, regex("the flag was evaluated with details"), evaluated)
        .then(None, regex("the resolved details value should be {}"), value_is)
        .then(None, regex("the reason should be {}"), reason_is)
        .then(None, regex("the error-code should be {}"), error_is)
        .then(None, regex("the resolved metadata should contain"), metadata_contains)
        .then(None, regex("the resolved metadata is empty"), metadata_is_empty)
        .then(None, regex("the flag should be part of the event payload"), change_is_about_the_flag)
}

impl World {
    pub(crate) fn enter(&mut self, bed: Rc<Bed>) {
        self.bed = Some(bed);
        ALL_FLAGS.clone_into(&mut self.set);
    }

    fn service(&self) -> &Service {
        self.bed.as_ref().unwrap().service(&self.set)
    }

    fn flag(&self) -> &Flag {
        self.flag.as_ref().expect("a flag was given")
    }

    fn result(&self) -> &Evaluation {
        self.result.as_ref().expect("the flag was evaluated")
    }

    async fn evaluate(&self) -> Evaluation {
        let Flag { kind, key, default } = self.flag();
        let service = self.service();
        let client = service.client().await;
        let context = Some(&self.context);
        let result = in_time(async {
            match kind {
                Kind::Boolean => evaluation(client.get_bool_details(key, context, None).await, Value::from),
                Kind::String => evaluation(client.get_string_details(key, context, None).await, Value::from),
                Kind::Integer => evaluation(client.get_int_details(key, context, None).await, Value::from),
                Kind::Float => evaluation(client.get_float_details(key, context, None).await, Value::from),
                Kind::Object => {
                    let details = client.get_struct_details::<StructValue>(key, context, None).await;
                    evaluation(details, |value| Value::Object(fields(&value)))
                }
            }
        });
        let result = result.await;

        // Reads the same flag through our API, which takes a default.
        let flags = in_time(service.provider.flags(&self.context)).await;
        let value = match kind {
            Kind::Boolean => json!(flags.bool(key, default.as_bool().unwrap())),
            Kind::String => json!(flags.string(key, default.as_str().unwrap())),
            Kind::Integer => json!(flags.int(key, default.as_i64().unwrap())),
            Kind::Float => json!(flags.float(key, default.as_f64().unwrap())),
            Kind::Object => flags.object(key, default.clone()),
        };
        match result {
            Ok(result) => {
                assert_eq!(result.value, value, "the value of the client and of our API");
                // Scenarios without caching have no step for variants, so they are checked here.
                let variant = result.variant.as_deref().expect("a value has a variant");
                assert_eq!(service.variants(key)[variant], value, "the value of the variant {variant:?}");
                result
            }
            Err(code) => {
                // OpenFeature's client for Rust does not pass a default to the provider. A flag without a value is
                // therefore an error, which contains the reason. Our API returns both the default and the reason.
                let left_to_code = flags.evaluation(key).ok().filter(|flag| flag.value.is_null());
                match (left_to_code, &code) {
                    (Some(flag), EvaluationErrorCode::General(text)) if text.contains(&flag.reason) => Evaluation {
                        value,
                        variant: None,
                        reason: flag.reason.clone(),
                        error: None,
                        metadata: Vec::new(),
                    },
                    _ => {
                        assert_eq!(&value, default, "a flag that cannot be evaluated has its default");
                        let reason = EvaluationReason::Error.to_string();
                        Evaluation { value, variant: None, reason, error: Some(code.to_string()), metadata: Vec::new() }
                    }
                }
            }
        }
    }
}

fn evaluation<T>(
    result: EvaluationResult<EvaluationDetails<T>>,
    to_json: impl FnOnce(T) -> Value,
) -> Result<Evaluation, EvaluationErrorCode> {
    let details = result.map_err(|error| error.code)?;
    Ok(Evaluation {
        value: to_json(details.value),
        variant: details.variant,
        reason: details.reason.unwrap_or_default().to_string(),
        error: None,
        metadata: details.flag_metadata.values.into_iter().collect(),
    })
}

impl Kind {
    fn named(name: &str) -> Self {
        match name {
            "Boolean" => Self::Boolean,
            "String" => Self::String,
            "Integer" => Self::Integer,
            "Float" => Self::Float,
            "Object" => Self::Object,
            _ => panic!("there is no type {name:?}"),
        }
    }

    fn read(self, text: &str) -> Value {
        match self {
            Self::Boolean => json!(text.parse::<bool>().unwrap()),
            Self::String => json!(text),
            Self::Integer => json!(text.parse::<i64>().unwrap()),
            Self::Float => json!(text.parse::<f64>().unwrap()),
            // Quotes are escaped in some tables, and not in others.
            Self::Object => serde_json::from_str(&text.replace(r#"\""#, "\"")).unwrap(),
        }
    }

    fn field(self, text: &str) -> EvaluationContextFieldValue {
        match self.read(text) {
            Value::Bool(value) => value.into(),
            Value::String(value) => value.into(),
            Value::Number(value) if value.is_f64() => value.as_f64().unwrap().into(),
            Value::Number(value) => value.as_i64().unwrap().into(),
            // OpenFeature's structures have no null. A value with null is passed as JSON, which our provider also accepts.
            value => match structure(&value) {
                Some(value) => EvaluationContextFieldValue::new_struct(value),
                None => EvaluationContextFieldValue::new_struct(value),
            },
        }
    }

    fn metadata(self, text: &str) -> FlagMetadataValue {
        match self.read(text) {
            Value::Bool(value) => value.into(),
            Value::Number(value) if value.is_f64() => value.as_f64().unwrap().into(),
            Value::Number(value) => value.as_i64().unwrap().into(),
            Value::String(value) => value.into(),
            other => panic!("metadata cannot contain {other}"),
        }
    }
}

fn structure(value: &Value) -> Option<open_feature::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => open_feature::Value::Bool(*value),
        Value::String(value) => open_feature::Value::String(value.clone()),
        Value::Number(value) if value.is_f64() => open_feature::Value::Float(value.as_f64()?),
        Value::Number(value) => open_feature::Value::Int(value.as_i64()?),
        Value::Array(values) => open_feature::Value::Array(values.iter().map(structure).collect::<Option<_>>()?),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| Some((name.clone(), structure(value)?)));
            open_feature::Value::Struct(StructValue { fields: fields.collect::<Option<_>>()? })
        }
    })
}

/// Returns the arguments of a step.
fn args<const N: usize>(context: &step::Context) -> [&str; N] {
    let found: Vec<_> = context.matches.iter().skip(1).map(|(_, text)| text.as_str()).collect();
    found.try_into().unwrap()
}

fn option(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        match args(&context) {
            ["selector", _, set] => set.clone_into(&mut world.set),
            // Our cache holds flag sets, and does not change reasons.
            ["cache", _, "disabled"] => {}
            other => panic!("our provider has no such option: {other:?}"),
        }
    })
}

fn provider(_: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    // Each service already has a provider.
    Box::pin(async {})
}

fn evaluator(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move { EVALUATORS_FLAGS.clone_into(&mut world.set) })
}

fn flag(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [kind, key, default] = args(&context);
        let kind = Kind::named(kind);
        world.flag = Some(Flag { kind, key: key.to_owned(), default: kind.read(default) });
    })
}

fn field(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [name, kind, value] = args(&context);
        world.context.add_custom_field(name, Kind::named(kind).field(value));
    })
}

fn targeting_key(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [key] = args(&context);
        world.context.targeting_key = Some(key.to_owned());
    })
}

fn nested_field(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [outer, inner, value] = args(&context);
        let inner = StructValue::default().with_field(inner, value);
        world.context.add_custom_field(outer, EvaluationContextFieldValue::new_struct(inner));
    })
}

fn listens(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move { world.events = Some(world.service().provider.events()) })
}

fn modified(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let variants = json!({"foo": "foo", "bar": "bar"});
        let definition = json!({"state": "ENABLED", "variants": variants, "defaultVariant": "bar"});
        world.service().modify(&world.flag().key, definition);
    })
}

fn receives(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let events = world.events.as_mut().expect("there is a handler");
        world.change = in_time(async {
            while let Some(event) = events.recv().await {
                if let ProviderEvent::ConfigurationChanged(change) = event {
                    return Some(change);
                }
            }
            None
        })
        .await;
    })
}

fn evaluated(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move { world.result = Some(world.evaluate().await) })
}

fn value_is(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [value] = args(&context);
        assert_eq!(world.result().value, world.flag().kind.read(value), "{:?}", world.result());
    })
}

fn reason_is(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [reason] = args(&context);
        assert_eq!(world.result().reason, reason, "{:?}", world.result());
    })
}

fn error_is(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let [code] = args(&context);
        assert_eq!(world.result().error.as_deref().unwrap_or_default(), code, "{:?}", world.result());
    })
}

fn metadata_contains(world: &mut World, context: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let table = context.step.table.expect("a table of metadata");
        assert_eq!(table.rows[0], ["key", "metadata_type", "value"]);
        for row in &table.rows[1..] {
            let expected = (row[0].clone(), Kind::named(&row[1]).metadata(&row[2]));
            assert!(world.result().metadata.contains(&expected), "{expected:?}: {:?}", world.result());
        }
    })
}

fn metadata_is_empty(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let mut metadata = world
            .result()
            .metadata
            .iter()
            .filter(|(name, _)| !(world.service().has_types_in_metadata() && name == "flagType"));
        assert!(metadata.next().is_none(), "{:?}", world.result());
    })
}

fn change_is_about_the_flag(world: &mut World, _: step::Context) -> LocalBoxFuture<'_, ()> {
    Box::pin(async move {
        let change = world.change.as_ref().expect("a change event arrived");
        assert_eq!(change.flag_key.as_ref(), Some(&world.flag().key));
    })
}
