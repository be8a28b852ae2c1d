//! Reads which flags a service has.

#[cfg(feature = "service")]
pub(crate) use self::client::fetch;
#[cfg(not(feature = "service"))]
pub(crate) use self::without::fetch;

#[cfg(feature = "service")]
mod client {
    use std::{collections::BTreeMap, time::Duration};

    use reqwest::redirect::Policy;
    use serde_json::{Value, json};

    use crate::manifest::{self, FlagType};

    /// Environment variable with the API key of the service.
    const KEY_VARIABLE: &str = "FLIPSWITCH_API_KEY";

    /// Time limit of the request.
    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Requests the flags of a service over OFREP. Returns their types, if they are known. Without a key, sends the key from the
    /// environment, if there is one.
    pub(crate) async fn fetch(
        url: &str,
        api_key: Option<String>,
    ) -> Result<BTreeMap<String, Option<FlagType>>, String> {
        if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(format!("{url}: must be the URL of a service, such as https://api.flipswitch.io"));
        }
        let failed = |error: reqwest::Error| format!("{url}: {}", chain(&error));
        // A redirect would take the API key to another server.
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(Policy::none()).build().map_err(failed)?;
        let request = client.post(format!("{}/ofrep/v1/evaluate/flags", url.trim_end_matches('/')));
        let request = match api_key.or_else(|| std::env::var(KEY_VARIABLE).ok()) {
            Some(key) => request.header("x-api-key", key),
            None => request,
        };
        let body = json!({"context": {"targetingKey": "flipswitch-local"}}).to_string();
        let response = request.header("content-type", "application/json").body(body).send().await.map_err(failed)?;
        let status = response.status();
        match status.as_u16() {
            200 => {}
            401 | 403 => {
                return Err(format!(
                    "{url}: the service refuses the API key ({status}); pass --api-key, or set {KEY_VARIABLE}"
                ));
            }
            404 => {
                return Err(format!(
                    "{url}: the service has no OFREP endpoint at this URL (404); pass the URL without /ofrep"
                ));
            }
            300..=399 => return Err(format!("{url}: the service redirects ({status}); pass the URL that it leads to")),
            _ => return Err(format!("{url}: the service responded with {status}")),
        }
        let text = response.text().await.map_err(failed)?;
        let body: Value =
            serde_json::from_str(&text).map_err(|error| format!("{url}: the response is not JSON: {error}"))?;
        manifest::of_service(&body).map_err(|problem| format!("{url}: {problem}"))
    }

    /// Returns the text of an error and of its sources.
    fn chain(error: &dyn std::error::Error) -> String {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

#[cfg(not(feature = "service"))]
mod without {
    use std::collections::BTreeMap;

    use crate::manifest::FlagType;

    /// Returns an error, since there is no HTTP client.
    pub(crate) async fn fetch(url: &str, _: Option<String>) -> Result<BTreeMap<String, Option<FlagType>>, String> {
        Err(format!("{url}: the program was built without the feature `service`, which requests flags from services"))
    }
}
