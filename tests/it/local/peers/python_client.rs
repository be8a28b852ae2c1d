//! OpenFeature's OFREP provider for Python. It sends a request for each evaluation.

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::{Value, json};

use super::common::{FAILURES, TYPED, context, default, header};
use crate::support::{driver::Driver, sample_flags};

#[tokio::test]
async fn the_python_provider_reads_every_type_of_flag() {
    let service = LocalServer::start(sample_flags()).await.unwrap();
    let mut client = Client::start(&service, json!({})).await;
    for (flag_type, key, plan, value, variant, reason) in &*TYPED {
        let details = client.details(flag_type, key, plan).await;
        assert_eq!(
            (&details["value"], &details["variant"], &details["reason"]),
            (value, &json!(variant), &json!(reason)),
            "{key}: {details}"
        );
    }
    let details = client.details("boolean", "bool", "free").await;
    assert_eq!(details["metadata"], json!({"flagType": "boolean", "owner": "web", "priority": 3}));

    for (key, error, message) in FAILURES {
        let details = client.details("boolean", key, "free").await;
        assert_eq!((&details["value"], &details["error"]), (&json!(false), &json!(error)), "{key}: {details}");
        assert!(details["message"].as_str().unwrap().contains(message), "{key}: {details}");
    }
    client.end(service).await;
}

#[tokio::test]
async fn the_python_provider_asks_for_each_evaluation() {
    let service = LocalServer::start(sample_flags()).await.unwrap();
    let mut client = Client::start(&service, json!({})).await;
    assert_eq!(client.details("boolean", "bool", "free").await["value"], true);
    let definition = json!({"state": "ENABLED", "variants": {"off": false}, "defaultVariant": "off"});
    service.set_definition("bool", definition).unwrap();
    let details = client.details("boolean", "bool", "free").await;
    assert_eq!((&details["value"], &details["variant"]), (&json!(false), &json!("off")));

    let requests = service.requests();
    let asked: Vec<_> = requests.iter().map(|request| (request.method.as_str(), request.path.as_str())).collect();
    assert_eq!(asked, [("POST", "/ofrep/v1/evaluate/flags/bool"); 2]);
    let body: Value = serde_json::from_slice(&requests[1].body).unwrap();
    assert_eq!(body, json!({"context": context("free")}));

    // It sends no request before the time that the service has named.
    service.faults().add(Fault::on(Endpoint::Single).status(429).header("retry-after", "3600").times(1)).unwrap();
    for message in ["Rate limited", "paused due to TooManyRequests"] {
        let details = client.details("boolean", "bool", "free").await;
        assert_eq!((&details["value"], &details["error"]), (&json!(false), &json!("GENERAL")), "{details}");
        assert!(details["message"].as_str().unwrap().contains(message), "{details}");
    }
    assert_eq!(service.requests().len(), 3);
    client.end(service).await;
}

#[tokio::test]
async fn the_python_provider_sends_its_key_in_either_header() {
    let service = LocalServer::builder().flags(sample_flags()).api_key("key");
    let service = service.start().await.unwrap();
    for (headers, is_accepted) in [
        (json!({"X-API-Key": "key"}), true),
        (json!({"Authorization": "Bearer key"}), true),
        (json!({"X-API-Key": "another"}), false),
        (json!({"Authorization": "Bearer another"}), false),
        (json!({}), false),
    ] {
        let mut client = Client::start(&service, headers.clone()).await;
        let details = client.details("boolean", "bool", "free").await;
        if is_accepted {
            assert_eq!(details["value"], true, "{headers}: {details}");
        } else {
            assert_eq!(details, json!({"value": false, "error": "GENERAL", "message": "unauthorized"}), "{headers}");
        }
        client.0.end().await;
    }
    let sent = service.requests();
    assert_eq!((header(&sent[0], "x-api-key"), header(&sent[1], "authorization")), ("key", "Bearer key"));
    service.shutdown().await;
}

struct Client(Driver);

impl Client {
    async fn start(service: &LocalServer, headers: Value) -> Self {
        let (driver, answer) = Driver::python("ofrep_client.py", &[&service.url(), &headers.to_string()]).await;
        assert_eq!(answer, "ready");
        Self(driver)
    }

    async fn details(&mut self, flag_type: &str, key: &str, plan: &str) -> Value {
        let (default, context) = (default(flag_type), context(plan));
        let question = json!({"ask": "details", "type": flag_type, "key": key, "default": default, "context": context});
        self.0.ask(question).await
    }

    async fn end(self, service: LocalServer) {
        self.0.end().await;
        service.shutdown().await;
    }
}
