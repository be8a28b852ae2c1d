//! Malformed and unusual bytes on the stream.

use std::time::Duration;

use flipswitch::ConnectionStatus;
use flipswitch_local::{Endpoint, Fault};
use futures_util::future::join_all;

use crate::support::{
    self, eventually,
    faults::{CHANGED, Kind, Mute, Row, Service, service},
};

/// None of these bytes closes the stream, hides the change that follows, or causes a panic.
#[tokio::test]
async fn malformed_bytes_do_not_end_the_stream() {
    let after = |odd: &[u8]| [odd, CHANGED].concat();
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("a byte-order mark", after(b"\xef\xbb\xbf")),
        ("two marks, of which the second belongs to a field's name", after(b"\xef\xbb\xbf\xef\xbb\xbf:\n")),
        ("a NUL", after(b"data: \0\n\n")),
        ("a NUL in an id", after(b"id: 1\x002\n\n")),
        ("an id beyond ASCII", after("id: \u{1f600}\n\n".as_bytes())),
        ("an empty id", after(b"id\n\n")),
        ("no wait at all", after(b"retry: 0\n")),
        ("a wait for ever", after(b"retry: 1000000000000000000\n")),
        ("a wait that is no number", after(b"retry: -1\nretry: soon\nretry:\nretry\n")),
        ("invalid UTF-8 in a comment", after(b":\xff\xfe\n\n")),
        ("invalid UTF-8 in an event's name", after(b"event: \xc3\x28\ndata: {}\n\n")),
        ("invalid UTF-8 in the data", b"event: flag-updated\ndata: {\"flagKey\":\"\xff\xfe\"}\n\n".to_vec()),
        ("half a character at the end of a line", b"event: config-updated\ndata: {\"reason\":\"\xe2\x82\n\n".to_vec()),
        ("data that is no JSON", b"event: flag-updated\ndata: {\n\n".to_vec()),
        ("data of another shape", b"event: flag-updated\ndata: [1]\n\n".to_vec()),
        ("no key", b"event: flag-updated\ndata: {}\n\n".to_vec()),
        ("a key that is none", b"event: flag-updated\ndata: {\"flagKey\":7}\n\n".to_vec()),
        (
            "data that is nested deeply",
            [b"event: flag-updated\ndata: ", "[".repeat(100_000).as_bytes(), b"\n\n"].concat(),
        ),
        ("an unknown event", after(b"event: flag-exploded\ndata: {}\n\n")),
        ("lines that are no fields", after(b"HTTP/1.1 200 OK\r\nfoo\n\n")),
        ("many empty lines", after(&b"\r\n".repeat(10_000))),
        ("carriage returns alone", b"event: config-updated\rdata: {}\r\r:\n".to_vec()),
        ("carriage returns and line feeds", b"event: config-updated\r\ndata: {}\r\n\r\n".to_vec()),
    ];
    join_all(rows.into_iter().map(async |(name, bytes)| {
        let service = Mute::start().await;
        let row = Row::new(service.builder()).named(name);
        row.opens(&service.service, 1).await;
        service.set(2);
        service.say(bytes);
        row.sees(2).await;
        // The stream continues.
        service.set(3);
        service.say(CHANGED);
        row.sees(3).await;
        row.ends("connecting connected", service.service.asked()).await;
    }))
    .await;
}

/// Events are parsed by the rules of event streams: data of several lines, every line ending, chunks of any size. The
/// name of one event does not carry over to the next.
#[tokio::test]
async fn events_are_parsed_regardless_of_how_they_are_split() {
    let update = |key: &str| format!("event: flag-updated\ndata: {{\"flagKey\":\"{key}\"}}\n\n");
    let end = update("end");
    let (a, b) = (update("a"), update("b"));
    let rows: Vec<(String, &[&str])> = vec![
        (format!("{a}{b}{end}"), &["a", "b"]),
        (format!("{a}{b}{end}").replace('\n', "\r\n"), &["a", "b"]),
        (format!("{a}{b}{end}:\n").replace('\n', "\r"), &["a", "b"]),
        (format!("event: flag-updated\ndata: {{\"flagKey\":\ndata: \"a\"\ndata: }}\n\n{end}"), &["a"]),
        // This event has no name.
        (format!("{a}data: {{\"flagKey\":\"b\"}}\n\n{end}"), &["a"]),
        // A name without data is not an event, and does not apply to the next event.
        (format!("event: flag-updated\n\ndata: {{\"flagKey\":\"b\"}}\n\n{end}"), &[]),
        (format!("event:flag-updated\ndata:{{\"flagKey\":\"a\"}}\n\n{end}"), &["a"]),
        (format!("data: {{\"flagKey\":\"a\"}}\nid: 7\nevent: flag-updated\n\n{end}"), &["a"]),
        (format!(": {a}\n\n{b}{end}"), &["b"]),
        // If an event has several names, the last one is used.
        (format!("event: heartbeat\n{a}{end}"), &["a"]),
    ];
    join_all(rows.iter().map(async |(bytes, expected)| {
        for in_pieces in [false, true] {
            let service = Mute::start().await;
            let row = Row::new(service.builder());
            row.opens(&service.service, 1).await;
            if in_pieces {
                for byte in bytes.bytes() {
                    service.say([byte]);
                    // The channel is short, and each chunk must be sent separately.
                    eventually(async || service.pieces.is_empty()).await;
                }
            } else {
                service.say(bytes.as_bytes());
            }
            row.hears_of("end").await;
            let heard: Vec<_> = row.changes.lock().unwrap().iter().flatten().cloned().collect();
            assert_eq!(heard[..heard.len() - 1], **expected, "{bytes:?}");
            row.ends("connecting connected", service.service.asked()).await;
        }
    }))
    .await;
}

/// The provider requests no encoding, so it reads the stream unchanged and ignores `Content-Encoding`.
#[tokio::test]
async fn a_wrong_content_encoding_of_the_stream_is_ignored() {
    let service = Mute::with_head("content-encoding: gzip\r\n").await;
    let row = Row::new(service.builder());
    row.opens(&service.service, 1).await;
    assert!(
        service
            .service
            .received()
            .iter()
            .filter(|request| request.method == "GET")
            .all(|request| { request.header("accept-encoding") == Some("identity") })
    );
    service.set(2);
    service.say(CHANGED);
    row.sees(2).await;
    row.ends("connecting connected", service.service.asked()).await;
}

/// `Last-Event-ID` is the last valid id. An id with a NUL is ignored. An id that is too long ends the stream and
/// does not replace an earlier one.
#[tokio::test]
async fn only_valid_event_ids_are_sent_back() {
    let long = "7".repeat(1_025);
    let rows = [
        ("id: 1\n\n".to_owned(), Some("1"), true),
        ("id: 1\n\nid: 1\x002\n\n".to_owned(), Some("1"), true),
        ("id: 1\x002\n\n".to_owned(), None, true),
        ("id: 1\n\nid\n\n".to_owned(), None, true),
        (format!("id: {}\n\n", &long[1..]), Some(&long[1..]), true),
        (format!("id: 1\ndata: {{}}\n\nid: {long}\n\n"), Some("1"), false),
    ];
    join_all(rows.into_iter().map(async |(bytes, expected, stays)| {
        let service = Mute::start().await;
        let row = Row::new(service.builder()).named(&bytes);
        row.opens(&service.service, 1).await;
        service.set(2);
        service.say(bytes.clone());
        if stays {
            // Once the effect of the next event is visible, the id has been read.
            service.say(CHANGED);
            row.sees(2).await;
        } else {
            row.shows(ConnectionStatus::Error).await;
        }
        row.reconnect();
        row.eventually("asked anew", async || service.service.asked_for(Kind::Stream).len() == 2).await;
        let requests = service.service.received();
        let again = requests.iter().rfind(|request| request.method == "GET").unwrap();
        assert_eq!(again.header("last-event-id"), expected, "{bytes:?}");
        row.shows(ConnectionStatus::Connected).await;
        row.sees(2).await;
        // Changes arrive as before.
        service.set(3);
        service.say(CHANGED);
        row.sees(3).await;
        let left = if stays { "" } else { " error connecting connected" };
        row.ends(&format!("connecting connected{left}"), service.service.asked()).await;
    }))
    .await;
}

/// Bytes that arrive one by one are read in the same way as bytes that arrive together.
#[tokio::test]
async fn a_trickling_stream_is_read() {
    let service = service(1).await;
    service.faults().add(Fault::on(Endpoint::Stream).trickle(1, Duration::from_millis(1))).unwrap();
    let row = Row::new(support::builder(&service));
    row.opens(&service, 1).await;
    service.set_flag("f", 2);
    row.hears_of("f").await;
    row.sees(2).await;
    row.ends("connecting connected", service.asked()).await;
}
