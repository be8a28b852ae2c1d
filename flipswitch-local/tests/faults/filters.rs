//! Faults that apply only to some contexts and requests.

use flipswitch_local::{Endpoint, Fault};
use serde_json::{Value, json};

use crate::support::{BULK, SINGLE, STREAM, Socket, assert_responds, evaluate, header, service};

const NONE: &str = "";

fn key(key: &str) -> Value {
    json!({ "targetingKey": key })
}

#[tokio::test]
async fn a_fault_applies_to_its_contexts_only() {
    let on = || Fault::on(Endpoint::Bulk).status(500);
    let cases = [
        (on().for_targeting_key("poison"), [500, 200, 200, 200]),
        (on().for_targeting_key("poison").for_targeting_key("_init_"), [500, 500, 200, 200]),
        (on().except_targeting_key("_init_"), [500, 200, 500, 500]),
        (on().for_attribute("plan"), [200, 200, 500, 500]),
        (on().for_attribute_value("plan", "premium"), [200, 200, 500, 200]),
        (on().for_attribute_value("plan", "premium").except_targeting_key("u"), [200; 4]),
    ];
    let contexts =
        [key("poison"), key("_init_"), json!({"targetingKey": "u", "plan": "premium"}), json!({"plan": "free"})];
    let (service, faults) = service().await;
    for (fault, expected) in cases {
        let id = faults.add(fault.clone()).unwrap();
        for (context, expected) in contexts.iter().zip(expected) {
            assert_eq!(evaluate(&service, NONE, context.clone()).await.0, expected, "{fault:?} {context}");
        }
        let applied = expected.into_iter().filter(|status| *status == 500).count();
        assert_eq!(faults.applied(id), applied as u64, "other requests are not counted");
        faults.remove(id);
    }
}

#[tokio::test]
async fn faults_for_contexts_are_skipped_and_limited_by_their_own_requests() {
    let (service, faults) = service().await;
    faults.add(Fault::on(Endpoint::Bulk).status(500).for_targeting_key("a").after(1).times(1)).unwrap();
    faults.add(Fault::on(Endpoint::Bulk).status(503).for_targeting_key("b")).unwrap();
    let mut codes = Vec::new();
    for user in ["c", "a", "b", "c", "a", "b", "a"] {
        codes.push(evaluate(&service, NONE, key(user)).await.0);
    }
    assert_eq!(codes, [200, 200, 503, 200, 500, 503, 200]);
}

#[tokio::test]
async fn faults_for_contexts_apply_to_no_streams() {
    let (service, faults) = service().await;
    let mut open = Socket::open_stream(&service).await;
    let none = [
        Fault::on(Endpoint::All).half_open().except_targeting_key("a"),
        Fault::on(Endpoint::All).half_open().if_none_match(false),
    ];
    for fault in none {
        let id = faults.add(fault).unwrap();
        let mut later = Socket::open_stream(&service).await;
        assert_eq!(faults.applied(id), 0);
        service.set_flag("a", 1);
        open.until("flag-updated").await;
        later.until("flag-updated").await;
        let request = Socket::request(&service, SINGLE).await.head().await;
        assert!(request.starts_with("http/1.1 200"), "{request}");
        assert_eq!(faults.applied(id), 1);
        faults.remove(id);
    }
    for endpoint in [Endpoint::Stream, Endpoint::Connections] {
        let error = faults.add(Fault::on(endpoint).hang().for_targeting_key("a").times(1)).unwrap_err();
        assert!(error.to_string().starts_with("when: "), "{error}");
    }
    assert_responds(&service, STREAM).await;
}

#[tokio::test]
async fn a_fault_applies_to_requests_with_a_tag_only() {
    let (service, faults) = service().await;
    let tag = header(&evaluate(&service, NONE, json!({})).await.1, "etag").unwrap().to_owned();
    let tagged = format!("if-none-match: {tag}\r\n");
    let statuses =
        async || (evaluate(&service, NONE, json!({})).await.0, evaluate(&service, &tagged, json!({})).await.0);
    assert_eq!(statuses().await, (200, 304));
    let with = faults.add(Fault::on(Endpoint::Bulk).status(412).if_none_match(true)).unwrap();
    assert_eq!(statuses().await, (200, 412));
    faults.remove(with);
    faults.add(Fault::on(Endpoint::Bulk).status(500).if_none_match(false)).unwrap();
    assert_eq!(statuses().await, (500, 304));
}

#[tokio::test]
async fn lists_of_a_filter_are_limited() {
    let (service, faults) = service().await;
    let full = (0..100).fold(Fault::on(Endpoint::Bulk).status(500), |fault, user| {
        let user = format!("user-{user}");
        fault.for_targeting_key(&user).except_targeting_key(&user).for_attribute(&user)
    });
    let cases = [
        (full.clone().for_targeting_key("a"), "when.targetingKeys: has 101 entries"),
        (full.clone().except_targeting_key("a"), "when.exceptTargetingKeys: has 101 entries"),
        (full.clone().for_attribute("a"), "when.attributes: has 101 entries"),
        (Fault::on(Endpoint::Bulk).hang().for_attribute_value("a", Value::Null), "when.attributes: the value of \"a\""),
    ];
    for (fault, expected) in cases {
        let error = faults.add(fault).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    faults.add(full).unwrap();
    assert_responds(&service, BULK).await;
}
