//! Proxies and services that reject a request because of its `If-None-Match`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::support::{
    in_time,
    scripted::{Reply, Scripted},
    unattended, user,
};

#[tokio::test]
async fn a_request_that_is_rejected_for_its_tag_is_repeated_without_it() {
    for status in [400, 403, 409, 412, 428] {
        let version = Arc::new(AtomicI64::new(1));
        let served = Arc::clone(&version);
        let service = Scripted::start(move |request, _| match request.header("if-none-match") {
            Some(_) => Reply::status(status, "rejected"),
            None => {
                let flag = json!({"key": "f", "value": served.load(Ordering::Acquire)});
                Reply::json(json!({"flags": [flag]})).with("etag", "\"tag\"")
            }
        })
        .await;
        // Flags are out of date immediately.
        let provider = unattended(service.url(), Duration::from_millis(1)).build().unwrap();
        let users: Vec<_> = ["a", "b", "c", "d"].map(user).into();
        for user in &users {
            assert_eq!(in_time(provider.flags(user)).await.int("f", 0), 1, "{status}");
        }
        version.store(2, Ordering::Release);
        for known in &users {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let flags = in_time(provider.flags(known)).await;
            assert_eq!((flags.int("f", 0), flags.is_stale()), (2, false), "{status}: {:?}", flags.error());
        }
        let flags = in_time(provider.flags(&user("new"))).await;
        assert_eq!((flags.int("f", 0), flags.error().is_none()), (2, true), "{status}: others are not affected");
        // After three contexts, no tags are sent.
        let received = service.received();
        let tagged = |id: &str| {
            let of = received.iter().filter(|request| request.body.contains(&format!("\"{id}\"")));
            of.filter(|request| request.header("if-none-match").is_some()).count()
        };
        assert_eq!(["a", "b", "c", "d"].map(tagged), [1, 1, 1, 0], "{status}");
        provider.shutdown().await;
    }
}

/// A cache between the provider and the service confirms a tag that the provider has not sent.
#[tokio::test]
async fn a_304_for_another_tag_is_ignored() {
    let service = Scripted::start(|request, _| match request.header("if-none-match") {
        Some(_) => Reply::status(304, "").with("etag", "\"newer\""),
        None => Reply::json(json!({"flags": [{"key": "f", "value": 1}]})).with("etag", "\"tag\""),
    })
    .await;
    let provider = unattended(service.url(), Duration::from_millis(1)).build().unwrap();
    in_time(provider.flags(&user("u"))).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let flags = in_time(provider.flags(&user("u"))).await;
    assert_eq!((flags.int("f", 0), flags.is_stale()), (1, false), "{:?}", flags.error());
    let tagged: Vec<_> = service.received().iter().map(|request| request.header("if-none-match").is_some()).collect();
    assert!(
        tagged.windows(2).any(|pair| pair == [true, false]),
        "the request must be repeated without the tag: {tagged:?}"
    );
    provider.shutdown().await;
}
