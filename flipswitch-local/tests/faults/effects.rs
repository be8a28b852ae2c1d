//! The effects of faults on requests, connections and responses.

use std::time::{Duration, Instant};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::{Value, json};

use crate::support::{
    BULK, End, HOUR, SINGLE, STREAM, Socket, assert_responds, evaluate, header, in_time, length, service, until_applied,
};

#[tokio::test]
async fn a_fault_applies_to_its_endpoint_only() {
    let cases = [
        (Endpoint::Bulk, [true, false, false]),
        (Endpoint::Single, [false, true, false]),
        (Endpoint::Stream, [false, false, true]),
        (Endpoint::All, [true, true, true]),
    ];
    for (endpoint, expected) in cases {
        let (service, faults) = service().await;
        let id = faults.add(Fault::on(endpoint).status(503)).unwrap();
        for (path, expected) in [BULK, SINGLE, STREAM].into_iter().zip(expected) {
            let head = Socket::request(&service, path).await.head().await;
            assert_eq!(head.starts_with("http/1.1 503"), expected, "{endpoint:?} {path}: {head}");
        }
        assert_eq!(faults.applied(id), expected.into_iter().filter(|expected| *expected).count() as u64);
    }
}

#[tokio::test]
async fn faults_apply_neither_to_control_endpoints_nor_to_other_servers() {
    let (service, faults) = service().await;
    let (other, _) = self::service().await;
    faults.add(Fault::on(Endpoint::All).status(503)).unwrap();
    assert_responds(&other, BULK).await;
    let listed = reqwest::get(format!("{}/local/flags", service.url())).await.unwrap();
    assert_eq!(listed.status(), 200);
}

#[tokio::test]
async fn faults_apply_before_the_api_key_is_checked() {
    let service = LocalServer::builder().api_key("right").start().await.unwrap();
    service.faults().add(Fault::on(Endpoint::All).status(503).times(1)).unwrap();
    for expected in ["503", "401"] {
        let mut socket = Socket::open(&service).await;
        socket.send(BULK, "wrong", "").await;
        assert_eq!(socket.head().await[9..12], *expected);
    }
}

#[tokio::test]
async fn faults_apply_in_order_and_up_to_their_limits() {
    let (service, faults) = service().await;
    let first = faults.add(Fault::on(Endpoint::Bulk).status(503).after(1).times(2)).unwrap();
    let second = faults.add(Fault::on(Endpoint::All).status(429).after(1).times(1)).unwrap();
    let mut codes = Vec::new();
    for _ in 0..6 {
        let head = Socket::request(&service, BULK).await.head().await;
        codes.push(head[9..12].to_owned());
    }
    // Both faults skip the first request. Then the first applies twice, the second once, and both are exhausted.
    assert_eq!(codes, ["200", "503", "503", "429", "200", "200"]);
    let active = faults.active();
    let counted: Vec<_> = active.iter().map(|fault| (fault.id, fault.applied, fault.remaining)).collect();
    assert_eq!(counted, [(first, 2, Some(0)), (second, 1, Some(0))]);
    assert_eq!(service.requests().len(), 6, "requests are recorded whether a fault applied or not");

    let endless = faults.add(Fault::on(Endpoint::Bulk).status(500)).unwrap();
    assert_eq!(faults.active()[2].remaining, None);
    assert!(Socket::request(&service, BULK).await.head().await.starts_with("http/1.1 500"));
    assert!(faults.remove(endless) && !faults.remove(endless));
    assert_responds(&service, BULK).await;
    assert_eq!(faults.active().len(), 2);
    faults.clear();
    assert_eq!(faults.active(), []);
}

#[tokio::test]
async fn responses_have_the_status_headers_and_body_of_the_fault() {
    let (service, faults) = service().await;
    let on = Fault::on(Endpoint::All);
    let cases = [
        (on.status(429).header("Retry-After", "7"), "http/1.1 429", vec!["retry-after: 7\r\n"], ""),
        (on.status(503).body("down"), "http/1.1 503", vec![], "down"),
        (on.status(200).header("content-type", "text/html").body("<p>"), "http/1.1 200", vec!["text/html\r\n"], "<p>"),
        (on.status(401), "http/1.1 401", vec![], ""),
        (on.status(404).html("<p>"), "http/1.1 404", vec!["content-type: text/html\r\n"], "<p>"),
        (
            on.status(403).json(json!({"a": 1})),
            "http/1.1 403",
            vec!["content-type: application/json\r\n"],
            r#"{"a":1}"#,
        ),
        (on.status(404).text("none"), "http/1.1 404", vec!["content-type: text/plain\r\n"], "none"),
        (on.redirect(302, "http://elsewhere/"), "http/1.1 302", vec!["location: http://elsewhere/\r\n"], ""),
        (on.garbage("{]").content_type("x/y"), "http/1.1 200", vec!["content-type: x/y\r\n"], "{]"),
    ];
    for (fault, status, headers, body) in cases {
        let id = faults.add(fault).unwrap();
        for path in [BULK, STREAM] {
            let mut socket = Socket::request(&service, path).await;
            let head = socket.head().await;
            assert!(head.starts_with(status), "{head}");
            for header in &headers {
                assert!(head.contains(header), "{header} in {head}");
            }
            assert_eq!(socket.body(&head).await, body);
        }
        faults.remove(id);
    }
    let empty = faults.add(on.status(204).body("never sent")).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    assert!(socket.head().await.starts_with("http/1.1 204"));
    socket.assert_quiet();
    faults.remove(empty);
    // The connection stays usable.
    socket.send(BULK, "any", "").await;
    assert!(socket.head().await.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn garbage_has_the_content_type_of_the_endpoint() {
    let (service, faults) = service().await;
    faults.add(Fault::on(Endpoint::All).garbage([0xff, 0x00])).unwrap();
    for (path, content_type) in
        [(BULK, "application/json"), (SINGLE, "application/json"), (STREAM, "text/event-stream")]
    {
        let mut socket = Socket::request(&service, path).await;
        assert!(socket.head().await.contains(&format!("content-type: {content_type}\r\n")));
        socket.send("/ofrep/v1/elsewhere", "", "connection: close\r\n").await;
        assert!(socket.end().await.0.starts_with(&[0xff, 0x00]), "{path}");
    }
}

#[tokio::test]
async fn a_fault_replaces_the_content_type() {
    let (service, faults) = service().await;
    let normal = assert_responds(&service, BULK).await;
    faults.add(Fault::on(Endpoint::All).content_type("text/html")).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    let head = socket.head().await;
    assert!(head.contains("content-type: text/html\r\n") && !head.contains("application/json"), "{head}");
    assert_eq!(socket.body(&head).await, normal);
    let mut stream = Socket::request(&service, STREAM).await;
    assert!(stream.head().await.contains("content-type: text/html\r\n"));
    service.set_flag("a", 1);
    stream.until("flag-updated").await;
}

#[tokio::test]
async fn one_flag_fails_for_some_contexts() {
    let (service, faults) = service().await;
    service.set_flag("b", 2);
    let items = async |context: Value| -> Value {
        let (status, _, body) = evaluate(&service, "", context).await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    };
    let well = items(json!({})).await;
    let fails = Fault::on(Endpoint::Bulk).flag_error("b", "GENERAL").for_targeting_key("u").times(1);
    let id = faults.add(fails).unwrap();
    assert_eq!(items(json!({})).await, well);
    let failed = items(json!({"targetingKey": "u"})).await;
    assert_eq!(failed["flags"][0], well["flags"][0], "the other flag has its value");
    assert_eq!(failed["flags"][1], json!({"key": "b", "errorCode": "GENERAL", "errorDetails": "simulated by a fault"}));
    assert_eq!(failed["flags"].as_array().unwrap().len(), 2);
    assert_eq!(items(json!({"targetingKey": "u"})).await, well, "once only");
    faults.remove(id);

    // The tag is the tag of the response.
    let tag = header(&evaluate(&service, "", json!({})).await.1, "etag").unwrap().to_owned();
    faults.add(Fault::on(Endpoint::Bulk).flag_error("missing", "PARSE_ERROR")).unwrap();
    let (status, _, body) = evaluate(&service, &format!("if-none-match: {tag}\r\n"), json!({})).await;
    assert!(status == 200 && body.contains(r#""errorCode":"PARSE_ERROR""#) && body.contains(r#""value":2"#), "{body}");
}

#[tokio::test]
async fn a_delay_ends_when_the_fault_is_removed() {
    let (service, faults) = service().await;
    let normal = assert_responds(&service, BULK).await;
    let delay = Duration::from_millis(50);
    let short = faults.add(Fault::on(Endpoint::Bulk).delay(delay).times(1)).unwrap();
    let begun = Instant::now();
    assert_eq!(assert_responds(&service, BULK).await, normal);
    assert!(begun.elapsed() >= delay);
    assert_eq!(faults.applied(short), 1);

    let long = faults.add(Fault::on(Endpoint::Bulk).delay(HOUR).times(1)).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    until_applied(&faults, long, 1).await;
    assert_responds(&service, BULK).await;
    socket.assert_quiet();
    faults.clear();
    let head = socket.head().await;
    assert_eq!(socket.body(&head).await, normal);
}

#[tokio::test]
async fn a_request_that_hangs_is_closed_when_the_fault_is_removed() {
    let (service, faults) = service().await;
    for path in [BULK, STREAM] {
        let id = faults.add(Fault::on(Endpoint::All).hang().times(1)).unwrap();
        let socket = Socket::request(&service, path).await;
        until_applied(&faults, id, 1).await;
        assert_responds(&service, path).await;
        socket.assert_quiet();
        faults.remove(id);
        assert_eq!(socket.end().await, (vec![], End::Closed), "{path}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_connection_with_unread_data_is_closed_with_a_fin() {
    let (service, faults) = service().await;
    let id = faults.add(Fault::on(Endpoint::All).hang()).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    until_applied(&faults, id, 1).await;
    socket.send(BULK, "any", &format!("x: {}\r\n", "y".repeat(100_000))).await;
    faults.clear();
    assert_eq!(socket.end().await, (vec![], End::Closed));
}

#[tokio::test]
async fn connections_end_without_a_response() {
    let on = Fault::on(Endpoint::All);
    for (fault, end) in [(on.close(), End::Closed), (on.reset(), End::Reset)] {
        let (service, faults) = service().await;
        let id = faults.add(fault).unwrap();
        for path in [BULK, SINGLE, STREAM] {
            let socket = Socket::request(&service, path).await;
            assert_eq!(socket.end().await, (vec![], end), "{path}");
        }
        assert_eq!(faults.applied(id), 3);
        assert_eq!(service.requests().len(), 3);
    }
}

#[tokio::test]
async fn connections_end_before_anything_is_read() {
    let on = Fault::on(Endpoint::Connections);
    for (fault, end) in [(on.close(), End::Closed), (on.reset(), End::Reset)] {
        let (service, faults) = service().await;
        let mut before = Socket::open(&service).await;
        before.send(BULK, "any", "").await;
        before.head().await;
        let id = faults.add(fault.times(2)).unwrap();
        for _ in 0..2 {
            // The client sends nothing.
            assert_eq!(Socket::open(&service).await.end().await, (vec![], end));
        }
        assert_responds(&service, BULK).await;
        assert_eq!(faults.applied(id), 2);
        before.send(SINGLE, "any", "").await;
        before.until("HTTP/1.1 200").await;
    }
    let (service, faults) = service().await;
    faults.add(on.close()).unwrap();
    // The client has already sent a request.
    assert_eq!(Socket::request(&service, BULK).await.end().await.0, b"");
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn a_new_connection_hangs() {
    let (service, faults) = service().await;
    let id = faults.add(Fault::on(Endpoint::Connections).hang().times(1)).unwrap();
    let socket = Socket::request(&service, BULK).await;
    until_applied(&faults, id, 1).await;
    assert_responds(&service, BULK).await;
    socket.assert_quiet();
    assert_eq!(service.requests().len(), 1, "the request that hangs was not read");
    faults.clear();
    assert_eq!(socket.end().await, (vec![], End::Closed));
}

#[tokio::test]
async fn a_response_is_cut_off_in_its_body() {
    let (service, faults) = service().await;
    let whole = assert_responds(&service, BULK).await;
    for (bytes, expected) in [(0, 0), (10, 10), (whole.len(), whole.len()), (1 << 20, whole.len())] {
        let on = Fault::on(Endpoint::Bulk);
        for (fault, end) in [(on.close(), End::Closed), (on.reset(), End::Reset), (on.half_open(), End::Closed)] {
            let halts = fault == on.half_open();
            let id = faults.add(fault.after_bytes(bytes as u64).times(1)).unwrap();
            let mut socket = Socket::request(&service, BULK).await;
            let head = socket.head().await;
            assert_eq!(length(&head), whole.len(), "the head announces the whole body");
            assert_eq!(socket.bytes(expected).await, whole[..expected]);
            if halts {
                // Requests on a silent connection are not read.
                socket.send(BULK, "any", "").await;
                assert_responds(&service, BULK).await;
                socket.assert_quiet();
                faults.remove(id);
            }
            assert_eq!(socket.end().await, (vec![], end), "{bytes}");
        }
    }
}

#[tokio::test]
async fn a_large_response_is_cut_off_at_the_exact_byte() {
    let big = "x".repeat(6 << 20);
    let service = LocalServer::start(serde_json::json!({ "a": big })).await.unwrap();
    service.faults().add(Fault::on(Endpoint::Bulk).close().after_bytes(5 << 20)).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    socket.head().await;
    let (body, end) = socket.end().await;
    assert_eq!((body.len(), end), (5 << 20, End::Closed));
}

#[tokio::test]
async fn effects_on_the_body_prevent_not_modified_responses() {
    let (service, faults) = service().await;
    let mut socket = Socket::request(&service, BULK).await;
    let head = socket.head().await;
    socket.body(&head).await;
    let tag = head.split("etag: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let held = format!("if-none-match: {tag}\r\n");
    let id = faults.add(Fault::on(Endpoint::Bulk).delay(Duration::ZERO)).unwrap();
    socket.send(BULK, "any", &held).await;
    let head = socket.head().await;
    assert!(head.starts_with("http/1.1 304") && !head.contains("content-length"), "a delay changes nothing: {head}");
    assert!(faults.remove(id));
    faults.add(Fault::on(Endpoint::Bulk).close().after_bytes(1)).unwrap();
    socket.send(BULK, "any", &held).await;
    assert!(socket.head().await.starts_with("http/1.1 200"));
    assert_eq!(socket.end().await, (b"{".to_vec(), End::Closed));
}

#[tokio::test]
async fn a_body_trickles() {
    let (service, faults) = service().await;
    let whole = assert_responds(&service, BULK).await;
    let id = faults.add(Fault::on(Endpoint::Bulk).trickle(4, HOUR)).unwrap();
    let mut socket = Socket::request(&service, BULK).await;
    let head = socket.head().await;
    assert_eq!(length(&head), whole.len());
    assert_eq!(socket.bytes(4).await, whole[..4]);
    assert_responds(&service, SINGLE).await;
    socket.assert_quiet();
    faults.remove(id);
    assert_eq!(socket.bytes(whole.len() - 4).await, whole[4..]);

    let every = Duration::from_millis(1);
    faults.add(Fault::on(Endpoint::Bulk).trickle(8, every)).unwrap();
    let begun = Instant::now();
    assert_eq!(assert_responds(&service, BULK).await, whole);
    assert!(begun.elapsed() >= every * u32::try_from(whole.len() / 8).unwrap());
}

#[tokio::test]
async fn faults_do_not_delay_shutdown() {
    let on = Fault::on(Endpoint::All);
    let faults = [
        (on.hang(), 0, "hang"),
        (on.half_open(), 1, "half-open"),
        (on.half_open().after_bytes(1 << 20), 1, "half-open at the end"),
        (on.delay(HOUR), 1, "delay"),
        (on.trickle(1, HOUR), 1, "trickle"),
        (on.delay(HOUR).concurrency(1), 1, "delay with a limit"),
        (Fault::on(Endpoint::Connections).hang(), 0, "connections"),
    ];
    for (fault, heads, name) in faults {
        for path in [BULK, STREAM] {
            let (service, faults) = service().await;
            let id = faults.add(fault.clone()).unwrap();
            let mut socket = Socket::request(&service, path).await;
            until_applied(&faults, id, 1).await;
            let begun = Instant::now();
            in_time(service.shutdown()).await;
            // Connections that do not end by themselves are aborted after 2 s.
            assert!(begun.elapsed() < Duration::from_secs(2), "{name} {path}");
            for _ in 0..heads {
                assert!(socket.head().await.starts_with("http/1.1 200"), "{name} {path}");
            }
            socket.end().await;
        }
    }
}

#[tokio::test]
async fn errors_of_invalid_faults_name_the_field() {
    let on = Fault::on(Endpoint::Bulk);
    let connections = Fault::on(Endpoint::Connections);
    let cases = [
        (on.status(1000), "effect.status.code: 1000"),
        (on.status(101), "effect.status.code: 101"),
        (on.status(200).header("a b", "c"), "effect.status.headers: \"a b\""),
        (on.status(200).header("a", "b\n"), "effect.status.headers: \"b\\n\""),
        (on.status(200).header("Content-Length", "7"), "effect.status.headers: \"content-length\""),
        (on.redirect(200, "/"), "effect.redirect.code: 200"),
        (on.redirect(301, "\n"), "effect.redirect.location: "),
        (on.content_type("\n"), "effect.contentType: "),
        (on.garbage("").content_type("\n"), "effect.garbage.contentType: "),
        (on.trickle(0, HOUR), "effect.trickle.bytes: "),
        (on.hang().times(0), "times: "),
        (on.hang().header("a", "b"), "headers: "),
        (on.hang().body("a"), "body: "),
        (on.hang().after_bytes(1), "afterBytes: "),
        (on.hang().content_type("a"), "contentType: "),
        (on.hang().concurrency(1), "concurrency: "),
        (on.half_open().after_time(HOUR), "afterMillis: "),
        (on.delay(HOUR).concurrency(0), "effect.delay.concurrency: 0"),
        (on.rate_limit(10_001), "effect.rateLimit.perSecond: 10001"),
        (
            (0..101).fold(on.status(200), |fault, number| fault.header(&format!("x-{number}"), "a")),
            "effect.status.headers: has 101 entries",
        ),
        (on.rate_limit(1).header("a b", "c"), "effect.rateLimit.headers: \"a b\""),
        (on.finish(), "on: "),
        (on.reset().after_time(HOUR), "on: "),
        (Fault::on(Endpoint::Stream).close().after_bytes(1).after_time(HOUR), "effect.close: "),
        (Fault::on(Endpoint::Single).flag_error("a", "GENERAL"), "on: "),
        (Fault::on(Endpoint::All).not_modified(), "on: must be bulk for the effect notModified"),
        (on.no_replay(), "on: must be stream for the effect noReplay"),
        (Fault::on(Endpoint::All).split_events(), "on: must be stream for the effect splitEvents"),
        (Fault::on(Endpoint::Stream).no_replay().header("a", "b"), "headers: "),
        (connections.half_open().after_bytes(1), "effect: "),
        (connections.finish(), "effect: "),
        (on.no_heartbeats(), "on: "),
        (connections.status(500), "effect: "),
        (connections.close().after_bytes(1), "effect: "),
    ];
    let (service, faults) = service().await;
    for (fault, expected) in cases {
        let error = faults.add(fault).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert_eq!(faults.active(), []);
    assert_responds(&service, BULK).await;
}

#[tokio::test]
async fn requests_with_a_tag_are_not_modified_whatever_has_changed() {
    let (service, faults) = service().await;
    let fault = faults.add(Fault::on(Endpoint::Bulk).not_modified().times(2)).unwrap();
    service.set_flag("a", "changed");
    for tag in ["\"outdated\"", "W/\"outdated\""] {
        let (status, head, body) = evaluate(&service, &format!("if-none-match: {tag}\r\n"), json!({})).await;
        assert_eq!((status, header(&head, "etag"), body.as_str()), (304, Some(tag.to_lowercase().as_str()), ""));
        let (status, _, body) = evaluate(&service, "", json!({})).await;
        assert!(status == 200 && body.contains("changed"), "without a tag, the endpoint responds: {body}");
    }
    assert_eq!(faults.applied(fault), 2, "requests without a tag do not count");
    assert_eq!(evaluate(&service, "if-none-match: \"outdated\"\r\n", json!({})).await.0, 200);
}

#[tokio::test]
async fn exhausted_faults_make_room_for_new_ones() {
    let (service, faults) = service().await;
    let once = faults.add(Fault::on(Endpoint::Bulk).status(500).times(1)).unwrap();
    for _ in 1..1024 {
        faults.add(Fault::on(Endpoint::Single).status(500)).unwrap();
    }
    let another = || Fault::on(Endpoint::Single).status(500);
    assert!(faults.add(another()).unwrap_err().to_string().contains("1024"));
    assert!(Socket::request(&service, BULK).await.head().await.starts_with("http/1.1 500"));
    assert!(faults.add(another()).is_ok());
    assert!(faults.active().iter().all(|fault| fault.id != once));
    let json: Value = serde_json::to_value(&faults.active()[0]).unwrap();
    assert_eq!(json["id"], 2);
}
