//! The flags that individual requests have read, for testers.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::{
    provider::flags::{FlagRead, FlagSource, Recorder},
    sanitize::printable,
};

/// Maximum number of inspected requests that are kept.
const MAX_REQUESTS: usize = 100;

/// Maximum number of flags that are kept for each of them.
const MAX_READS: usize = 200;

/// Maximum length of the text of a value or a default, in characters.
const MAX_TEXT: usize = 120;

/// The latest inspected requests of a provider.
#[derive(Default)]
pub(crate) struct Inspections(Mutex<VecDeque<Arc<Inspection>>>);

impl Inspections {
    /// Returns the requests, newest first.
    pub(crate) fn latest(&self) -> Vec<Arc<Inspection>> {
        self.0.lock().iter().rev().cloned().collect()
    }

    fn add(&self, inspection: Arc<Inspection>) {
        let mut requests = self.0.lock();
        if requests.len() == MAX_REQUESTS {
            requests.pop_front();
        }
        requests.push_back(inspection);
    }
}

/// One inspected request. It is kept once it has read a flag.
pub(crate) struct Inspection {
    pub(crate) at: OffsetDateTime,
    /// The path, without the query.
    pub(crate) path: String,
    pub(crate) has_targeting_key: bool,
    /// Names of the attributes of its context.
    pub(crate) attributes: Vec<String>,
    reads: Mutex<Vec<Read>>,
    inspections: Weak<Inspections>,
    /// A reference to itself, which the first read adds to `inspections`.
    this: Weak<Self>,
}

/// The reads of one flag by one request.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) key: String,
    /// The value as JSON. `None` if the flag has no value.
    pub(crate) value: Option<String>,
    pub(crate) variant: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) source: FlagSource,
    /// How old the value was at the first read, in seconds.
    pub(crate) age: Option<u64>,
    /// The default passed to the call, if it is known.
    pub(crate) default: Option<String>,
    pub(crate) count: u64,
}

impl Inspection {
    /// Starts inspecting a request with a context.
    pub(crate) fn new(
        inspections: &Arc<Inspections>,
        path: &str,
        has_targeting_key: bool,
        attributes: &[String],
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            at: OffsetDateTime::now_utc(),
            path: printable(path),
            has_targeting_key,
            attributes: attributes.iter().map(|name| shortened(name)).collect(),
            reads: Mutex::default(),
            inspections: Arc::downgrade(inspections),
            this: this.clone(),
        })
    }

    /// Returns the reads so far, in the order of the first read of each flag.
    pub(crate) fn reads(&self) -> Vec<Read> {
        self.reads.lock().clone()
    }
}

impl Recorder for Inspection {
    fn read(&self, read: &FlagRead<'_>) {
        let FlagRead { flags, key, default, is_used } = *read;
        let default = default.map(|default| shortened(&default.to_string()));
        let shown = shortened(key);
        let is_first = {
            let mut reads = self.reads.lock();
            if let Some(read) = reads.iter_mut().find(|read| read.key == shown) {
                read.count += 1;
                read.default = default.or(read.default.take());
                return;
            }
            if reads.len() < MAX_READS {
                let found = flags.peek(key);
                let (source, since) = if is_used { flags.source_of(key) } else { (FlagSource::Default, None) };
                reads.push(Read {
                    key: shown,
                    value: found.filter(|flag| !flag.value.is_null()).map(|flag| shortened(&flag.value.to_string())),
                    variant: found.and_then(|flag| flag.variant.as_deref()).map(shortened),
                    reason: found.map(|flag| shortened(&flag.reason)),
                    source,
                    age: since.map(|since| Instant::now().saturating_duration_since(since).as_secs()),
                    default,
                    count: 1,
                });
            }
            reads.len() == 1
        };
        if !is_first {
            return;
        }
        if let (Some(inspections), Some(this)) = (self.inspections.upgrade(), self.this.upgrade()) {
            inspections.add(this);
        }
    }
}

fn shortened(text: &str) -> String {
    let text = printable(text);
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
