//! The provider behind an OpenFeature client.

use flipswitch::{
    FlipswitchProvider,
    open_feature::{
        Client, EvaluationContext, EvaluationErrorCode, EvaluationReason, OpenFeature, StructValue,
        provider::{FeatureProvider, ProviderStatus},
    },
    serde_json::json,
};
use flipswitch_local::LocalServer;

use crate::support::{self, in_time, provider, user};

/// Returns a client. The registry of OpenFeature belongs to the process, so each test uses its own name.
async fn client(name: &str, provider: &FlipswitchProvider) -> Client {
    OpenFeature::singleton_mut().await.set_named_provider(name, provider.clone()).await;
    OpenFeature::singleton().await.create_named_client(name)
}

#[tokio::test]
async fn the_client_reads_every_type() {
    let service = LocalServer::start(json!({"flags": {
        "bool": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"},
        "string": {
            "state": "ENABLED", "variants": {"a": "A", "b": "B"}, "defaultVariant": "a",
            "targeting": {"if": [{"==": [{"var": "plan"}, "premium"]}, "b"]}, "metadata": {"owner": "web", "priority": 3},
        },
        "int": {"state": "ENABLED", "variants": {"large": 9_007_199_254_740_993_i64}, "defaultVariant": "large"},
        "float": {"state": "ENABLED", "variants": {"half": 0.5}, "defaultVariant": "half"},
        "object": {"state": "ENABLED", "variants": {"o": {"a": {"b": [1, "x"]}}}, "defaultVariant": "o"},
        "off": {"state": "DISABLED", "variants": {"on": true}, "defaultVariant": "on"},
    }}))
    .await
    .unwrap();
    let provider = provider(&service);
    let client = client("every-type", &provider).await;
    let context = user("u").with_custom_field("plan", "premium");

    assert!(client.get_bool_value("bool", Some(&context), None).await.unwrap());
    assert_eq!(client.get_int_value("int", Some(&context), None).await.unwrap(), 9_007_199_254_740_993);
    assert_eq!(client.get_float_value("float", Some(&context), None).await.unwrap(), 0.5);
    let object: StructValue = client.get_struct_value("object", Some(&context), None).await.unwrap();
    assert_eq!(object.fields["a"].as_struct().unwrap().fields["b"].as_array().unwrap().len(), 2);

    let string = client.get_string_details("string", Some(&context), None).await.unwrap();
    assert_eq!((string.value.as_str(), string.variant.as_deref()), ("B", Some("b")));
    assert_eq!(string.reason, Some(EvaluationReason::TargetingMatch));
    assert_eq!(string.flag_metadata.values["owner"], "web".into());
    assert_eq!(string.flag_metadata.values["priority"], 3_i64.into());

    let errors = [
        (client.get_bool_value("string", Some(&context), None).await.unwrap_err(), EvaluationErrorCode::TypeMismatch),
        (client.get_bool_value("unknown", Some(&context), None).await.unwrap_err(), EvaluationErrorCode::FlagNotFound),
    ];
    for (error, code) in errors {
        assert_eq!(error.code, code);
    }
    let off = client.get_bool_value("off", Some(&context), None).await.unwrap_err();
    let EvaluationErrorCode::General(text) = &off.code else { panic!("{off:?}") };
    assert!(text.contains("\"off\"") && text.contains("DISABLED"), "{text}");
    assert!(client.get_bool_value("off", Some(&context), None).await.unwrap_or(true), "the caller's default holds");
}

#[tokio::test]
async fn the_readme_example_works_as_written() {
    let service = LocalServer::start(json!({"flags": {
        "dark-mode": {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"},
        "welcome": {"state": "ENABLED", "variants": {"hi": "Hi!"}, "defaultVariant": "hi"},
        "max-items": {"state": "ENABLED", "variants": {"ten": 10}, "defaultVariant": "ten"},
    }}))
    .await
    .unwrap();
    let provider = provider(&service);

    OpenFeature::singleton_mut().await.set_provider(provider.clone()).await;
    let client = OpenFeature::singleton().await.create_client();
    let user = EvaluationContext::default().with_targeting_key("user-123").with_custom_field("plan", "premium");

    let dark = client.get_bool_value("dark-mode", Some(&user), None).await.unwrap_or(false);
    let welcome = client.get_string_value("welcome", Some(&user), None).await.unwrap_or("Welcome".into());
    let items = client.get_int_value("max-items", Some(&user), None).await.unwrap_or(5);
    let details = client.get_bool_details("dark-mode", Some(&user), None).await.unwrap();
    assert_eq!((dark, welcome.as_str(), items), (true, "Hi!", 10));
    assert_eq!((details.variant.as_deref(), details.reason), (Some("on"), Some(EvaluationReason::Static)));
    assert_eq!(OpenFeature::singleton().await.provider_metadata().await.name, "flipswitch");
    provider.shutdown().await;
}

#[tokio::test]
async fn registering_does_not_wait_for_the_service() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let provider = FlipswitchProvider::builder("key").base_url(url).build().unwrap();
    assert_eq!(provider.status(), ProviderStatus::NotReady);
    let client = in_time(client("silent", &provider)).await;
    assert_eq!(client.metadata().name, "silent");
    // The registration has started the provider, which sends a request without an evaluation.
    in_time(silent.accept()).await.unwrap();
    assert_eq!(provider.status(), ProviderStatus::NotReady);
    in_time(provider.shutdown()).await;
}

#[tokio::test]
async fn the_status_follows_the_service() {
    let service = LocalServer::builder().api_key("right").start().await.unwrap();
    let good = provider(&service);
    good.ready(support::PATIENCE).await.unwrap();
    assert_eq!(good.status(), ProviderStatus::Ready);
    good.shutdown().await;
    assert_eq!(good.status(), ProviderStatus::NotReady);

    let refused = FlipswitchProvider::builder("wrong").base_url(service.url()).build().unwrap();
    refused.ready(support::PATIENCE).await.unwrap_err();
    assert_eq!(refused.status(), ProviderStatus::Error);
    assert_eq!(FlipswitchProvider::in_memory(json!({})).status(), ProviderStatus::Ready);
}
