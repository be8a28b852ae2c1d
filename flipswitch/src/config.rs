//! Whom we speak to, and as whom: the base URL and the API key.

use std::{fmt, net::IpAddr};

use http::HeaderValue;

use crate::{ConfigError, wire::ofrep, wire::transport::Url};

/// An API key longer than this is a mistake.
const MAX_KEY: usize = 4_096;

/// The API key, as the header value that it is sent as.
#[derive(Clone)]
pub(crate) struct ApiKey(HeaderValue);

impl ApiKey {
    pub(crate) fn new(key: &str) -> Result<Self, ConfigError> {
        let key = key.trim();
        if key.is_empty() {
            return Err(ConfigError::EmptyApiKey);
        }
        if key.len() > MAX_KEY {
            return Err(ConfigError::LongApiKey { length: key.len() });
        }
        if let Some(position) = key.chars().position(|character| !matches!(character, ' '..='~')) {
            return Err(ConfigError::IllegalApiKey { position: position + 1 });
        }
        let mut value = HeaderValue::from_str(key).map_err(|_| ConfigError::IllegalApiKey { position: 1 })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl ApiKey {
    /// The header that is sent, marked as sensitive.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Whether it looks like what examples have in place of a key.
    pub(crate) fn is_placeholder(&self) -> bool {
        let key = self.0.to_str().unwrap_or_default().to_ascii_lowercase().replace(['_', ' '], "-");
        key.starts_with('<')
            || key.chars().all(|character| character == 'x')
            || ["your-", "changeme", "change-me", "placeholder", "my-api-key", "api-key"]
                .iter()
                .any(|start| key.starts_with(start))
    }
}

/// Shows the end of a key that is long enough to stay secret.
impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str() {
            Ok(key) if key.len() >= 16 => write!(f, "…{}", &key[key.len() - 4..]),
            _ => f.write_str("…"),
        }
    }
}

/// Where the service is: an origin, and a path that may be empty.
#[derive(Clone)]
pub(crate) struct BaseUrl(Url);

impl BaseUrl {
    pub(crate) fn new(text: &str) -> Result<Self, ConfigError> {
        let refuse = |problem: &str| ConfigError::BaseUrl {
            value: Self::without_credentials(text),
            problem: problem.to_owned(),
        };
        let mut url = Url::parse(text.trim()).map_err(|error| refuse(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("only http or https can be spoken"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("credentials in a URL end up in logs; the API key is all the service needs"));
        }
        if url.query().is_some() {
            return Err(refuse("a query cannot be kept, since paths are appended"));
        }
        if url.fragment().is_some() {
            return Err(refuse("a fragment is never sent"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }

    /// What may be shown of a text that was meant to be a URL: nothing that could be a credential, or a key that was
    /// taken for a URL.
    pub(crate) fn without_credentials(text: &str) -> String {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| scheme.len() <= 10) else {
            return format!("({} characters)", text.chars().count());
        };
        // Whatever stands before an @ may be a password, with any character in it.
        let (hidden, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("…@", rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        ofrep::printable(&format!("{scheme}://{hidden}{rest}"))
    }

    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Whether requests to it stay on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        }
    }

    /// Whether the API key crosses the network readable by anybody on the way.
    pub(crate) fn is_plain_and_remote(&self) -> bool {
        self.0.scheme() == "http" && !self.is_loopback()
    }

    /// The URL of a path of the service.
    pub(crate) fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_to_the_base_url() {
        let cases = [
            ("https://api.flipswitch.io", "https://api.flipswitch.io/x"),
            (" https://api.flipswitch.io// ", "https://api.flipswitch.io/x"),
            ("http://127.0.0.1:3001/flags/", "http://127.0.0.1:3001/flags/x"),
        ];
        for (base, expected) in cases {
            assert_eq!(BaseUrl::new(base).unwrap().join("/x").as_str(), expected);
        }
    }

    #[test]
    fn loopback_is_known_by_address_and_by_name() {
        for text in
            ["http://127.0.0.1:1", "http://127.8.9.1", "http://[::1]:1", "http://localhost", "http://a.localhost"]
        {
            assert!(BaseUrl::new(text).unwrap().is_loopback(), "{text}");
        }
        for text in ["http://10.0.0.1", "http://localhost.example", "http://[::2]", "https://api.flipswitch.io"] {
            assert!(!BaseUrl::new(text).unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn a_key_that_crosses_the_network_unencrypted_is_noticed() {
        let cases = [("http://flags.example", true), ("https://flags.example", false), ("http://127.0.0.1", false)];
        for (url, expected) in cases {
            assert_eq!(BaseUrl::new(url).unwrap().is_plain_and_remote(), expected, "{url}");
        }
    }

    #[test]
    fn keys_of_examples_are_recognised() {
        for key in ["your-api-key", "YOUR_API_KEY", "<key>", "changeme", "xxxx", "api_key", "my-api-key-here"] {
            assert!(ApiKey::new(key).unwrap().is_placeholder(), "{key}");
        }
        for key in ["sk_live_8f3a", "quickstart-key", "x1"] {
            assert!(!ApiKey::new(key).unwrap().is_placeholder(), "{key}");
        }
    }

    #[test]
    fn a_key_is_shown_by_its_end_if_at_all() {
        assert_eq!(ApiKey::new("0123456789abcdef").unwrap().to_string(), "…cdef");
        assert_eq!(ApiKey::new("short-key").unwrap().to_string(), "…");
    }

    #[test]
    fn credentials_are_cut_out_of_what_is_shown() {
        let cases = [
            ("https://me:secret@flags.example/x?token=secret#secret", "https://…@flags.example/x"),
            ("https://me:pa?ss#word@flags.example/x", "https://…@flags.example/x"),
            ("me:secret@flags.example", "(23 characters)"),
            ("fs_live_secret_123", "(18 characters)"),
            ("https://flags.example", "https://flags.example"),
        ];
        for (text, expected) in cases {
            assert_eq!(BaseUrl::without_credentials(text), expected);
        }
    }
}
