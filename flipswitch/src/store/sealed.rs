//! The format of the entries in a store. No I/O.
//!
//! A name is `flipswitch:1:{<environment>}:<context>`. The number is the version of this format. Code for another version of
//! the format does not find the entry. The following data is encrypted, and authenticated together with the name and the time of
//! the request:
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | 1 if there is a fence, otherwise 0 |
//! | 8 | the newest event that was received, most significant byte first |
//! | 8 | the newest event that is settled |
//! | 8 | when the request was sent, by the clock of its instance, in microseconds since 1970 |
//! | 2 | length of the tag |
//! | | the tag of the service |
//! | | an OFREP bulk response |

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    flags::{
        flag_set::{FlagSet, Item, Outcome},
        intern::Interner,
    },
    secret::StoreKeys,
    store::fence::Fence,
    wire::ofrep,
};

/// Maximum size of the content of an entry, in bytes. Stores accept 1 MiB, encrypted and with its key.
const MAX_BYTES: usize = (1 << 20) - 1_024;

/// An environment, and the keys with which its flags are named and encrypted.
pub(crate) struct Environment {
    keys: StoreKeys,
    id: String,
}

/// A response from the service, as it is stored.
pub(super) struct StoredFlags {
    pub(super) flag_set: Arc<FlagSet>,
    pub(super) etag: Option<Box<[u8]>>,
    pub(super) fence: Option<Fence>,
    /// When the request was sent, by the clock of its instance, in microseconds since 1970.
    pub(super) sent_here: u64,
}

impl Environment {
    /// Creates an environment. `parts` is what the flags depend on in addition to the context.
    pub(super) fn new(keys: StoreKeys, parts: &[&[u8]]) -> Self {
        let id = keys.name(&[&[b"environment".as_slice()], parts].concat());
        Self { keys, id }
    }

    /// Returns the name of the entry of a context.
    pub(super) fn name(&self, context: &[u8]) -> String {
        format!("flipswitch:1:{{{}}}:{}", self.id, self.keys.name(&[self.id.as_bytes(), context]))
    }

    /// Encrypts a response. Returns `None` if it is too large.
    pub(super) fn seal(&self, name: &str, sent: u64, answer: &StoredFlags) -> Option<Vec<u8>> {
        let etag = answer.etag.as_deref().unwrap_or_default();
        let Fence { newest, settled } = answer.fence.unwrap_or_default();
        let [newest, settled, sent_here] = [newest, settled, answer.sent_here].map(u64::to_be_bytes);
        let length = u16::try_from(etag.len()).ok()?.to_be_bytes();
        let mut text = [&[u8::from(answer.fence.is_some())][..], &newest, &settled, &sent_here, &length, etag].concat();
        let flags: Vec<_> = answer.flag_set.received().map(written).collect();
        serde_json::to_writer(&mut text, &json!({ "flags": flags })).ok()?;
        if text.len() > MAX_BYTES {
            return None;
        }
        self.keys.seal(&text, &associated(name, sent))
    }

    /// Decrypts a response. Returns `None` if the content is not a response, or belongs to a different name or time.
    pub(super) fn open(
        &self,
        context: &[u8],
        name: &str,
        sent: u64,
        sealed: &[u8],
        interner: &Interner,
    ) -> Option<StoredFlags> {
        if sealed.len() > 2 * MAX_BYTES {
            return None;
        }
        let text = self.keys.open(sealed, &associated(name, sent))?;
        let (&[has_fence], rest) = text.split_first_chunk()?;
        let (newest, rest) = rest.split_first_chunk()?;
        let (settled, rest) = rest.split_first_chunk()?;
        let (sent_here, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (etag, body) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let fence = Fence { newest: u64::from_be_bytes(*newest), settled: u64::from_be_bytes(*settled) };
        Some(StoredFlags {
            flag_set: ofrep::bulk(body, context, interner).ok()?,
            etag: (!etag.is_empty()).then(|| etag.into()),
            fence: (has_fence != 0).then_some(fence),
            sent_here: u64::from_be_bytes(*sent_here),
        })
    }
}

fn associated(name: &str, sent: u64) -> Vec<u8> {
    [name.as_bytes(), &sent.to_be_bytes()].concat()
}

/// Returns an item as an OFREP service would send it.
fn written(item: &Item) -> Value {
    match &item.outcome {
        Outcome::Evaluated(flag) => {
            let mut fields = Map::from_iter([
                ("key".to_owned(), Value::from(&*item.key)),
                ("value".to_owned(), flag.value.clone()),
                ("reason".to_owned(), Value::from(&*flag.reason)),
            ]);
            fields.extend(flag.variant.as_deref().map(|variant| ("variant".to_owned(), variant.into())));
            if !flag.metadata.is_empty() {
                fields.insert("metadata".to_owned(), flag.metadata.clone().into());
            }
            Value::Object(fields)
        }
        Outcome::Failed { code, details } => json!({"key": item.key, "errorCode": code, "errorDetails": details}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn environment(secret: &[u8], parts: &[&[u8]]) -> Environment {
        Environment::new(StoreKeys::new(&Secret::new(secret)), parts)
    }

    fn answer(value: &str) -> StoredFlags {
        let body = json!({"flags": [
            {"key": "a", "value": value, "variant": "v", "reason": "SPLIT", "metadata": {"flagType": "string"}},
            {"key": "b", "value": 42.0, "reason": "STATIC", "metadata": {"flagType": "integer"}},
            {"key": "c", "value": null, "reason": "DISABLED"},
            {"key": "d", "errorCode": "GENERAL", "errorDetails": "broken"},
        ]});
        let flag_set = ofrep::bulk(body.to_string().as_bytes(), b"{}", &Interner::default()).unwrap();
        let fence = Some(Fence { newest: 7, settled: 5 });
        StoredFlags { flag_set, etag: Some((*b"W/\"\xff\"").into()), fence, sent_here: 9 }
    }

    #[test]
    fn an_answer_is_read_as_it_was_received() {
        let environment = environment(b"one secret of this test", &[b"url", b"key"]);
        let name = environment.name(b"{}");
        let sealed = environment.seal(&name, 5, &answer("x")).unwrap();
        let interner = Interner::default();
        let open = |name: &str, sent, sealed: &[u8]| environment.open(b"{}", name, sent, sealed, &interner);
        let read = open(&name, 5, &sealed).unwrap();
        assert!(read.flag_set.changed_keys(&answer("x").flag_set).is_empty());
        assert_eq!((read.etag, read.fence, read.sent_here), (answer("x").etag, answer("x").fence, 9));
        let shared = open(&name, 5, &environment.seal(&name, 5, &answer("x")).unwrap()).unwrap();
        assert!(Arc::ptr_eq(&read.flag_set, &shared.flag_set), "flag sets are shared");
        for fence in [None, Some(Fence { newest: u64::MAX, settled: 0 })] {
            let sealed = environment.seal(&name, 5, &StoredFlags { fence, ..answer("x") }).unwrap();
            assert_eq!(open(&name, 5, &sealed).unwrap().fence, fence);
        }
        assert!(open(&name, 6, &sealed).is_none(), "of another time");
        assert!(open(&environment.name(b"{\"a\":1}"), 5, &sealed).is_none(), "of another context");
        for at in 0..sealed.len() {
            let mut edited = sealed.clone();
            edited[at] ^= 1;
            assert!(open(&name, 5, &edited).is_none() && open(&name, 5, &sealed[..at]).is_none(), "{at}");
        }
    }

    #[test]
    fn each_environment_and_secret_has_its_own_names_and_keys() {
        let one = environment(b"one secret of this test", &[b"url", b"key"]);
        let name = one.name(b"{}");
        let sealed = one.seal(&name, 5, &answer("x")).unwrap();
        for other in [
            environment(b"another secret of this test", &[b"url", b"key"]),
            environment(b"one secret of this test", &[b"url", b"other key"]),
            environment(b"one secret of this test", &[b"ur", b"lkey"]),
        ] {
            assert_ne!(other.name(b"{}"), name);
            assert!(other.open(b"{}", &other.name(b"{}"), 5, &sealed, &Interner::default()).is_none());
        }
        let shown = String::from_utf8_lossy(&sealed);
        assert!(!shown.contains("SPLIT") && !name.contains("key"));
        assert_eq!(name.len(), "flipswitch:1:{}:".len() + 64);
    }

    #[test]
    fn an_answer_that_is_too_large_is_not_stored() {
        let environment = environment(b"one secret of this test", &[]);
        assert!(environment.seal("name", 5, &answer(&"x".repeat(MAX_BYTES))).is_none());
        assert!(environment.seal("name", 5, &answer(&"x".repeat(MAX_BYTES / 2))).is_some());
    }

    /// Entries must remain readable across releases, unless the version of the format changes.
    #[test]
    fn names_do_not_change() {
        let environment = environment(b"0123456789abcdef", &[b"https://flags.example/", b"key"]);
        let name = environment.name(br#"{"context":{"targetingKey":"alice"}}"#);
        assert_eq!(name, "flipswitch:1:{386606778d0f74bd37a18064aa292f67}:9b2b933cae98b72d07c071792e5ddf81");
    }
}
