//! Providers of the same environment in one process, which are a mistake as a rule.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock, Weak},
};

use parking_lot::Mutex;

use crate::{
    config::{ApiKey, BaseUrl},
    runtime::ProviderRuntime,
};

/// A provider that was started.
struct Started {
    /// Hash of its base URL and its API key.
    environment: u64,
    runtime: Weak<ProviderRuntime>,
    is_reported: bool,
}

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());

/// Notes that a provider starts. Warns, once for an environment, if another one of the same environment is running.
pub(super) fn started(base_url: &BaseUrl, api_key: &ApiKey, runtime: &Arc<ProviderRuntime>) {
    let environment = HASHER.hash_one((base_url.to_string(), api_key.header().as_bytes()));
    let is_first = {
        let mut started = STARTED.lock();
        started.retain(|other| other.runtime.upgrade().is_some_and(|other| !other.is_stopped()));
        let mut twins = started.iter().filter(|other| other.environment == environment).peekable();
        let has_twins = twins.peek().is_some();
        let was_reported = twins.any(|twin| twin.is_reported);
        started.push(Started { environment, runtime: Arc::downgrade(runtime), is_reported: has_twins });
        has_twins && !was_reported
    };
    if is_first {
        tracing::warn!(
            target: "flipswitch", %base_url,
            "another provider with the same base URL and API key is running in this process, and each has its own stream of \
             changes, cache and requests. Build one provider and clone it: with actix-web, before the closure of \
             `HttpServer::new`, which is called once per worker"
        );
    }
}
