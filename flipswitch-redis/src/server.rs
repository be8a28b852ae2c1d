//! The server: its URL, and new connections to it.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    io::tcp::TcpSettings,
};

use crate::{connection::Connection, error::RedisStoreError};

/// How long opening a connection to a server, or waiting for the response to a command, may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

/// A server or a cluster.
pub(crate) struct Server {
    /// The name in messages, without user and password.
    pub(crate) name: Arc<str>,
    client: AnyClient,
}

enum AnyClient {
    Single(Client),
    #[cfg(feature = "cluster")]
    Cluster(redis::cluster::ClusterClient),
}

impl Server {
    pub(crate) fn single(url: &str) -> Result<Self, RedisStoreError> {
        let client = Client::open(connection_info(url)?).map_err(|error| invalid(url, &error))?;
        Ok(Self { name: public(url).into(), client: AnyClient::Single(client) })
    }

    pub(crate) fn with_client(client: Client) -> Result<Self, RedisStoreError> {
        let address = client.get_connection_info().addr();
        let name = address.to_string();
        if matches!(address, ConnectionAddr::TcpTls { .. }) && !has_crypto_provider() {
            return Err(RedisStoreError::NoCryptoProvider { url: name });
        }
        Ok(Self { name: name.into(), client: AnyClient::Single(client) })
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(urls: &[impl AsRef<str>]) -> Result<Self, RedisStoreError> {
        let nodes = urls.iter().map(|url| connection_info(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let name = urls.iter().map(|url| public(url.as_ref())).collect::<Vec<_>>().join(", ");
        if nodes.is_empty() {
            return Err(RedisStoreError::NoServer);
        }
        let client = redis::cluster::ClusterClient::builder(nodes)
            .tcp_settings(tcp_settings())
            .connection_timeout(TIMEOUT)
            .response_timeout(TIMEOUT)
            .overall_response_timeout(Some(TIMEOUT))
            .retries(2)
            .build()
            .map_err(|error| RedisStoreError::InvalidUrl { url: name.clone(), reason: error.to_string() })?;
        Ok(Self { name: name.into(), client: AnyClient::Cluster(client) })
    }

    /// Opens a connection. Must be called on a tokio runtime. For a cluster with nodes that do not respond, this takes several
    /// times as long as for one server.
    pub(crate) async fn connect(&self) -> RedisResult<Arc<dyn Connection>> {
        Ok(match &self.client {
            AnyClient::Single(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(TIMEOUT))
                    .set_response_timeout(Some(TIMEOUT));
                Arc::new(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            #[cfg(feature = "cluster")]
            AnyClient::Cluster(client) => Arc::new(client.get_async_connection().await?),
        })
    }
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn connection_info(url: &str) -> Result<ConnectionInfo, RedisStoreError> {
    let scheme = url.split(':').next().unwrap_or_default();
    if ["rediss", "valkeys"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls)) {
        check_tls(url)?;
    }
    let info = url.into_connection_info().map_err(|error| invalid(url, &error))?;
    Ok(info.set_tcp_settings(tcp_settings()))
}

fn invalid(url: &str, error: &redis::RedisError) -> RedisStoreError {
    RedisStoreError::InvalidUrl { url: public(url), reason: error.to_string() }
}

/// Returns an error if opening the connection would panic, or would trust no certificate.
fn check_tls(url: &str) -> Result<(), RedisStoreError> {
    let rustls = cfg!(any(feature = "rustls", feature = "rustls-no-provider"));
    let native = cfg!(feature = "native-tls");
    if rustls && native {
        return Err(RedisStoreError::TwoTlsLibraries { url: public(url) });
    }
    if !rustls && !native {
        return Err(RedisStoreError::NoTls { url: public(url) });
    }
    if rustls && !has_crypto_provider() {
        return Err(RedisStoreError::NoCryptoProvider { url: public(url) });
    }
    Ok(())
}

/// Installs aws-lc unless the application has installed a crypto provider. `redis` uses the provider of the process.
#[cfg(feature = "rustls")]
fn has_crypto_provider() -> bool {
    use rustls::crypto::{CryptoProvider, aws_lc_rs};

    // An error means that another thread was faster.
    CryptoProvider::get_default().is_some() || aws_lc_rs::default_provider().install_default().is_ok() || {
        CryptoProvider::get_default().is_some()
    }
}

#[cfg(all(feature = "rustls-no-provider", not(feature = "rustls")))]
fn has_crypto_provider() -> bool {
    rustls::crypto::CryptoProvider::get_default().is_some()
}

#[cfg(not(any(feature = "rustls", feature = "rustls-no-provider")))]
fn has_crypto_provider() -> bool {
    true
}

/// Returns a URL without user, password, query and fragment. If they cannot be distinguished, only the scheme is left.
pub(crate) fn public(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "…".to_owned();
    };
    if !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+') {
        return "…".to_owned();
    }
    // Text before the last `@` may be a password. A part of a password may look like a path or a query.
    let ends = |text: &str| text.find(['/', '?', '#']).unwrap_or(text.len());
    let (authority, path) = rest.split_at(ends(rest));
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => host,
        None => authority,
    };
    if path.contains('@') || redis::parse_redis_url(url).is_none() {
        return format!("{scheme}://…");
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_urls_have_no_secrets() {
        for (url, expected) in [
            ("redis://cache.example:6380/2", "redis://cache.example:6380/2"),
            ("redis://user:secret@cache.example/2?protocol=resp3", "redis://cache.example/2"),
            ("rediss://:secret@[::1]:6379/#insecure", "rediss://[::1]:6379/"),
            ("redis://:se@cret@cache.example", "redis://cache.example"),
            ("redis://user:12/secret@cache.example", "redis://…"),
            ("redis://user:12?secret@cache.example", "redis://…"),
            ("redis://user:12#secret@cache.example", "redis://…"),
            ("redis://:secret?x@cache.example", "redis://…"),
            ("unix:///run/redis.sock?user=a&pass=secret", "unix:///run/redis.sock"),
            ("unix:///run/redis.sock?pass=sec@ret", "unix://…"),
            ("http://user:secret@cache.example", "http://…"),
            ("user:secret@cache.example", "…"),
            ("secret", "…"),
        ] {
            assert_eq!(public(url), expected, "{url}");
        }
    }

    #[test]
    fn invalid_urls_are_typed_errors_without_secrets() {
        for url in [
            "http://user:secret@cache.example",
            "redis://user:12/secret@cache.example",
            "redis://:secret@cache.example/other",
            "redis://:secret@",
            "secret",
            "",
        ] {
            let error = Server::single(url).err().expect(url);
            assert!(matches!(error, RedisStoreError::InvalidUrl { .. }), "{url}: {error:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn urls_with_tls_need_one_library() {
        for url in
            ["rediss://:secret@cache.example", "REDISS://:secret@cache.example", "valkeys://:secret@cache.example"]
        {
            let native = cfg!(feature = "native-tls");
            let rustls = cfg!(any(feature = "rustls", feature = "rustls-no-provider"));
            let error = Server::single(url).err();
            let is_expected = match &error {
                None => rustls != native,
                Some(RedisStoreError::TwoTlsLibraries { .. }) => rustls && native,
                Some(RedisStoreError::NoTls { .. }) => !rustls && !native,
                Some(RedisStoreError::NoCryptoProvider { .. }) => rustls && !cfg!(feature = "rustls"),
                Some(_) => false,
            };
            assert!(is_expected, "{error:?}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn clients_with_tls_need_a_crypto_provider() {
        // Without a TLS library there is no such client.
        let Ok(client) = Client::open("rediss://:secret@cache.example") else { return };
        match Server::with_client(client) {
            Ok(server) => assert_eq!(&*server.name, "cache.example:6379"),
            Err(RedisStoreError::NoCryptoProvider { .. }) if cfg!(not(feature = "rustls")) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
