//! Checks event streams, which announce changes of flags.

use std::{str, time::Duration};

use reqwest::{
    StatusCode, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, IF_NONE_MATCH},
};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::{
    client::{Finding, fails, is_media_type, no_response, not_applicable, printable},
    conformance::{Run, ask, body},
};

/// The maximum number of streams that are opened.
pub(super) const MAX_STREAMS: usize = 4;

/// The maximum number of bytes that are read from a stream.
const MAX_BYTES: usize = 64 << 10;

/// The wait for an event after a comment, and for the first event of a stream.
const EVENT_WAIT: Duration = Duration::from_secs(3);

/// A stream that was opened, with the part that was read.
pub(crate) struct OpenedStream {
    /// The status and headers, or the reason why there are none.
    head: Result<(StatusCode, HeaderMap), String>,
    /// The content that it has sent, if any.
    content: Option<StreamContent>,
    /// Whether the stream ended during the read.
    ended: bool,
}

impl OpenedStream {
    /// Returns a stream that received no response.
    fn failed(problem: String) -> Self {
        Self { head: Err(problem), content: None, ended: true }
    }

    fn is_open(&self) -> bool {
        self.check().is_ok()
    }

    fn check(&self) -> Finding {
        match &self.head {
            Err(error) => fails(error.clone()),
            Ok((StatusCode::OK, headers)) => {
                let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
                let expected = is_media_type(value, "text/event-stream");
                if expected { Ok(()) } else { fails(format!("status 200, content type {:?}", printable(value))) }
            }
            Ok((status, _)) => fails(format!("status {}", status.as_u16())),
        }
    }
}

/// The content of a stream that was read.
#[derive(Debug, Default, PartialEq)]
struct StreamContent {
    comments: usize,
    events: Vec<Event>,
    has_cr: bool,
    problem: Option<&'static str>,
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    event_type: Option<String>,
    data: Option<String>,
    id: Option<String>,
}

impl StreamContent {
    fn speaks(&self) -> bool {
        self.comments > 0 || !self.events.is_empty()
    }
}

/// Parses the bytes of a stream that have arrived. Text after the last complete line is ignored.
fn read(bytes: &[u8]) -> StreamContent {
    let mut content = StreamContent { has_cr: bytes.contains(&b'\r'), ..StreamContent::default() };
    let complete = bytes.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |end| end + 1);
    let Ok(text) = str::from_utf8(&bytes[..complete]) else {
        content.problem = Some("bytes that are not UTF-8");
        return content;
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut event = Event::default();
    for line in text.split_terminator('\n') {
        if line.is_empty() {
            let event = std::mem::take(&mut event);
            // An event without data is not dispatched, but may carry an id.
            if event.data.is_some() {
                content.events.push(event);
            }
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => content.comments += 1,
            "event" => event.event_type = Some(value.to_owned()),
            "id" => event.id = Some(value.to_owned()),
            "data" => match &mut event.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                none => *none = Some(value.to_owned()),
            },
            "retry" => {}
            _ => content.problem = Some("a line that is neither a field nor a comment"),
        }
    }
    content
}

impl Run {
    /// Returns the streams that the service advertises.
    fn advertised(&self) -> Finding<Vec<Value>> {
        match self.first.json().as_mut().map(|body| body["eventStreams"].take()) {
            Some(Value::Array(streams)) if !streams.is_empty() => Ok(streams),
            Some(Value::Array(_) | Value::Null) | None => not_applicable("the service advertises no eventStreams"),
            Some(_) => fails("eventStreams is not an array"),
        }
    }

    pub(super) fn streams(&self) -> Finding {
        for stream in self.advertised()? {
            stream_url(&stream, self.requests.base()).or_else(fails)?;
        }
        Ok(())
    }

    pub(super) fn streams_inactivity(&self) -> Finding {
        let streams = self.advertised()?;
        let mut delays = streams.iter().filter_map(|stream| stream.get("inactivityDelaySec")).peekable();
        if delays.peek().is_none() {
            return not_applicable("no stream has an inactivityDelaySec");
        }
        match delays.find(|delay| delay.as_u64().is_none_or(|seconds| seconds == 0)) {
            None => Ok(()),
            Some(Value::Number(number)) => fails(format!("inactivityDelaySec {number}")),
            Some(_) => fails("inactivityDelaySec is not a number"),
        }
    }

    pub(super) async fn streams_single(&self) -> Finding {
        self.advertised()?;
        let response = ask(self.single(self.flag()?).json(&body())).await?;
        let has_streams = response.json_with(StatusCode::OK)?.get("eventStreams").is_some();
        if has_streams { fails("status 200 with eventStreams") } else { Ok(()) }
    }

    pub(super) async fn stream_opens(&self) -> Finding {
        self.opened().await?.iter().try_for_each(OpenedStream::check)
    }

    pub(super) async fn stream_uncompressed(&self) -> Finding {
        for stream in self.open_streams().await? {
            if let Ok((_, headers)) = &stream.head
                && let Some(encoding) = headers.get(CONTENT_ENCODING)
                && encoding != "identity"
            {
                return fails(format!("content encoding {}", printable(encoding.to_str().unwrap_or_default())));
            }
        }
        Ok(())
    }

    pub(super) async fn stream_speaks(&self) -> Finding {
        for stream in self.open_streams().await? {
            if !stream.content.as_ref().is_some_and(StreamContent::speaks) {
                let seconds = self.stream_wait.as_secs_f32();
                return fails(if stream.ended {
                    "a stream that ended".to_owned()
                } else {
                    format!("nothing in {seconds} s")
                });
            }
        }
        Ok(())
    }

    pub(super) async fn stream_syntax(&self) -> Finding {
        for stream in self.speaking_streams().await? {
            if let Some(problem) = stream.problem {
                return fails(problem);
            }
        }
        Ok(())
    }

    pub(super) async fn stream_lf(&self) -> Finding {
        let has_cr = self.speaking_streams().await?.iter().any(|content| content.has_cr);
        if has_cr { fails("a line that ends with CR") } else { Ok(()) }
    }

    pub(super) async fn stream_events(&self) -> Finding {
        for event in self.events().await? {
            let event_type = event.event_type.as_deref().unwrap_or_default();
            if !matches!(event_type, "" | "message") {
                return fails(format!("an event of the type {:?}", printable(event_type)));
            }
            if !fields(event).is_some_and(|fields| fields.get("type").is_some_and(Value::is_string)) {
                return fails("data that is not a JSON object with a type");
            }
        }
        Ok(())
    }

    pub(super) async fn stream_ids(&self) -> Finding {
        let without = self.events().await?.iter().any(|event| event.id.is_none());
        if without { fails("an event without an id") } else { Ok(()) }
    }

    pub(super) async fn stream_refetch(&self) -> Finding {
        for stream in self.open_streams().await? {
            let first = stream.content.as_ref().and_then(|content| fields(content.events.first()?));
            if first.is_none_or(|fields| fields.get("type").is_none_or(|it| it != "refetchEvaluation")) {
                return fails("no refetchEvaluation after the stream was opened");
            }
        }
        Ok(())
    }

    pub(super) async fn flag_config_etag(&self) -> Finding {
        self.advertised()?;
        let request = self.bulk_with("flagConfigEtag", "\"conformance-newer\"");
        ask(request.header(IF_NONE_MATCH, self.tag()?)).await?.has_status(StatusCode::OK)
    }

    pub(super) async fn flag_config_last_modified(&self) -> Finding {
        self.advertised()?;
        // Both dates are in the past, so no service waits for a configuration that it has not received.
        for date in ["1771622898", "2026-02-20T21:28:18Z"] {
            let response = ask(self.bulk_with("flagConfigLastModified", date)).await?;
            if response.status != StatusCode::OK {
                return fails(format!("{} for {date}", response.seen()));
            }
        }
        Ok(())
    }

    /// Returns the streams. The first call opens them.
    async fn opened(&self) -> Finding<&[OpenedStream]> {
        let advertised = self.advertised()?;
        let urls = advertised.iter().filter_map(|stream| stream_url(stream, self.requests.base()).ok().flatten());
        let urls: Vec<_> = urls.take(MAX_STREAMS).collect();
        if urls.is_empty() {
            return not_applicable("no stream has the type sse and a valid URL");
        }
        let streams = self.streams.get_or_init(async || {
            let mut streams = Vec::new();
            for url in urls {
                streams.push(self.open(url).await);
            }
            streams
        });
        Ok(streams.await)
    }

    /// Opens a stream, and reads it until it has sent something.
    async fn open(&self, url: Url) -> OpenedStream {
        // Longer than all waits below.
        let lifetime = self.stream_wait + EVENT_WAIT * 2;
        let until = Instant::now() + self.stream_wait;
        let mut response = match timeout_at(until, self.requests.open(url, lifetime)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return OpenedStream::failed(no_response(error)),
            Err(_) => return OpenedStream::failed("no response in time".to_owned()),
        };
        let head = Ok((response.status(), response.headers().clone()));
        let mut stream = OpenedStream { head, content: None, ended: false };
        if !stream.is_open() {
            return stream;
        }
        let (mut until, mut spoke, mut bytes) = (until, false, Vec::new());
        while bytes.len() < MAX_BYTES {
            match timeout_at(until, response.chunk()).await {
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Ok(Ok(None) | Err(_)) => {
                    stream.ended = true;
                    break;
                }
                Err(_) => break,
            }
            let content = stream.content.insert(read(&bytes));
            if !content.events.is_empty() {
                break;
            }
            if content.comments > 0 && !spoke {
                (until, spoke) = (until.min(Instant::now() + EVENT_WAIT), true);
            }
        }
        stream
    }

    /// Returns the streams that are open.
    async fn open_streams(&self) -> Finding<Vec<&OpenedStream>> {
        let open: Vec<_> = self.opened().await?.iter().filter(|stream| stream.is_open()).collect();
        if open.is_empty() { not_applicable("no stream opens") } else { Ok(open) }
    }

    /// Returns the contents of the streams that sent something.
    async fn speaking_streams(&self) -> Finding<Vec<&StreamContent>> {
        let streams = self.open_streams().await?;
        let contents: Vec<_> = streams.into_iter().filter_map(|stream| stream.content.as_ref()).collect();
        if contents.is_empty() { not_applicable("no stream sends anything") } else { Ok(contents) }
    }

    async fn events(&self) -> Finding<Vec<&Event>> {
        let events: Vec<_> = self.speaking_streams().await?.into_iter().flat_map(|content| &content.events).collect();
        if events.is_empty() { not_applicable("no stream sends an event") } else { Ok(events) }
    }
}

fn fields(event: &Event) -> Option<Map<String, Value>> {
    serde_json::from_str(event.data.as_deref()?).ok()
}

/// Returns the URL of an entry of `eventStreams`, or a description of the problem. Entries of unknown types have no URL.
fn stream_url(entry: &Value, base: &Url) -> Result<Option<Url>, &'static str> {
    match &entry["type"] {
        Value::String(kind) if kind == "sse" => {}
        Value::String(_) => return Ok(None),
        _ => return Err("a stream without a type"),
    }
    let url = match (entry.get("url"), entry.get("endpoint")) {
        (Some(Value::String(url)), None) => http_url(url).ok_or("a url that is not an absolute http or https URL")?,
        (None, Some(Value::Object(endpoint))) => {
            let origin = match endpoint.get("origin") {
                Some(origin) => {
                    origin.as_str().and_then(http_url).ok_or("an origin that is not an http or https origin")?
                }
                None => base.clone(),
            };
            let uri = endpoint.get("requestUri").and_then(Value::as_str).filter(|uri| uri.starts_with('/'));
            let url = uri.and_then(|uri| origin.join(uri).ok());
            url.ok_or("an endpoint without a requestUri that begins with /")?
        }
        (Some(_), Some(_)) => return Err("a stream with both url and endpoint"),
        (None, None) => return Err("a stream with neither url nor endpoint"),
        _ => return Err("a url that is not a string, or an endpoint that is not an object"),
    };
    Ok(Some(url))
}

fn http_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams_are_read_line_by_line() {
        let content = read(b": hello\n\nid: 1\ndata: a\ndata:b\n\nevent: x\nid: 2\n\ndata: incomplete\n");
        let event = Event { event_type: None, data: Some("a\nb".to_owned()), id: Some("1".to_owned()) };
        assert_eq!(content, StreamContent { comments: 1, events: vec![event], has_cr: false, problem: None });
        let content = read(b"data: a\r\n\r\n");
        assert_eq!((content.events.len(), content.has_cr, content.problem), (1, true, None));
        assert_eq!(read(b"<html>\n").problem, Some("a line that is neither a field nor a comment"));
        assert_eq!(read(b"data: \xff\n\n").problem, Some("bytes that are not UTF-8"));
        // A character of which only the first byte has arrived is incomplete, but not invalid.
        assert_eq!(read(b"data: \xc3").problem, None);
    }

    #[test]
    fn entries_of_event_streams_have_a_shape() {
        let base = Url::parse("http://flags.test/base/").unwrap();
        for (entry, expected) in [
            (json!({"type": "sse", "url": "https://a.test/s?token=1"}), Some("https://a.test/s?token=1")),
            (json!({"type": "sse", "endpoint": {"requestUri": "/s?a=1"}}), Some("http://flags.test/s?a=1")),
            (
                json!({"type": "sse", "endpoint": {"origin": "https://a.test", "requestUri": "/s"}}),
                Some("https://a.test/s"),
            ),
            (json!({"type": "another"}), None),
        ] {
            let url = stream_url(&entry, &base).unwrap().map(String::from);
            assert_eq!(url.as_deref(), expected, "{entry}");
        }
        for invalid in [
            json!("sse"),
            json!({"url": "https://example.com/s"}),
            json!({"type": "sse"}),
            json!({"type": "sse", "url": "/s"}),
            json!({"type": "sse", "url": "ftp://example.com/s"}),
            json!({"type": "sse", "url": "https://example.com/s", "endpoint": {"requestUri": "/s"}}),
            json!({"type": "sse", "endpoint": {"requestUri": "s"}}),
            json!({"type": "sse", "endpoint": {"origin": "example.com", "requestUri": "/s"}}),
        ] {
            stream_url(&invalid, &base).expect_err(&invalid.to_string());
        }
    }
}
