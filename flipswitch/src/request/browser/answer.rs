//! Flags in responses to browsers. No I/O.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;

use crate::{
    flags::flag_set::{Item, Outcome},
    provider::flags::{Flags, safe_in_script},
    request::{gate::FlagKey, scope::RequestScope},
    secret::BrowserKeys,
};

/// The flags that browsers may read.
#[derive(Clone, Debug)]
pub(super) enum Public {
    All,
    Keys(BTreeSet<&'static str>),
}

impl Public {
    pub(super) fn has(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Keys(keys) => keys.contains(key),
        }
    }
}

/// One flag in the OFREP format. Metadata and details of errors stay in the application.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    key: &'a str,
    /// Missing if the service defers to the default in the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn of(item: &'a Item) -> Self {
        let empty = Self { key: &item.key, value: None, reason: None, variant: None, error_code: None };
        match &item.outcome {
            Outcome::Evaluated(flag) => Self {
                value: Some(&flag.value).filter(|value| !value.is_null()),
                reason: Some(&flag.reason),
                variant: flag.variant.as_deref(),
                ..empty
            },
            Outcome::Failed { code, .. } => Self { error_code: Some(code), ..empty },
        }
    }
}

/// Returns the public flags as a JSON list, sorted by key. The same flags always have the same bytes.
pub(super) fn list(flags: &Flags, public: &Public) -> String {
    let public = flags.items().iter().map(Arc::as_ref).filter(|item| public.has(&item.key));
    json(&public.map(Entry::of).collect::<Vec<_>>())
}

/// Returns one public flag as JSON, and whether it was evaluated.
pub(super) fn one(flags: &Flags, key: &str) -> Option<(String, bool)> {
    let item = flags.item(key)?;
    Some((json(&Entry::of(item)), matches!(item.outcome, Outcome::Evaluated(_))))
}

fn json(value: &impl Serialize) -> String {
    // Cannot fail: all keys are strings.
    serde_json::to_string(value).unwrap_or_default()
}

/// Returns the tag of a list of flags. The tag differs by context, even if the lists are the same, and reveals nothing about the
/// context.
pub(super) fn tag(flags: &Flags, list: &str, keys: &BrowserKeys) -> String {
    let code = flags.with_context(|context| keys.tag(context, list.as_bytes()));
    format!("\"{}\"", BASE64_URL_SAFE_NO_PAD.encode(code))
}

/// Returns the name under which browsers store data for the user of a request. It reveals nothing about the user.
pub(super) fn user(scope: &RequestScope) -> String {
    // All requests without a targeting key share one name, because attributes may differ in each request.
    let key = scope.targeting_key().map(|key| format!("k{key}")).unwrap_or_default();
    BASE64_URL_SAFE_NO_PAD.encode(scope.provider().browsers().keys.user(key.as_bytes()))
}

/// The values with which a page starts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Start<'a> {
    flags: Vec<Entry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    targeting_key: Option<String>,
}

impl Flags {
    /// Returns some flags as JSON for a page, so that its OpenFeature provider starts without a request. `flipswitch.js`, which
    /// the routes for browsers serve, passes them to the provider. The JSON is safe inside a `<script type="application/json">`
    /// element. For scripts without OpenFeature, see [`to_script_json`](Self::to_script_json).
    ///
    /// `keys` are flags that anyone may see; pass the flags that the routes make public. In a request inside the layer, the JSON
    /// also contains an opaque name for the user, which separates users in the browser's storage. The response is kept out of
    /// shared caches.
    ///
    /// ```
    /// use flipswitch::{Context, FlipswitchProvider, serde_json::json};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// const PUBLIC: [&str; 2] = ["new-checkout", "theme"];
    ///
    /// let provider = FlipswitchProvider::in_memory(json!({"theme": "dark", "internal": true}));
    /// let flags = provider.flags(Context::user("alice")).await;
    /// let start = flags.to_ofrep_json(PUBLIC);
    /// assert_eq!(start, r#"{"flags":[{"key":"theme","value":"dark","reason":"STATIC"}]}"#);
    /// let page = format!(r#"<script type="application/json" id="flipswitch">{start}</script>"#);
    /// # let _ = page;
    /// # }
    /// ```
    #[must_use]
    pub fn to_ofrep_json<K: FlagKey>(&self, keys: impl IntoIterator<Item = K>) -> String {
        let public = Public::Keys(keys.into_iter().map(|key| key.key()).collect());
        let shown = self.items().iter().map(Arc::as_ref).filter(|item| public.has(&item.key));
        let scope = RequestScope::current();
        scope.iter().for_each(RequestScope::mark_private);
        let start = Start {
            flags: shown.map(Entry::of).collect(),
            etag: scope.as_ref().map(|scope| tag(self, &list(self, &public), &scope.provider().browsers().keys)),
            targeting_key: scope.as_ref().map(user),
        };
        safe_in_script(&json(&start))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{context::context::Context, provider::provider::FlipswitchProvider, secret::Secret};

    #[tokio::test]
    async fn the_same_flags_have_the_same_bytes_and_each_context_its_own_tag() {
        let values = json!({"b": [1, {"<": null}], "a": "</script>", "none": null, "secret": "no"});
        let provider = FlipswitchProvider::in_memory(values);
        let [alice, again, bob] = ["alice", "alice", "bob"].map(|user| provider.flags(Context::user(user)));
        let (alice, again, bob) = (alice.await, again.await, bob.await);
        let public = Public::Keys(["a", "b", "none", "absent"].into());
        let lists = [&alice, &again, &bob].map(|flags| list(flags, &public));
        assert_eq!(
            lists[0],
            r#"[{"key":"a","value":"</script>","reason":"STATIC"},{"key":"b","value":[1,{"<":null}],"reason":"STATIC"},{"key":"none","reason":"STATIC"}]"#
        );
        assert!(lists.iter().all(|list| *list == lists[0]));
        let keys = |secret: &[u8]| BrowserKeys::new(&Secret::new(secret));
        let (one, other) = (keys(b"one secret of this test"), keys(b"another secret of this test"));
        assert_eq!(tag(&alice, &lists[0], &one), tag(&again, &lists[1], &one));
        let tags = [
            tag(&alice, &lists[0], &one),
            tag(&bob, &lists[2], &one),
            tag(&alice, &lists[0], &other),
            tag(&alice, "[]", &one),
        ];
        assert_eq!(tags.iter().collect::<BTreeSet<_>>().len(), 4, "{tags:?}");
    }

    #[tokio::test]
    async fn start_values_name_the_user_of_the_request_and_nothing_else() {
        let provider = FlipswitchProvider::in_memory(json!({"a": "</script>", "b": 1}));
        let start = async |user: &str| {
            let scope = RequestScope::new(provider.clone(), Context::user(user).with("plan", "premium"));
            let json = scope.clone().run(async { scope.flags().await.to_ofrep_json(["a"]) }).await;
            assert!(!json.contains(['<', '>']) && !json.contains(user) && !json.contains("premium"), "{json}");
            serde_json::from_str::<Value>(&json).unwrap()
        };
        let (alice, again, bob) = (start("alice").await, start("alice").await, start("bob").await);
        assert_eq!(alice["flags"], json!([{"key": "a", "value": "</script>", "reason": "STATIC"}]));
        assert_eq!(alice, again);
        assert_ne!((&alice["targetingKey"], &alice["etag"]), (&bob["targetingKey"], &bob["etag"]));
    }
}
