//! Bytes of a stream → its messages. The only file that knows the parser.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use sse_core::{MessageEvent, SseDecoder, SseEvent};

/// An event may not be larger than this: its data, its name.
const MAX_EVENT: NonZeroUsize = NonZeroUsize::new(1 << 20).expect("is not zero");

/// An id may not be longer than this; it goes back in a header.
const MAX_ID: usize = 1 << 10;

/// Reads one connection.
pub(super) struct Reader {
    decoder: SseDecoder,
    long_waits: LongWaits,
    /// Read, and still to be handed out.
    wait: Option<Duration>,
}

/// What a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// An event, by its name and its data.
    Event { event: String, data: String },
    /// How long to wait before connecting again.
    Retry(Duration),
}

/// An event, its name or its id is larger than anything that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than 1 MiB, or an id of more than 1 KiB")]
pub(super) struct TooLarge;

impl Reader {
    /// For a connection that goes on after `last_id`.
    pub(super) fn new(last_id: Option<Arc<str>>) -> Self {
        Self::with_limit(last_id, MAX_EVENT)
    }

    /// As [`new`](Self::new), with another limit for an event.
    pub(super) fn with_limit(last_id: Option<Arc<str>>, limit: NonZeroUsize) -> Self {
        let mut decoder = SseDecoder::with_limit(limit);
        decoder.reconnect_with_id(last_id);
        Self { decoder, long_waits: LongWaits::default(), wait: None }
    }

    /// Takes bytes until there is a message; `None` when all are taken.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Option<Result<Message, TooLarge>> {
        let mut taken = bytes.clone();
        let message = self.decoder.next(bytes);
        taken.truncate(taken.len() - bytes.remaining());
        if taken.iter().fold(false, |found, byte| self.long_waits.ends_one(*byte) | found) {
            self.wait = Some(Duration::from_millis(u32::MAX.into()));
        }
        // The parser's own limit is for each field.
        if self.last_id().is_some_and(|id| id.len() > MAX_ID) {
            return Some(Err(TooLarge));
        }
        match message {
            None => Some(Ok(Message::Retry(self.wait.take()?))),
            Some(Err(_)) => Some(Err(TooLarge)),
            Some(Ok(SseEvent::Retry(milliseconds))) => {
                self.wait = None;
                Some(Ok(Message::Retry(Duration::from_millis(milliseconds.into()))))
            }
            Some(Ok(SseEvent::Message(MessageEvent { event, data, .. }))) => {
                Some(Ok(Message::Event { event: event.into_owned(), data }))
            }
        }
    }

    /// The id to go on after, if the stream gave one. Also one without an event counts.
    pub(super) fn last_id(&self) -> Option<&Arc<str>> {
        self.decoder.last_event_id().filter(|id| !id.is_empty())
    }
}

/// Notices times to wait that the parser drops because they do not fit into 32 bits of milliseconds. They are good by the
/// rules, and so the longest that there are.
#[derive(Debug)]
enum LongWaits {
    /// At the beginning of the stream, where a byte-order mark may stand, of which so many bytes have come.
    Mark(usize),
    /// So many bytes of the field's name and colon have come.
    Name(usize),
    /// After the colon.
    Colon,
    /// Digits, and the number that they are.
    Digits(u64),
    /// Something else, up to the end of the line.
    Other,
}

impl Default for LongWaits {
    fn default() -> Self {
        Self::Mark(0)
    }
}

impl LongWaits {
    const MARK: &[u8] = b"\xef\xbb\xbf";
    const NAME: &[u8] = b"retry:";

    /// Whether this byte ends a line with such a time.
    fn ends_one(&mut self, byte: u8) -> bool {
        if matches!(byte, b'\r' | b'\n') {
            return matches!(std::mem::replace(self, Self::Name(0)), Self::Digits(wait) if wait > u32::MAX.into());
        }
        *self = match *self {
            Self::Mark(seen) if Self::MARK.get(seen) == Some(&byte) => {
                if seen + 1 == Self::MARK.len() {
                    Self::Name(0)
                } else {
                    Self::Mark(seen + 1)
                }
            }
            Self::Mark(0) | Self::Name(0) if byte == Self::NAME[0] => Self::Name(1),
            Self::Name(seen) if Self::NAME.get(seen) == Some(&byte) => {
                if seen + 1 == Self::NAME.len() {
                    Self::Colon
                } else {
                    Self::Name(seen + 1)
                }
            }
            Self::Colon if byte == b' ' => Self::Digits(0),
            Self::Colon if byte.is_ascii_digit() => Self::Digits((byte - b'0').into()),
            Self::Digits(wait) if byte.is_ascii_digit() => {
                Self::Digits(wait.saturating_mul(10).saturating_add((byte - b'0').into()))
            }
            _ => Self::Other,
        };
        false
    }
}
