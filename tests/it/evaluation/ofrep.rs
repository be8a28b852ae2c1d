//! A table of OFREP responses, with the values that each kind of caller reads from them.
#![expect(clippy::needless_pass_by_value, reason = "replies are written on the spot")]

use std::time::Duration;

use flipswitch::{
    Error, Flags, FlipswitchProvider,
    open_feature::{
        Client, EvaluationErrorCode, EvaluationResult, OpenFeature, StructValue,
        provider::{FeatureProvider, ResolutionDetails},
    },
    serde_json::{Map, Value, json},
};

use crate::support::{
    in_time,
    scripted::{Reply, Scripted},
    user,
};

/// The result of reading the flag `f` as one type: the value, or OpenFeature's error code.
type Read<T> = Result<T, &'static str>;

/// The results for each of the five types.
#[derive(Clone, Debug, PartialEq)]
struct Reads {
    bool: Read<bool>,
    int: Read<i64>,
    float: Read<f64>,
    string: Read<String>,
    object: Read<Value>,
}

impl Reads {
    /// Returns the same error for every type.
    fn failed(code: &'static str) -> Self {
        Self { bool: Err(code), int: Err(code), float: Err(code), string: Err(code), object: Err(code) }
    }

    /// Returns type errors for all types that are not set afterwards.
    fn other_types() -> Self {
        Self::failed("TYPE_MISMATCH")
    }

    fn bool(value: bool) -> Self {
        Self { bool: Ok(value), ..Self::other_types() }
    }

    fn string(value: &str) -> Self {
        Self { string: Ok(value.to_owned()), ..Self::other_types() }
    }

    fn number(int: Option<i64>, float: f64) -> Self {
        Self { int: int.ok_or("TYPE_MISMATCH"), float: Ok(float), ..Self::other_types() }
    }

    fn object(value: Value) -> Self {
        Self { object: Ok(value), ..Self::other_types() }
    }
}

fn items(items: Value) -> Reply {
    Reply::json(json!({"flags": items, "metadata": {"set": 1}}))
}

fn item(item: Value) -> Reply {
    items(json!([item]))
}

/// A flag with a value and nothing else.
fn value(value: Value) -> Reply {
    item(json!({"key": "f", "value": value}))
}

fn rows() -> Vec<(&'static str, Reply, Reads)> {
    let flag = |metadata: Value, value: Value| item(json!({"key": "f", "value": value, "metadata": metadata}));
    let raw = |text: &str| Reply::json(format!(r#"{{"flags":[{{"key":"f","value":{text}}}]}}"#));
    let failed = |code: &str| item(json!({"key": "f", "errorCode": code, "errorDetails": "d"}));
    let refused = |code: &str| Reply::status(400, json!({"key": "f", "errorCode": code, "errorDetails": "d"}));
    let large_body = |length: usize| [b"{\"flags\":[]}".as_slice(), &vec![b' '; length]].concat();
    let mut rows = vec![
        // Items.
        (
            "full",
            item(json!({
                "key": "f", "value": true, "variant": "on", "reason": "TARGETING_MATCH", "metadata": {"flagType": "boolean"},
            })),
            Reads::bool(true),
        ),
        ("no variant, reason, metadata", value(json!("x")), Reads::string("x")),
        ("metadata null", item(json!({"key": "f", "value": 1, "metadata": null})), Reads::number(Some(1), 1.0)),
        ("value absent", item(json!({"key": "f", "reason": "DISABLED"})), Reads::failed("GENERAL")),
        ("value null", value(json!(null)), Reads::failed("GENERAL")),
        ("unknown fields", item(json!({"key": "f", "value": true, "more": [1]})), Reads::bool(true)),
        ("any reason", item(json!({"key": "f", "value": true, "reason": "HOLIDAY"})), Reads::bool(true)),
        ("wrapped", item(json!({"result": {"key": "f", "value": true}})), Reads::bool(true)),
        ("wrapped, key outside", item(json!({"key": "f", "result": {"value": true}})), Reads::bool(true)),
        ("without key", item(json!({"value": true})), Reads::failed("FLAG_NOT_FOUND")),
        ("another flag", item(json!({"key": "g", "value": true})), Reads::failed("FLAG_NOT_FOUND")),
        ("twice", items(json!([{"key": "f", "value": 1}, {"key": "f", "value": true}])), Reads::bool(true)),
        (
            "any order, others broken",
            items(json!([{"key": "z", "errorCode": "GENERAL"}, 7, null, {"key": "f", "value": true}, {"key": "a"}])),
            Reads::bool(true),
        ),
        // Types.
        ("type boolean", flag(json!({"flagType": "boolean"}), json!(true)), Reads::bool(true)),
        ("type string", flag(json!({"flagType": "string"}), json!("x")), Reads::string("x")),
        ("type integer", flag(json!({"flagType": "integer"}), json!(42.0)), Reads::number(Some(42), 42.0)),
        ("type decimal", flag(json!({"flagType": "decimal"}), json!(42)), Reads::number(Some(42), 42.0)),
        ("type unknown", flag(json!({"flagType": "colour"}), json!(42)), Reads::number(Some(42), 42.0)),
        ("object", value(json!({"a": {"b": [1, "x"]}})), Reads::object(json!({"a": {"b": [1, "x"]}}))),
        ("array", value(json!([1])), Reads::other_types()),
        // Numbers.
        ("42", raw("42"), Reads::number(Some(42), 42.0)),
        ("42.0", raw("42.0"), Reads::number(Some(42), 42.0)),
        ("4.2e1", raw("4.2e1"), Reads::number(Some(42), 42.0)),
        ("3.25", raw("3.25"), Reads::number(None, 3.25)),
        ("2^53+1", raw("9007199254740993"), Reads::number(Some(9_007_199_254_740_993), 9_007_199_254_740_992.0)),
        ("2^63", raw("9223372036854775808"), Reads::number(None, 9_223_372_036_854_775_808.0)),
        ("1e300", raw("1e300"), Reads::number(None, 1e300)),
        ("1e999", raw("1e999"), Reads::failed("PARSE_ERROR")),
        // Whole responses.
        ("no flags", items(json!([])), Reads::failed("FLAG_NOT_FOUND")),
        ("404 with a body", Reply::status(404, json!({"errorCode": "FLAG_NOT_FOUND"})), Reads::failed("GENERAL")),
        ("404 empty", Reply::status(404, ""), Reads::failed("GENERAL")),
        ("empty", Reply::status(200, ""), Reads::failed("PARSE_ERROR")),
        ("text", Reply::status(200, "hello"), Reads::failed("PARSE_ERROR")),
        ("HTML", Reply::status(200, "<html></html>"), Reads::failed("PARSE_ERROR")),
        ("other JSON", Reply::json(json!([1, 2])), Reads::failed("PARSE_ERROR")),
        ("JSON without flags", Reply::json(json!({"key": "f", "value": true})), Reads::failed("PARSE_ERROR")),
        ("cut off", Reply::json(r#"{"flags":[{"key":"f","#), Reads::failed("PARSE_ERROR")),
        ("bytes", Reply::Http(200, vec![], vec![0xff, 0xfe, 0]), Reads::failed("PARSE_ERROR")),
        ("no HTTP", Reply::Raw(b"SSH-2.0-OpenSSH\r\n".to_vec()), Reads::failed("GENERAL")),
        ("closed at once", Reply::Raw(vec![]), Reads::failed("GENERAL")),
        (
            "closed in the middle",
            Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"flags\":".to_vec()),
            Reads::failed("GENERAL"),
        ),
        ("as large as may be", Reply::Http(200, vec![], large_body((16 << 20) - 12)), Reads::failed("FLAG_NOT_FOUND")),
        ("too large", Reply::Http(200, vec![], large_body(16 << 20)), Reads::failed("GENERAL")),
        ("endless", Reply::Endless, Reads::failed("GENERAL")),
        ("304 without an etag", Reply::status(304, ""), Reads::failed("GENERAL")),
        ("400 empty", Reply::status(400, ""), Reads::failed("GENERAL")),
        ("400 in HTML", Reply::status(400, "<html></html>"), Reads::failed("GENERAL")),
        ("400 in other JSON", Reply::status(400, json!({"detail": [1]})), Reads::failed("GENERAL")),
        ("400 with an odd code", Reply::status(400, json!({"errorCode": 7})), Reads::failed("GENERAL")),
        ("401 in HTML", Reply::status(401, "<html></html>"), Reads::failed("PARSE_ERROR")),
        ("403 in HTML", Reply::status(403, "<html></html>"), Reads::failed("PARSE_ERROR")),
        ("404 in HTML", Reply::status(404, "<html></html>"), Reads::failed("PARSE_ERROR")),
        ("429 in HTML", Reply::status(429, "<html></html>"), Reads::failed("GENERAL")),
        ("503 in HTML", Reply::status(503, "<html></html>"), Reads::failed("GENERAL")),
        ("flags null", Reply::json(json!({"flags": null})), Reads::failed("PARSE_ERROR")),
        (
            "set's metadata null",
            Reply::json(json!({"flags": [{"key": "f", "value": true}], "metadata": null})),
            Reads::bool(true),
        ),
        (
            "JSON called text",
            Reply::status(200, json!({"flags": [{"key": "f", "value": true}]})).with("content-type", "text/plain"),
            Reads::bool(true),
        ),
        ("400 unknown code", refused("WHAT_EVER"), Reads::failed("GENERAL")),
    ];
    for code in
        ["PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL", "TYPE_MISMATCH", "FLAG_NOT_FOUND"]
    {
        rows.push(("an item's error", failed(code), Reads::failed(code)));
        rows.push(("400 with a code", refused(code), Reads::failed(code)));
    }
    for status in [
        201, 202, 204, 301, 302, 303, 305, 307, 308, 401, 402, 403, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414,
        415, 416, 417, 418, 421, 422, 423, 424, 425, 426, 428, 429, 431, 451,
    ] {
        rows.push(("status without a body", Reply::status(status, ""), Reads::failed("GENERAL")));
    }
    for status in [500, 501, 502, 503, 504, 599] {
        let body = json!({"errorDetails": "down for the night"});
        rows.push(("server error", Reply::status(status, body), Reads::failed("GENERAL")));
    }
    rows
}

#[tokio::test]
async fn all_readers_agree_on_every_response() {
    for (number, (label, reply, expected)) in rows().into_iter().enumerate() {
        let label = format!("row {number}, {label}, {}", shown(&reply));
        let service = Scripted::answering(reply).await;
        // Each way of reading has its own provider, so they do not share a cache.
        let flags = in_time(provider(&service).flags(&user("u"))).await;
        assert_eq!(through_flags(&flags), expected.clone().with_defaults(), "{label}, through Flags");
        assert_eq!(in_time(through_resolve(&provider(&service))).await, expected, "{label}, through resolve");
        let name = format!("wire-{number}");
        OpenFeature::singleton_mut().await.set_named_provider(&name, provider(&service)).await;
        let client = OpenFeature::singleton().await.create_named_client(&name);
        assert_eq!(in_time(through_client(&client)).await, expected, "{label}, through the client");

        let provider = provider(&service);
        let has_a_value = expected.bool.is_ok()
            || expected.int.is_ok()
            || expected.float.is_ok()
            || expected.string.is_ok()
            || expected.object.is_ok()
            || ["array", "value absent", "value null"].iter().any(|odd| label.contains(odd));
        match in_time(provider.evaluate_flag("f", &user("u"))).await {
            Ok(Some(flag)) => assert!(has_a_value && flag.key == "f", "{label}: {flag}"),
            // `None` means that the service does not have the flag.
            Ok(None) => assert!(!has_a_value && expected == Reads::failed("FLAG_NOT_FOUND"), "{label}"),
            Err(error) => {
                let is_unknown =
                    expected == Reads::failed("FLAG_NOT_FOUND") && !matches!(error, Error::Evaluation { .. });
                assert!(!has_a_value && !is_unknown, "{label}: {error}");
            }
        }
        provider.shutdown().await;
    }
}

fn shown(reply: &Reply) -> String {
    match reply {
        Reply::Http(status, _, body) => format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(80)])),
        other => format!("{other:?}").chars().take(80).collect(),
    }
}

fn provider(service: &Scripted) -> FlipswitchProvider {
    FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false).build().unwrap()
}

/// Returns a provider whose flags are stale immediately, so every evaluation sends a request.
fn forgetful(service: &Scripted) -> FlipswitchProvider {
    let builder = FlipswitchProvider::builder("key").base_url(service.url()).enable_realtime(false);
    builder.polling_interval(Duration::from_millis(1)).build().unwrap()
}

impl Reads {
    /// The values that `Flags` returns: the default after an error.
    fn with_defaults(self) -> Self {
        Self {
            bool: Ok(self.bool.unwrap_or(false)),
            int: Ok(self.int.unwrap_or(-7)),
            float: Ok(self.float.unwrap_or(-7.5)),
            string: Ok(self.string.unwrap_or("default".to_owned())),
            object: Ok(self.object.unwrap_or(json!({"default": 1}))),
        }
    }
}

fn through_flags(flags: &Flags) -> Reads {
    let default = Map::from_iter([("default".to_owned(), json!(1))]);
    Reads {
        bool: Ok(flags.bool("f", false)),
        int: Ok(flags.int("f", -7)),
        float: Ok(flags.float("f", -7.5)),
        string: Ok(flags.string("f", "default").to_owned()),
        object: Ok(Value::Object(flags.object("f", default))),
    }
}

async fn through_resolve(provider: &FlipswitchProvider) -> Reads {
    fn value<T>(outcome: EvaluationResult<ResolutionDetails<T>>) -> EvaluationResult<T> {
        outcome.map(|details| details.value)
    }
    let u = user("u");
    Reads {
        bool: coded(value(provider.resolve_bool_value("f", &u).await)),
        int: coded(value(provider.resolve_int_value("f", &u).await)),
        float: coded(value(provider.resolve_float_value("f", &u).await)),
        string: coded(value(provider.resolve_string_value("f", &u).await)),
        object: coded(value(provider.resolve_struct_value("f", &u).await)).map(|structure| json_of(&structure)),
    }
}

async fn through_client(client: &Client) -> Reads {
    let u = user("u");
    let object: EvaluationResult<StructValue> = client.get_struct_value("f", Some(&u), None).await;
    Reads {
        bool: coded(client.get_bool_value("f", Some(&u), None).await),
        int: coded(client.get_int_value("f", Some(&u), None).await),
        float: coded(client.get_float_value("f", Some(&u), None).await),
        string: coded(client.get_string_value("f", Some(&u), None).await),
        object: coded(object).map(|structure| json_of(&structure)),
    }
}

/// Returns the value, or the name of the error code. An error must name the flag.
fn coded<T>(outcome: EvaluationResult<T>) -> Read<T> {
    outcome.map_err(|error| {
        let message = error.message.unwrap_or_default();
        assert!(message.contains("\"f\""), "{message:?} does not name the flag");
        match error.code {
            EvaluationErrorCode::FlagNotFound => "FLAG_NOT_FOUND",
            EvaluationErrorCode::InvalidContext => "INVALID_CONTEXT",
            EvaluationErrorCode::ParseError => "PARSE_ERROR",
            EvaluationErrorCode::ProviderNotReady => "PROVIDER_NOT_READY",
            EvaluationErrorCode::TargetingKeyMissing => "TARGETING_KEY_MISSING",
            EvaluationErrorCode::TypeMismatch => "TYPE_MISMATCH",
            EvaluationErrorCode::General(_) => "GENERAL",
        }
    })
}

fn json_of(structure: &StructValue) -> Value {
    use flipswitch::open_feature::Value as FeatureValue;
    fn of_value(value: &FeatureValue) -> Value {
        match value {
            FeatureValue::Bool(value) => json!(value),
            FeatureValue::Int(value) => json!(value),
            FeatureValue::Float(value) => json!(value),
            FeatureValue::String(value) => json!(value),
            FeatureValue::Array(values) => values.iter().map(of_value).collect(),
            FeatureValue::Struct(structure) => json_of(structure),
        }
    }
    structure.fields.iter().map(|(name, field)| (name.clone(), of_value(field))).collect()
}

#[tokio::test]
async fn errors_are_distinguished() {
    type Check = fn(&Error) -> bool;
    let rows: [(Reply, Check); 12] = [
        (Reply::status(401, ""), |error| matches!(error, Error::Unauthorized)),
        (Reply::status(403, ""), |error| matches!(error, Error::Unauthorized)),
        (
            Reply::status(429, "").with("retry-after", 7),
            |error| matches!(error, Error::RateLimited { retry_after } if (5..=7).contains(&retry_after.as_secs())),
        ),
        (
            Reply::status(429, ""),
            |error| matches!(error, Error::RateLimited { retry_after } if *retry_after <= Duration::from_secs(1)),
        ),
        (
            Reply::status(429, "").with("retry-after", "2999-01-01T00:00:00Z"),
            |error| matches!(error, Error::RateLimited { retry_after } if (290..=300).contains(&retry_after.as_secs())),
        ),
        (Reply::status(503, ""), |error| matches!(error, Error::Status(status) if status.as_u16() == 503)),
        (Reply::status(200, "<html>"), |error| matches!(error, Error::Decode(_))),
        (Reply::Endless, |error| matches!(error, Error::TooLarge)),
        (Reply::Raw(vec![]), |error| matches!(error, Error::Transport(_))),
        (
            Reply::status(400, json!({"errorCode": "INVALID_CONTEXT", "errorDetails": "a\u{1b}b"})),
            |error| matches!(error, Error::Evaluation { code, details } if code == "INVALID_CONTEXT" && details.as_deref() == Some("ab")),
        ),
        (
            Reply::status(422, json!({"detail": []})),
            |error| matches!(error, Error::Status(status) if status.as_u16() == 422),
        ),
        (item(json!({"key": "f", "errorCode": "GENERAL"})), |error| matches!(error, Error::Evaluation { .. })),
    ];
    for (number, (reply, check)) in rows.into_iter().enumerate() {
        let service = Scripted::answering(reply).await;
        let error = in_time(provider(&service).evaluate_flag("f", &user("u"))).await.unwrap_err();
        assert!(check(&error), "row {number}: {error:?}");
    }
}

#[tokio::test]
async fn requests_have_the_expected_headers_and_body() {
    let service = Scripted::answering(items(json!([]))).await;
    let told = FlipswitchProvider::builder("the-key").base_url(service.url()).enable_realtime(false).build().unwrap();
    told.flags(&user("../../admin")).await;
    let untold = FlipswitchProvider::builder("k")
        .base_url(service.url())
        .enable_realtime(false)
        .telemetry(false)
        .build()
        .unwrap();
    untold.evaluate_flag("../../admin", &user("untold")).await.unwrap();

    let received = service.received();
    let of = |id: &str| received.iter().find(|request| request.body.contains(id)).unwrap();
    let request = of("../../admin");
    assert_eq!((request.method.as_str(), request.header("x-api-key")), ("POST", Some("the-key")));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.body, r#"{"context":{"targetingKey":"../../admin"}}"#);
    assert_eq!(request.header("x-flipswitch-sdk"), Some(concat!("rust/", env!("CARGO_PKG_VERSION"))));
    assert!(request.header("x-flipswitch-runtime").unwrap().starts_with("rust/1."), "{request:?}");
    assert!(request.header("x-flipswitch-os").unwrap().contains('/'), "{request:?}");
    assert_eq!(request.header("x-flipswitch-features"), Some("sse=false"));
    assert!(of("untold").header("x-flipswitch-sdk").is_none(), "telemetry can be disabled");
    let agent = concat!("flipswitch-rust/", env!("CARGO_PKG_VERSION"));
    assert!(received.iter().all(|request| request.header("user-agent") == Some(agent)), "{received:?}");
    // No flag key is ever part of a URL.
    assert!(received.iter().all(crate::support::scripted::Received::is_bulk), "{received:?}");
}

#[tokio::test]
async fn the_path_of_a_base_url_is_kept() {
    let service = Scripted::answering(items(json!([]))).await;
    let base_url = format!("{}/flags/", service.url());
    let provider = FlipswitchProvider::builder("k").base_url(base_url).enable_realtime(false).build().unwrap();
    provider.flags(&user("u")).await;
    assert_eq!(service.received()[0].path, "/flags/ofrep/v1/evaluate/flags");
}

#[tokio::test]
async fn etags_are_sent_back_unchanged_for_their_own_context_only() {
    for tag in ["\"quoted\"", "W/\"weak\"", "bare", "\"with \u{e4}\"", "\"twö\""] {
        let service = Scripted::start(move |request, _| match request.header("if-none-match") {
            Some(_) => Reply::status(304, ""),
            None => value(json!(request.body.contains("alice"))).with("etag", tag),
        })
        .await;
        let provider = forgetful(&service);
        crate::support::eventually(async || {
            assert!(provider.flags(&user("alice")).await.bool("f", false), "{tag}");
            assert!(
                !provider.flags(&user("bob")).await.bool("f", true),
                "{tag}: no context gets the answer of another"
            );
            ["alice", "bob"].iter().all(|id| service.received().iter().filter(|r| r.body.contains(id)).count() > 2)
        })
        .await;
        let received = service.received();
        for id in ["alice", "bob"] {
            let tags: Vec<_> =
                received.iter().filter(|r| r.body.contains(id)).map(|r| r.header("if-none-match")).collect();
            let expected = tag.to_ascii_lowercase();
            assert!(
                tags[0].is_none() && tags[1..].iter().all(|sent| *sent == Some(expected.as_str())),
                "{id} {tags:?}"
            );
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn evaluation_details_are_kept() {
    let service = Scripted::answering(items(json!([
        {"key": "f", "value": true, "variant": "on", "reason": "HOLIDAY", "metadata": {"flagType": "boolean", "owner": "web"}},
        {"key": "bare", "value": true},
    ])))
    .await;
    let provider = provider(&service);
    let details = in_time(provider.resolve_bool_value("f", &user("u"))).await.unwrap();
    assert_eq!((details.variant.as_deref(), details.reason.unwrap().to_string().as_str()), (Some("on"), "HOLIDAY"));
    let metadata = details.flag_metadata.unwrap();
    assert_eq!((&metadata.values["owner"], &metadata.values["flagType"]), (&"web".into(), &"boolean".into()));
    let bare = in_time(provider.resolve_bool_value("bare", &user("u"))).await.unwrap();
    assert_eq!((bare.variant, bare.reason.unwrap().to_string().as_str()), (None, "UNKNOWN"));
}

#[tokio::test]
async fn not_modified_without_an_etag_is_an_error() {
    for tag in [None, Some("")] {
        let service = Scripted::start(move |request, before| {
            assert!(request.header("if-none-match").is_none(), "{request:?}");
            match tag {
                // The start-up request and the first evaluation get their responses, in any order.
                None if before > 1 => Reply::status(304, ""),
                None => value(json!(true)),
                Some(tag) => value(json!(true)).with("etag", tag),
            }
        })
        .await;
        let provider = forgetful(&service);
        assert!(in_time(provider.flags(&user("u"))).await.bool("f", false));
        crate::support::eventually(async || {
            let flags = in_time(provider.flags(&user("u"))).await;
            match tag {
                None => {
                    matches!(flags.error(), Some(Error::Status(status)) if status.as_u16() == 304) && flags.is_stale()
                }
                Some(_) => service.received().len() > 3,
            }
        })
        .await;
    }
}
