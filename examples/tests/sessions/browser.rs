//! A minimal browser.

use std::collections::BTreeMap;

use flipswitch::reqwest::{
    Client, Method, RequestBuilder,
    header::{COOKIE, LOCATION, SET_COOKIE},
    redirect::Policy,
};

/// Session cookie of both applications.
pub const SESSION: &str = "id";
/// Visitor cookie.
pub const VISITOR: &str = "flipswitch-anonymous";

/// A browser, which stores cookies, and does not follow redirects.
pub struct Browser {
    url: String,
    client: Client,
    pub cookies: BTreeMap<String, String>,
}

/// A response.
#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub location: Option<String>,
    pub body: String,
    /// Names of the cookies that the response sets.
    pub new_cookies: Vec<String>,
}

impl Browser {
    pub fn new(url: String) -> Self {
        let client = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { url, client, cookies: BTreeMap::new() }
    }

    pub async fn get(&mut self, path: &str) -> Page {
        self.send(self.client.request(Method::GET, format!("{}{path}", self.url))).await
    }

    pub async fn post(&mut self, path: &str) -> Page {
        self.send(self.client.request(Method::POST, format!("{}{path}", self.url))).await
    }

    pub async fn log_in(&mut self, name: &str) {
        let page = self.post(&format!("/login/{name}")).await;
        assert_eq!((page.status, page.location.as_deref()), (303, Some("/")), "{page:?}");
    }

    pub async fn log_out(&mut self) {
        let page = self.post("/logout").await;
        assert_eq!((page.status, page.location.as_deref()), (303, Some("/")), "{page:?}");
    }

    /// Returns the targeting key of the visitor.
    pub fn visitor(&self) -> Option<String> {
        // An authentication code follows the number.
        let (number, _) = self.cookies.get(VISITOR)?.split_once('.')?;
        Some(format!("anonymous-{number}"))
    }

    async fn send(&mut self, request: RequestBuilder) -> Page {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = if cookies.is_empty() { request } else { request.header(COOKIE, cookies.join("; ")) };
        let response = request.send().await.unwrap();
        let mut new_cookies = Vec::new();
        for cookie in response.headers().get_all(SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            let (pair, attributes) = cookie.split_once("; ").unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                assert!(attributes.contains("HttpOnly") && attributes.contains("SameSite=Lax"), "{cookie}");
                self.cookies.insert(name.to_owned(), value.to_owned());
                new_cookies.push(name.to_owned());
            }
        }
        let location = response.headers().get(LOCATION).map(|location| location.to_str().unwrap().to_owned());
        Page { status: response.status().as_u16(), location, new_cookies, body: response.text().await.unwrap() }
    }
}
