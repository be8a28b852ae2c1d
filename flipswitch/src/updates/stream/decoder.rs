//! Decodes the bytes of a stream into messages. This is the only file that uses the parser.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::Bytes;
use sse_core::{MessageEvent, SseDecoder, SseEvent};

/// Maximum size of the data or the name of an event, in bytes.
const MAX_EVENT: NonZeroUsize = NonZeroUsize::new(1 << 20).expect("is not zero");

/// Maximum length of an id, in bytes. The id is sent back in a header.
const MAX_ID: usize = 1 << 10;

/// Decodes one connection.
pub(super) struct Decoder(SseDecoder);

/// A message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// An event, with its name and its data.
    Event { event: String, data: String },
    /// How long to wait before reconnecting. The parser ignores times of more than 32 bits in milliseconds.
    Retry(Duration),
}

/// An event, its name or its id exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than 1 MiB, or an id of more than 1 KiB")]
pub(super) struct TooLarge;

impl Decoder {
    /// Creates a decoder for a connection that continues after `last_id`.
    pub(super) fn new(last_id: Option<Arc<str>>) -> Self {
        Self::with_limit(last_id, MAX_EVENT)
    }

    /// Creates a decoder with a different limit for events.
    pub(super) fn with_limit(last_id: Option<Arc<str>>, limit: NonZeroUsize) -> Self {
        let mut decoder = SseDecoder::with_limit(limit);
        decoder.reconnect_with_id(last_id);
        Self(decoder)
    }

    /// Consumes bytes up to the next message. Returns `None` when all bytes are consumed.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Option<Result<Message, TooLarge>> {
        let message = self.0.next(bytes);
        // The parser's own limit applies to each field, including ids.
        if self.last_id().is_some_and(|id| id.len() > MAX_ID) {
            return Some(Err(TooLarge));
        }
        Some(match message? {
            Err(_) => Err(TooLarge),
            Ok(SseEvent::Retry(milliseconds)) => Ok(Message::Retry(Duration::from_millis(milliseconds.into()))),
            Ok(SseEvent::Message(MessageEvent { event, data, .. })) => {
                Ok(Message::Event { event: event.into_owned(), data })
            }
        })
    }

    /// Returns the id to continue after, if the stream sent one. This includes an id without an event.
    pub(super) fn last_id(&self) -> Option<&Arc<str>> {
        self.0.last_event_id().filter(|id| !id.is_empty())
    }
}
