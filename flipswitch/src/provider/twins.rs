//! Detects several providers of the same environment in one process, which is usually a mistake.

use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use http::HeaderMap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{config::BaseUrl, credential::Credential, runtime::ProviderRuntime};

/// A provider that was started.
struct Started {
    /// Hash of what selects its environment: base URL, API key and headers.
    environment: u64,
    token: CancellationToken,
    is_reported: bool,
}

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());

/// Records that a provider starts. Warns once per environment if another provider of the same environment is running.
pub(super) fn started(base_url: &BaseUrl, credential: &Credential, headers: &HeaderMap, runtime: &ProviderRuntime) {
    let mut headers = headers.clone();
    credential.insert_into(&mut headers);
    let mut sent: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    sent.sort_unstable();
    let environment = HASHER.hash_one((base_url.to_string(), sent));
    let is_first = {
        let mut started = STARTED.lock();
        started.retain(|other| !other.token.is_cancelled());
        let twins = started.iter_mut().filter(|other| other.environment == environment);
        let (mut has_twins, mut was_reported) = (false, false);
        for twin in twins {
            has_twins = true;
            was_reported |= std::mem::replace(&mut twin.is_reported, true);
        }
        started.push(Started { environment, token: runtime.cancellation_token(), is_reported: has_twins });
        has_twins && !was_reported
    };
    if is_first {
        tracing::warn!(
            target: "flipswitch", %base_url,
            "another provider with the same base URL and API key is running in this process, and each has its own cache, \
             requests and stream of changes. Build one provider and clone it. With actix-web, build it before the closure of \
             `HttpServer::new`, which is called once per worker"
        );
    }
}
