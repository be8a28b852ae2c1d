//! Sends the requests of a page to the routes for browsers, without a browser.

use flipswitch::serde_json::{self, Value};
use reqwest::{Method, StatusCode, header::HeaderMap};

use crate::support::{BULK, apps::App, in_time};

/// The path of the event stream relative to the mount.
pub(crate) const EVENTS: &str = "/ofrep/v1/events";

/// A response, with its whole body.
#[derive(Debug)]
pub(crate) struct FullResponse {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl FullResponse {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Returns the keys and values of the flags.
    pub(crate) fn values(&self) -> Value {
        let flags = self.json()["flags"].as_array().unwrap_or_else(|| panic!("no flags: {self:?}")).clone();
        flags.into_iter().map(|flag| (flag["key"].as_str().unwrap().to_owned(), flag["value"].clone())).collect()
    }
}

/// Sends a request.
pub(crate) async fn send(
    app: &App,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> FullResponse {
    let mut request = app.client.request(method, format!("{}{path}", app.url)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = in_time(request.send()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    FullResponse { status, headers, text: in_time(response.text()).await.unwrap() }
}

/// Requests all flags as a user.
pub(crate) async fn ask(app: &App, user: &str, headers: &[(&str, &str)]) -> FullResponse {
    let headers = [&[("x-user", user), ("content-type", "application/json")], headers].concat();
    send(app, Method::POST, &format!("/flags{BULK}"), &headers, "{}").await
}

/// An open event stream.
pub(crate) struct Stream {
    pub(crate) response: reqwest::Response,
    text: String,
}

impl Stream {
    pub(crate) async fn open(app: &App, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = app.client.get(format!("{}{path}", app.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = in_time(request.send()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self { response, text: String::new() }
    }

    pub(crate) async fn of(app: &App, user: &str) -> Self {
        Self::open(app, &format!("/flags{EVENTS}"), &[("x-user", user)]).await
    }

    /// Reads until there is an event, past comments, and returns its lines.
    pub(crate) async fn event(&mut self) -> String {
        in_time(async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.text = rest;
                    if event.contains("data: ") {
                        return event;
                    }
                    continue;
                }
                let bytes = self.response.chunk().await.unwrap().expect("the stream goes on");
                self.text.push_str(str::from_utf8(&bytes).unwrap());
            }
        })
        .await
    }

    /// Reads to the end.
    pub(crate) async fn end(mut self) {
        in_time(async { while self.response.chunk().await.unwrap().is_some() {} }).await;
    }
}

/// Returns the data of an event.
pub(crate) fn data(event: &str) -> Value {
    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("no data: {event}"));
    serde_json::from_str(data).unwrap()
}

/// Returns a field of an event.
pub(crate) fn field<'a>(event: &'a str, name: &str) -> &'a str {
    event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
}
