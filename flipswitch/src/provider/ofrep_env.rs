//! The environment variables that configure OFREP clients. Source: ADR-0007 of the OpenFeature protocol.

use std::time::Duration;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use crate::{
    config::{BaseUrl, DURATIONS},
    credential::{Credential, custom_header},
    error::ConfigError,
    sanitize::printable,
};

const ENDPOINT: &str = "OFREP_ENDPOINT";
const HEADERS: &str = "OFREP_HEADERS";
const TIMEOUT: &str = "OFREP_TIMEOUT_MS";

/// The values of the variables.
#[derive(Clone)]
pub(super) struct OfrepEnv {
    pub(super) base_url: BaseUrl,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Option<Duration>,
}

impl OfrepEnv {
    /// Returns the headers, unless they are for a service with a different origin.
    pub(super) fn headers_for(self, base_url: &BaseUrl) -> HeaderMap {
        if self.base_url.url().origin() == base_url.url().origin() {
            return self.headers;
        }
        if !self.headers.is_empty() {
            tracing::warn!(
                target: "flipswitch", %base_url,
                "the headers in OFREP_HEADERS are not sent: `base_url` and OFREP_ENDPOINT have different origins"
            );
        }
        HeaderMap::new()
    }
}

/// Reads the variables with a function that returns the value of a variable.
pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<OfrepEnv, ConfigError> {
    let variable = |name| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let endpoint = variable(ENDPOINT).ok_or(ConfigError::MissingVariable { variable: ENDPOINT })?;
    let base_url = BaseUrl::of_option(ENDPOINT, &endpoint)?;
    let headers = variable(HEADERS).map_or_else(HeaderMap::new, |text| headers(&text));
    let timeout = variable(TIMEOUT).and_then(|text| {
        let timeout = text.parse().ok().map(Duration::from_millis).filter(|timeout| DURATIONS.contains(timeout));
        if timeout.is_none() {
            tracing::warn!(
                target: "flipswitch", value = printable(&text),
                "OFREP_TIMEOUT_MS is ignored: it must be a number of milliseconds from 1 to 604800000 (one week), such as 5000"
            );
        }
        timeout
    });
    Ok(OfrepEnv { base_url, headers, timeout })
}

/// Reads headers as in `name=value,name=value`, where the whole string is percent-encoded. Logs a warning about each invalid
/// entry, but omits its value.
fn headers(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Ok(text) = percent_decode_str(text).decode_utf8() else {
        tracing::warn!(target: "flipswitch", "OFREP_HEADERS is ignored: after decoding, it is not UTF-8");
        return headers;
    };
    let entries = text.split(',').enumerate().map(|(number, entry)| (number + 1, entry.trim()));
    for (number, entry) in entries.filter(|(_, entry)| !entry.is_empty()) {
        let Some((name, value)) = entry.split_once('=').filter(|(_, value)| !value.trim().is_empty()) else {
            // The entry may be a part of a secret.
            tracing::warn!(
                target: "flipswitch", entry = number,
                "an entry of OFREP_HEADERS is ignored: it has no `=`, or no value; write `Name=value,Name=value`. A value \
                 cannot contain a comma"
            );
            continue;
        };
        // An example of ADR-0007 has this header. The provider sends it anyway.
        if name.trim().eq_ignore_ascii_case("content-type") && value.trim().starts_with("application/json") {
            continue;
        }
        match custom_header(name, value, &Credential::None) {
            Ok((name, value)) => drop(headers.insert(name, value)),
            Err(error) => {
                tracing::warn!(target: "flipswitch", entry = number, %error, "an entry of OFREP_HEADERS is ignored");
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(variables: &[(&str, &str)]) -> Result<OfrepEnv, ConfigError> {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        read(find)
    }

    #[test]
    fn the_endpoint_is_required() {
        for variables in [&[][..], &[(ENDPOINT, " ")], &[(HEADERS, "a=b"), (TIMEOUT, "5")]] {
            let error = read_from(variables).map(drop).unwrap_err();
            assert!(error.to_string().contains("OFREP_ENDPOINT is not set"), "{error}");
        }
        let error = read_from(&[(ENDPOINT, "flags.example")]).map(drop).unwrap_err();
        assert!(error.to_string().contains("OFREP_ENDPOINT is \"(13 characters)\""), "{error}");
        let read = read_from(&[(ENDPOINT, " http://flags.example/base/ ")]).unwrap();
        assert_eq!(read.base_url.to_string(), "http://flags.example/base");
        assert!(read.headers.is_empty() && read.timeout.is_none());
    }

    #[test]
    fn headers_are_decoded_and_invalid_ones_are_left_out() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("Authorization=Bearer 123,X-Team=web", &[("authorization", "Bearer 123"), ("x-team", "web")]),
            ("Authorization%3DBearer%20123%2CX-Team%3Dweb", &[("authorization", "Bearer 123"), ("x-team", "web")]),
            (" X-A = 1=2 , ,x-b=,x-c= ,Content-Type=application/json", &[("x-a", "1=2")]),
            ("x-a=1,X-A=2", &[("x-a", "2")]),
            ("x-a=1%0D%0Ax-evil: 1,x-b=2", &[("x-b", "2")]),
            ("secret,=1,a b=1,Host=x,content-type=x,x-flipswitch-sdk=x,x-b=2", &[("x-b", "2")]),
            ("x-a=%FF", &[]),
            ("x-a=100%", &[("x-a", "100%")]),
        ];
        for (text, expected) in cases {
            let read = read_from(&[(ENDPOINT, "http://flags.example"), (HEADERS, text)]).unwrap();
            let mut found: Vec<_> =
                read.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            found.sort_unstable();
            assert_eq!(found, *expected, "{text}");
            assert!(read.headers.values().all(http::HeaderValue::is_sensitive));
        }
    }

    #[test]
    fn headers_are_for_the_origin_of_the_endpoint_only() {
        let read = read_from(&[(ENDPOINT, "https://flags.example/a"), (HEADERS, "x-a=1")]).unwrap();
        for (base_url, is_sent) in [
            ("https://flags.example/b", true),
            ("https://flags.example:443", true),
            ("https://flags.example:8443", false),
            ("http://flags.example", false),
            ("https://other.example", false),
        ] {
            let headers = read.clone().headers_for(&BaseUrl::new(base_url).unwrap());
            assert_eq!(headers.contains_key("x-a"), is_sent, "{base_url}");
        }
    }

    #[test]
    fn an_invalid_timeout_is_ignored() {
        for (text, millis) in [
            ("5000", Some(5000)),
            (" 1 ", Some(1)),
            ("0", None),
            ("-1", None),
            ("5s", None),
            ("1e3", None),
            ("", None),
            ("99999999999", None),
        ] {
            let read = read_from(&[(ENDPOINT, "http://flags.example"), (TIMEOUT, text)]).unwrap();
            assert_eq!(read.timeout, millis.map(Duration::from_millis), "{text}");
        }
    }
}
