//! OFREP servers of other projects: the provider must understand their responses.

use std::{fs, io::Write, path::Path, time::Duration};

use flate2::{Compression, write::GzEncoder};
use flipswitch::{
    Error, FlagError, Flags, FlipswitchProvider,
    open_feature::{
        EvaluationErrorCode, EvaluationReason, EvaluationResult,
        provider::{FeatureProvider, ResolutionDetails},
    },
    serde_json::{Map, Value, json},
};
use reqwest::StatusCode;

use crate::support::{
    PATIENCE,
    apps::Framework,
    events::{is_change_of, until},
    eventually, in_time,
    json::fields,
    peer::Peer,
    sample_flags,
    scripted::{Reply, Scripted},
    user,
};

/// Tests a service that compresses its responses, which the feature `gzip` supports, and a service whose response does not end.
#[tokio::test]
async fn compressed_responses_are_read_up_to_their_limit() {
    let compressed = |body: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(body).unwrap();
        let body = encoder.finish().unwrap();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Reply::Raw([head.as_bytes(), &body].concat())
    };
    let flags = json!({"flags": [{"key": "f", "value": true}]}).to_string();
    let too_long = format!("{}{flags}", " ".repeat(16 << 20));
    for (body, is_read) in [(flags, true), (too_long, false)] {
        let reply = compressed(body.as_bytes());
        let service = Scripted::start(move |_, _| reply.clone()).await;
        let provider = FlipswitchProvider::builder("key")
            .base_url(service.url())
            .enable_realtime(false)
            .miss_wait(PATIENCE)
            .build()
            .unwrap();
        let flags = in_time(provider.flags(user("u"))).await;
        assert_eq!(flags.bool("f", false), is_read, "{:?}", flags.error());
        assert_eq!(matches!(flags.error(), Some(Error::TooLarge)), !is_read, "{:?}", flags.error());
        let received = service.received();
        assert!(received.iter().all(|request| request.header("accept-encoding").is_some_and(|it| it.contains("gzip"))));
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn responses_of_flagd_are_understood() {
    let peer = Peer::flagd(&Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/flags.json"));
    let flagd = [
        ("disabled", "free", Says::Nothing(None, EvaluationReason::Disabled)),
        ("code-default", "free", Says::Nothing(None, EvaluationReason::Default)),
        ("misdirected", "free", Says::Failed("GENERAL", EvaluationErrorCode::General("GENERAL".to_owned()))),
    ];
    check(&peer, flagd).await;
}

#[tokio::test]
async fn responses_of_fast_feature_are_understood() {
    let peer = Peer::fast_feature();
    for (key, flag) in sample_flags()["flags"].as_object().unwrap() {
        // Here, every flag has a default variant, so no flag leaves its value to the code.
        let expected =
            if flag["defaultVariant"].is_null() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::CREATED };
        assert_eq!(peer.create(key, flag).await, expected, "{key}");
    }
    let null = json!({"state": "ENABLED", "variants": {"none": null}, "defaultVariant": "none"});
    assert_eq!(peer.create("null", &null).await, StatusCode::CREATED);

    let fast_feature = [
        // A disabled flag is sent with the value of its default variant, which the provider returns.
        ("disabled", "free", Says::Value(vec![Typed::Bool(true)], "on", EvaluationReason::Disabled)),
        ("code-default", "free", Says::Unknown),
        // Null is left out of the response, which still contains the name of the variant.
        ("null", "free", Says::Nothing(Some("none"), EvaluationReason::Static)),
        ("misdirected", "free", Says::Failed("PARSE_ERROR", EvaluationErrorCode::ParseError)),
    ];
    check(&peer, fast_feature).await;
}

/// Tests applications in both frameworks with services of other projects: extractor, gate, targeting, and a change that
/// polling finds.
#[tokio::test]
async fn applications_work_with_services_of_other_projects() {
    let folder = tempfile::tempdir().unwrap();
    let (file, written) = (folder.path().join("flags.json"), folder.path().join("flags.json~"));
    let write = |flags: &Value| {
        // The file is renamed, so no reader sees an incomplete file.
        fs::write(&written, json!({ "flags": flags }).to_string()).unwrap();
        fs::rename(&written, &file).unwrap();
    };
    let mut flags = json!({
        "whoami": {
            "state": "ENABLED", "variants": {"alice": "it is alice", "other": "somebody"}, "defaultVariant": "other",
            "targeting": {"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "alice"]},
        },
        "beta": {
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [{"==": [{"var": "plan"}, "premium"]}, "on"]},
        },
    });
    write(&flags);
    let (flagd, fast_feature) = (Peer::flagd(&file), Peer::fast_feature());
    for key in ["whoami", "beta"] {
        assert_eq!(fast_feature.create(key, &flags[key]).await, StatusCode::CREATED);
    }
    flags["beta"]["defaultVariant"] = json!("on");
    for (peer, reads_file) in [(&flagd, true), (&fast_feature, false)] {
        let builder = FlipswitchProvider::ofrep(&peer.url).miss_wait(PATIENCE).stale_wait(PATIENCE);
        let provider = builder.polling_interval(Duration::from_millis(100)).build().unwrap();
        let mut apps = Vec::new();
        for framework in Framework::ALL {
            let app = framework.serve(provider.clone()).await;
            assert_eq!(
                app.get("/flag", "alice", "free").await,
                (200, "it is alice default".to_owned()),
                "{framework:?}"
            );
            assert_eq!(app.get("/flag", "bob", "free").await, (200, "somebody default".to_owned()), "{framework:?}");
            assert_eq!(app.get("/gated/free", "bob", "premium").await.0, 200, "{framework:?}");
            assert_eq!(app.get("/gated/free", "bob", "free").await.0, 404, "{framework:?}");
            apps.push(app);
        }
        let mut events = provider.events();
        if reads_file {
            write(&flags);
        } else {
            assert_eq!(fast_feature.update("beta", &flags["beta"]).await, StatusCode::OK);
        }
        until(&mut events, is_change_of("beta")).await;
        for app in &apps {
            eventually(async || app.get("/gated/free", "bob", "free").await.0 == 200).await;
        }
        assert!(provider.is_polling_active() && provider.stats().polls > 0);
        provider.shutdown().await;
    }
}

/// The result of a peer for a flag.
enum Says {
    /// A value for each type that it can be read as, with variant and reason.
    Value(Vec<Typed>, &'static str, EvaluationReason),
    /// No value, with variant and reason.
    Nothing(Option<&'static str>, EvaluationReason),
    /// An OFREP error code, with the error code of OpenFeature.
    Failed(&'static str, EvaluationErrorCode),
    /// There is no such flag.
    Unknown,
}

/// A value, read as one type.
#[derive(Debug, PartialEq)]
enum Typed {
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Object(Map<String, Value>),
}

/// Checks the flags of a peer: those with the same result for all peers, and those with different results.
async fn check(peer: &Peer, peculiar: impl IntoIterator<Item = (&str, &str, Says)>) {
    let Value::Object(page) = json!({"title": "Hi", "steps": [1, 2.5, "x"], "size": {"wide": true}}) else {
        panic!("the flag `page` must be an object")
    };
    let string = |text: &str| vec![Typed::String(text.to_owned())];
    let forty_two = || vec![Typed::Int(42), Typed::Float(42.0)];
    let large = vec![Typed::Int(9_007_199_254_740_993), Typed::Float(9_007_199_254_740_992.0)];
    let usual = [
        ("bool", "free", Says::Value(vec![Typed::Bool(true)], "on", EvaluationReason::Static)),
        ("string", "free", Says::Value(string("Grüße 👋"), "hello", EvaluationReason::Static)),
        ("int", "free", Says::Value(forty_two(), "many", EvaluationReason::Static)),
        ("float", "free", Says::Value(vec![Typed::Float(0.1)], "tenth", EvaluationReason::Static)),
        ("whole-float", "free", Says::Value(forty_two(), "whole", EvaluationReason::Static)),
        ("large-int", "free", Says::Value(large, "large", EvaluationReason::Static)),
        ("object", "free", Says::Value(vec![Typed::Object(page)], "page", EvaluationReason::Static)),
        ("targeted", "premium", Says::Value(string("5 %"), "reduced", EvaluationReason::TargetingMatch)),
        ("targeted", "free", Says::Value(string("10 %"), "standard", EvaluationReason::Default)),
        ("unknown", "free", Says::Unknown),
    ];

    let provider = FlipswitchProvider::ofrep(&peer.url).miss_wait(PATIENCE).build().unwrap();
    provider.ready(PATIENCE).await.unwrap();
    for (key, plan, says) in usual.into_iter().chain(peculiar) {
        check_flag(&provider, key, plan, &says).await;
    }
    let details = provider.resolve_bool_value("bool", &user("u")).await.unwrap();
    let metadata = details.flag_metadata.unwrap().values;
    assert_eq!((&metadata["owner"], &metadata["priority"]), (&"web".into(), &3_i64.into()));
    provider.shutdown().await;
}

async fn check_flag(provider: &FlipswitchProvider, key: &str, plan: &str, says: &Says) {
    let context = user("u").with_custom_field("plan", plan);
    let flags = in_time(provider.flags(&context)).await;
    assert!(flags.error().is_none() && !flags.is_stale(), "{flags:?}");
    match (flags.evaluation(key), says) {
        (Ok(flag), Says::Value(_, variant, reason)) => {
            assert_eq!((flag.variant.as_deref(), &flag.reason), (Some(*variant), &reason.to_string()), "{flag}");
        }
        (Ok(flag), Says::Nothing(variant, reason)) => {
            assert_eq!((&flag.value, flag.variant.as_deref()), (&Value::Null, *variant), "{flag}");
            assert_eq!(flag.reason, reason.to_string(), "{flag}");
        }
        (Err(FlagError::Evaluation { code, details: Some(details) }), Says::Failed(expected, _)) => {
            assert_eq!(&code, expected, "{key}");
            assert!(details.contains("nowhere"), "{key}: {details}");
        }
        (Err(FlagError::NotFound), Says::Unknown) => {}
        (other, _) => panic!("{key}: {other:?}"),
    }
    let reads: &[Typed] = if let Says::Value(reads, ..) = says { reads } else { &[] };
    assert_eq!(read(&flags, key), reads, "{key}");

    let resolutions = [
        resolution(provider.resolve_bool_value(key, &context).await, Typed::Bool),
        resolution(provider.resolve_int_value(key, &context).await, Typed::Int),
        resolution(provider.resolve_float_value(key, &context).await, Typed::Float),
        resolution(provider.resolve_string_value(key, &context).await, Typed::String),
        resolution(provider.resolve_struct_value(key, &context).await, |value| Typed::Object(fields(&value))),
    ];
    let mut resolved = Vec::new();
    for resolution in resolutions {
        match (resolution, says) {
            (Ok(details), Says::Value(_, variant, reason)) => {
                assert_eq!(
                    (details.variant.as_deref(), details.reason.as_ref()),
                    (Some(*variant), Some(reason)),
                    "{key}"
                );
                resolved.push(details.value);
            }
            (Err(EvaluationErrorCode::General(text)), Says::Nothing(_, reason)) => {
                assert!(text.contains(&reason.to_string()), "{key}: {text}");
            }
            (Err(code), Says::Value(..)) => assert_eq!(code, EvaluationErrorCode::TypeMismatch, "{key}"),
            (Err(code), Says::Failed(_, expected)) => assert_eq!(&code, expected, "{key}"),
            (Err(code), Says::Unknown) => assert_eq!(code, EvaluationErrorCode::FlagNotFound, "{key}"),
            (other, _) => panic!("{key}: {other:?}"),
        }
    }
    assert_eq!(resolved, reads, "{key}");
}

/// Reads a flag as every type. The flag has a type if its value does not depend on the default.
fn read(flags: &Flags, key: &str) -> Vec<Typed> {
    let other = Map::from_iter([("other".to_owned(), Value::Null)]);
    let reads = [
        [Typed::Bool(flags.bool(key, false)), Typed::Bool(flags.bool(key, true))],
        [Typed::Int(flags.int(key, 0)), Typed::Int(flags.int(key, 1))],
        [Typed::Float(flags.float(key, 0.0)), Typed::Float(flags.float(key, 1.0))],
        [Typed::String(flags.string(key, "").to_owned()), Typed::String(flags.string(key, "other").to_owned())],
        [Typed::Object(flags.object(key, Map::new())), Typed::Object(flags.object(key, other))],
    ];
    reads.into_iter().filter(|[one, another]| one == another).map(|[one, _]| one).collect()
}

fn resolution<T>(
    result: EvaluationResult<ResolutionDetails<T>>,
    read: impl FnOnce(T) -> Typed,
) -> Result<ResolutionDetails<Typed>, EvaluationErrorCode> {
    let ResolutionDetails { value, variant, reason, flag_metadata } = result.map_err(|error| error.code)?;
    Ok(ResolutionDetails { value: read(value), variant, reason, flag_metadata })
}
