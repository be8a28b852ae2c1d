//! Tests how streams are decoded, from the socket to the messages. The cases here are written from the HTML standard. If
//! `FLIPSWITCH_SSE_CASES` names a file, a corpus from outside this repository is tested as well.

use std::{fmt::Write as _, num::NonZeroUsize, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::decoder::{Decoder, Message};
use crate::{
    config::{BaseUrl, Config},
    wire::transport::{StreamSource, Transport},
};

/// What a server sends, and the expected result.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    /// The bytes sent, in base64.
    chunks: Vec<String>,
    /// How many times each chunk is sent.
    #[serde(default)]
    repeat: Vec<usize>,
    expect: Vec<Expected>,
    #[serde(default)]
    initial_last_event_id: Option<String>,
    #[serde(default)]
    last_event_id: Option<String>,
    /// The last wait that the stream specified, in milliseconds.
    #[serde(default)]
    retry: Option<serde_json::Number>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    event: String,
    /// The last id after the event.
    id: String,
    data: Option<String>,
    /// Length and hash of data that is too large for the file.
    data_len: Option<usize>,
    data_sha256: Option<String>,
}

/// How the stream is split into pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pieces {
    AsWritten,
    Bytes,
    One,
}

/// What was decoded.
#[derive(Debug, Default)]
struct Read {
    /// Name, data, and the last id after each event.
    events: Vec<(String, String, String)>,
    last_id: String,
    retry: Option<Duration>,
}

/// Sends chunks over a socket, and decodes them as the provider does.
async fn read(chunks: Vec<Vec<u8>>, initial: Option<&str>, pieces: Pieces) -> Read {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.set_nodelay(true).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(connection.read_buf(&mut head).await.unwrap(), 0);
        }
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
        match pieces {
            Pieces::One => connection.write_all(&chunks.concat()).await.unwrap(),
            Pieces::AsWritten | Pieces::Bytes => {
                for chunk in chunks {
                    connection.write_all(&chunk).await.unwrap();
                }
            }
        }
        String::from_utf8(head).unwrap()
    });
    let config = Config::of_service(BaseUrl::new(&url).unwrap());
    let mut events = Transport::new(&config).unwrap().events(&StreamSource::Own, initial).await.unwrap();
    let mut decoder = Decoder::with_limit(initial.map(Arc::from), NonZeroUsize::new(16 << 20).unwrap());
    let mut read = Read::default();
    while let Some(mut chunk) = events.chunk().await.unwrap() {
        // A socket may merge or split what was written, so the pieces are made here.
        let piece = if pieces == Pieces::Bytes { 1 } else { chunk.len() };
        while !chunk.is_empty() {
            take(&mut decoder, chunk.split_to(piece), &mut read);
        }
    }
    let head = server.await.unwrap();
    let sent = head.lines().find_map(|line| line.strip_prefix("last-event-id: "));
    assert_eq!(sent, initial.filter(|id| !id.is_empty()));
    read.last_id = decoder.last_id().map(ToString::to_string).unwrap_or_default();
    read
}

fn take(decoder: &mut Decoder, mut bytes: Bytes, read: &mut Read) {
    while let Some(message) = decoder.next(&mut bytes) {
        let id = decoder.last_id().map(ToString::to_string).unwrap_or_default();
        match message.unwrap() {
            Message::Event { event, data } => read.events.push((event, data, id)),
            Message::Retry(wait) => read.retry = Some(wait),
        }
    }
}

impl Case {
    async fn run(&self) {
        let decoded = self.chunks.iter().map(|chunk| BASE64_STANDARD.decode(chunk).unwrap());
        let chunks: Vec<_> = decoded
            .enumerate()
            .flat_map(|(number, chunk)| vec![chunk; self.repeat.get(number).copied().unwrap_or(1)])
            .collect();
        for pieces in [Pieces::AsWritten, Pieces::Bytes, Pieces::One] {
            let read = read(chunks.clone(), self.initial_last_event_id.as_deref(), pieces).await;
            let name = format!("{} {pieces:?}", self.name);
            assert_eq!(read.events.len(), self.expect.len(), "{name}: {read:?}");
            for (expected, (event, data, id)) in self.expect.iter().zip(&read.events) {
                assert_eq!((event, id), (&expected.event, &expected.id), "{name}");
                if let Some(expected) = &expected.data {
                    assert_eq!(data, expected, "{name}");
                }
                assert_eq!(data.len(), expected.data_len.unwrap_or(data.len()), "{name}");
                if let Some(expected) = &expected.data_sha256 {
                    let hash = Sha256::digest(data).iter().fold(String::new(), |mut hash, byte| {
                        write!(hash, "{byte:02x}").unwrap();
                        hash
                    });
                    assert_eq!(&hash, expected, "{name}");
                }
            }
            if let Some(expected) = &self.last_event_id {
                assert_eq!(&read.last_id, expected, "{name}");
            }
            if let Some(retry) = &self.retry {
                // A wait of more than 32 bits, that is, of more than 49 days, is ignored.
                let expected = retry.as_u64().filter(|retry| *retry <= u32::MAX.into());
                assert_eq!(read.retry, expected.map(Duration::from_millis), "{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_corpus_passes() {
    let Some(file) = std::env::var_os("FLIPSWITCH_SSE_CASES") else {
        return eprintln!("skipped: FLIPSWITCH_SSE_CASES is not set to a file of cases");
    };
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        case.run().await;
    }
}

/// A stream, the expected events (name, data, last id), the last id at the end, and the wait.
type Own = (&'static str, &'static [(&'static str, &'static str, &'static str)], &'static str, Option<u64>);

/// Source: "Server-sent events" in the HTML standard, §9.2.5 and §9.2.6.
const OWN: &[Own] = &[
    // An event is dispatched at a blank line.
    ("data: a\n\n", &[("message", "a", "")], "", None),
    ("data: a\n", &[], "", None),
    ("data: a", &[], "", None),
    ("", &[], "", None),
    ("\n\n\n", &[], "", None),
    // Lines end with LF, CR or both, and these may be mixed.
    (
        "data: a\r\rdata: b\r\n\r\ndata: c\n\r\n",
        &[("message", "a", ""), ("message", "b", ""), ("message", "c", "")],
        "",
        None,
    ),
    ("data: a\r\ndata: b\r\n\r\n", &[("message", "a\nb", "")], "", None),
    ("data: a\n\rdata: b\n\n", &[("message", "a", ""), ("message", "b", "")], "", None),
    // One space after the colon is removed, and nothing else is trimmed.
    (
        "data:a\n\ndata:  a \n\ndata:\ta\n\n",
        &[("message", "a", ""), ("message", " a ", ""), ("message", "\ta", "")],
        "",
        None,
    ),
    // Lines of data are joined; a field without a colon is empty.
    (
        "data\n\ndata\ndata\n\ndata:\ndata: a\n\n",
        &[("message", "", ""), ("message", "\n", ""), ("message", "\na", "")],
        "",
        None,
    ),
    ("data: {\ndata:   \"a\": 1\ndata: }\n\n", &[("message", "{\n  \"a\": 1\n}", "")], "", None),
    // Colons within the value stay.
    ("data: a: b\n\ndata:: c\n\n", &[("message", "a: b", ""), ("message", ": c", "")], "", None),
    // The last name applies. It is reset after each event, even if no event was dispatched for lack of data.
    ("event: a\nevent: b\ndata: 1\n\ndata: 2\n\n", &[("b", "1", ""), ("message", "2", "")], "", None),
    ("event: a\n\ndata: 1\n\n", &[("message", "1", "")], "", None),
    ("event: a\nevent\ndata: 1\n\n", &[("message", "1", "")], "", None),
    ("data: 1\nevent: late\n\n", &[("late", "1", "")], "", None),
    // An id stays in effect until the next one, even across events. It takes effect even without data, and may be reset.
    ("id: 7\ndata: a\n\ndata: b\n\n", &[("message", "a", "7"), ("message", "b", "7")], "7", None),
    ("id: 7\n\ndata: a\n\nid\ndata: b\n\n", &[("message", "a", "7"), ("message", "b", "")], "", None),
    ("data: a\nid: 8\n\n", &[("message", "a", "8")], "8", None),
    ("id: 7\n\nid: 8\n", &[], "7", None),
    ("id: 7\n\nid: 8\0\ndata: a\n\n", &[("message", "a", "7")], "7", None),
    ("id:  7 \ndata: a\n\n", &[("message", "a", " 7 ")], " 7 ", None),
    // Comments and unknown fields are ignored. Field names must match exactly.
    (": comment\n:\ndata: a\n: b\n\n", &[("message", "a", "")], "", None),
    ("Data: a\n\ndatax: a\n\ndat: a\n\n data: a\n\nother\n\n", &[], "", None),
    (":data: a\n\n", &[], "", None),
    // A wait consists of digits only, and takes effect immediately. An invalid or too large one is ignored.
    ("retry: 2500\n\n", &[], "", Some(2_500)),
    ("retry: 2500", &[], "", None),
    ("retry: 2500\n", &[], "", Some(2_500)),
    ("retry: 0\n\n", &[], "", Some(0)),
    ("retry: 1000\nretry: -1\nretry: 1.5\nretry: 1e3\nretry: x\nretry:\nretry\n\n", &[], "", Some(1_000)),
    ("retry: 4294967295\n\n", &[], "", Some(u32::MAX as u64)),
    ("\u{feff}retry: 4294967296\n\n", &[], "", None),
    ("data: a\nretry:99999999999999999999999\ndata: b\n\n", &[("message", "a\nb", "")], "", None),
    ("retry: 99999999999\r\nretry: 7\n\n", &[], "", Some(7)),
    // One byte order mark is removed at the beginning, but none elsewhere.
    ("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[("message", "a", "")], "", None),
    ("\u{feff}\u{feff}data: a\n\ndata: b\n\n", &[("message", "b", "")], "", None),
    ("\u{feff}: comment\n\ndata: \u{feff}a\n\n", &[("message", "\u{feff}a", "")], "", None),
    // Text is UTF-8, however it is split.
    ("data: ä€😀\nid: ñ\n\n", &[("message", "ä€😀", "ñ")], "ñ", None),
    ("event: naïve\ndata: \u{2028}\n\n", &[("naïve", "\u{2028}", "")], "", None),
    // As the service sends them: the id after the data.
    (
        "event: heartbeat\ndata: {}\n\nevent: flag-updated\ndata: {\"flagKey\":\"f\"}\nid: 1705833045123\n\n",
        &[("heartbeat", "{}", ""), ("flag-updated", "{\"flagKey\":\"f\"}", "1705833045123")],
        "1705833045123",
        None,
    ),
];

#[tokio::test]
async fn streams_are_decoded_according_to_the_standard() {
    for (stream, expected, last_id, retry) in OWN {
        for pieces in [Pieces::Bytes, Pieces::One] {
            let read = read(vec![stream.as_bytes().to_vec()], None, pieces).await;
            let events: Vec<_> = read.events.iter().map(|(event, data, id)| (&**event, &**data, &**id)).collect();
            assert_eq!((&events[..], &*read.last_id), (*expected, *last_id), "{stream:?} {pieces:?}");
            assert_eq!(read.retry, retry.map(Duration::from_millis), "{stream:?} {pieces:?}");
        }
    }
}

#[tokio::test]
async fn invalid_utf8_is_replaced() {
    let read = read(vec![b"data: a\xff\xfeb\xe2\x82\n\ndata: c\n\n".to_vec()], None, Pieces::Bytes).await;
    let data: Vec<_> = read.events.iter().map(|(_, data, _)| &**data).collect();
    assert_eq!(data, ["a\u{fffd}\u{fffd}b\u{fffd}", "c"]);
}

#[test]
fn an_event_that_is_too_large_is_an_error() {
    let error = |text: &str| {
        let mut decoder = Decoder::new(None);
        let mut bytes = Bytes::from(text.to_owned());
        std::iter::from_fn(|| decoder.next(&mut bytes)).any(|message| message.is_err())
    };
    let (fits, too_large) = ("x".repeat(1 << 20), "x".repeat((1 << 20) + 1));
    assert!(!error(&format!("data: {fits}\n\n")));
    // Without an end, and in many lines.
    assert!(error(&format!("data: {too_large}")));
    assert!(error(&"data: xxxxxxxxxxxxxxx\n".repeat(1 << 17)));
    assert!(error(&format!("event: {too_large}")));
    assert!(!error(&format!("id: {}\n\n", "x".repeat(1 << 10))));
    assert!(error(&format!("id: {}\n\n", "x".repeat((1 << 10) + 1))));
    // Ignored fields are not stored, however long they are.
    assert!(!error(&format!(": {too_large}\nfoo: {too_large}\n\n")));
}
