//! The same application in both web frameworks, on loopback.

pub(crate) mod browsers;
pub(crate) mod clients;
pub(crate) mod long_lived;
pub(crate) mod on_actix;
pub(crate) mod on_axum;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use actix_web::HttpServer;
use flipswitch::{
    Context, FlipswitchProvider, SignedOverrides,
    integration::Anonymous,
    open_feature::{Client, EvaluationContext},
    serde_json::{Value, json},
};
use flipswitch_local::LocalServer;

use self::browsers::Browsers;
use crate::support::{self, in_time};

/// The user, which an authentication layer would add to the request's extensions.
#[derive(Clone)]
pub(crate) struct User(pub(crate) String);

impl User {
    /// Returns the user that a request names in a header or, in a browser, in a cookie.
    fn of(header: Option<&str>, cookies: Option<&str>) -> Option<Self> {
        let mut cookies = cookies.unwrap_or_default().split("; ");
        let user = header.or_else(|| cookies.find_map(|cookie| cookie.strip_prefix("user=")));
        user.map(|user| Self(user.to_owned()))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Framework {
    Axum,
    Actix,
}

/// The set-up of an application.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) provider: FlipswitchProvider,
    pub(crate) anonymous: Anonymous,
    pub(crate) order: Order,
    /// On actix only.
    pub(crate) prefetch: bool,
    /// An OpenFeature client for the routes that evaluate with one.
    pub(crate) client: Option<Arc<Client>>,
    pub(crate) overrides: Option<SignedOverrides>,
    /// Whether requests with the header `x-staff` are inspected.
    pub(crate) inspects: bool,
    pub(crate) browsers: Browsers,
}

/// The order of the layers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Order {
    /// First the authentication, then FlipswitchMiddleware, then the routes.
    AsItShould,
    /// The authentication runs after Flipswitch has looked for the user.
    AuthenticationInside,
    /// A second Flipswitch layer is inside the first, and evaluates every request for the user `inner`. The
    /// authentication is between both.
    Twice,
}

impl From<FlipswitchProvider> for Setup {
    fn from(provider: FlipswitchProvider) -> Self {
        Self {
            provider,
            anonymous: Anonymous::shared(),
            order: Order::AsItShould,
            prefetch: false,
            client: None,
            overrides: None,
            inspects: false,
            browsers: Browsers::default(),
        }
    }
}

/// An application on loopback, in one of the frameworks.
pub(crate) struct App {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    _stop: tokio_util::sync::DropGuard,
}

flipswitch::flags! {
    pub(crate) Whoami: String = "whoami", default "default";
    pub(crate) Origin: String = "origin", default "default";
    pub(crate) Theme: String = "theme", default "light";
    pub(crate) Beta: bool = "beta", default false;
    /// The service has no flag with this key.
    pub(crate) Limit: u16 = "limit", default 7;
    /// The service has no flag with this key either.
    pub(crate) Missing: bool = "missing", default true;
}

/// The routes of both applications are in `on_axum` and `on_actix`: `/free` reads no flag; `/flag` reads one, `/twice`
/// two through two extractors, `/typed` declared ones, `/optional` through `Option`; `/me` returns the context;
/// `/plain`, `/deep` and `/streamed` evaluate with an OpenFeature client; `/gate/..` are behind gates; `/nested/..` are inside a
/// nested router or scope; `/single/flag` has its own layer; `/bare/..` have none. The routes for browsers are at `/flags`,
/// `/deep/flags` and, compressed, `/compressed/flags`, and without a layer at `/bare/flags`; `/page` uses them.
impl Framework {
    pub(crate) const ALL: [Self; 2] = [Self::Axum, Self::Actix];

    pub(crate) async fn serve(self, setup: impl Into<Setup>) -> App {
        self.serve_at(setup, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts the application at an address, which another application may have just used.
    pub(crate) async fn serve_at(self, setup: impl Into<Setup>, address: SocketAddr) -> App {
        let setup = setup.into();
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let listener = in_time(async {
            loop {
                match TcpListener::bind(address) {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        let address = listener.local_addr().unwrap();
        match self {
            Self::Axum => {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = axum::serve(listener, on_axum::app(&setup)).with_graceful_shutdown(stopped);
                tokio::spawn(server.into_future());
            }
            Self::Actix => {
                thread::spawn(move || {
                    let server = HttpServer::new(move || actix_web::App::new().configure(on_actix::app(&setup)))
                        .workers(2)
                        .shutdown_timeout(1)
                        .shutdown_signal(stopped)
                        .listen(listener)
                        .unwrap();
                    actix_web::rt::System::new().block_on(server.run()).unwrap();
                });
            }
        }
        App { url: format!("http://{address}"), client: reqwest::Client::new(), _stop: stop.drop_guard() }
    }
}

impl App {
    /// Sends a request with these headers.
    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &[u8])]) -> reqwest::Response {
        let mut request = self.client.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        in_time(request.send()).await.unwrap()
    }

    /// Sends a request as a user (without one, if empty) with a plan. Returns status and body.
    pub(crate) async fn get(&self, path: &str, user: &str, plan: &str) -> (u16, String) {
        let headers = [("x-plan", plan.as_bytes()), ("x-user", user.as_bytes())];
        let response = self.send(path, if user.is_empty() { &headers[..1] } else { &headers }).await;
        (response.status().as_u16(), in_time(response.text()).await.unwrap())
    }
}

/// Returns the context of a user: none for `guest`, one without a targeting key for `member`; panics for `panic`.
pub(crate) fn context_of_user(user: &User) -> Option<Context> {
    assert_ne!(user.0, "panic", "the application's function panics for this user");
    let context = if user.0 == "member" { Context::anonymous() } else { Context::user(&user.0) };
    (user.0 != "guest").then(|| context.with("origin", "user"))
}

/// Returns a context with the plan that a client sent, and with an attribute that cannot be sent for some plans.
pub(crate) fn context_of_plan(plan: Option<&str>) -> Option<EvaluationContext> {
    assert_ne!(plan, Some("panic"), "the application's function panics for this plan");
    let context = EvaluationContext::default().with_custom_field("origin", "request");
    let context = if plan == Some("keyed") { context.with_targeting_key("from-the-request") } else { context };
    let context = match plan {
        Some(number @ ("nan" | "inf")) => context.with_custom_field("lat", number.parse::<f64>().unwrap()),
        Some("long") => context.with_custom_field("note", "x".repeat(70_000)),
        Some("key") => context.with_custom_field("targetingKey", "admin"),
        _ => context,
    };
    plan.filter(|plan| !plan.is_empty()).map(|plan| context.with_custom_field("plan", plan))
}

pub(crate) fn describe(flags: &flipswitch::Flags) -> String {
    format!("{} {}", flags.string("whoami", "default"), flags.string("origin", "default"))
}

/// Returns the keys of the overridden flags.
pub(crate) fn overridden(flags: &flipswitch::Flags) -> String {
    flags.overrides().map(|flag| flag.key.as_str()).collect::<Vec<_>>().join(",")
}

/// Returns the targeting key and, if there is one, the plan that the flags were evaluated for.
pub(crate) fn subject(flags: &flipswitch::Flags) -> String {
    let context = flags.context();
    let plan = context.custom_fields.get("plan").and_then(|plan| plan.as_str()).map(|plan| format!(", {plan}"));
    context.targeting_key.unwrap_or_else(|| "nobody".to_owned()) + plan.unwrap_or_default().as_str()
}

/// Starts a service whose flags `whoami` and `origin` return the targeting key and the field `origin` of the context.
/// `beta` is on for alice, `staff` for bob, `theme` is dark for alice, and `plain` has no variants.
pub(crate) async fn service() -> LocalServer {
    let service = LocalServer::start(support::whoami(["alice".into(), "bob".into()])).await.unwrap();
    let switch = |user: &str| {
        json!({
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [{"==": [{"var": "targetingKey"}, user]}, "on"]},
        })
    };
    let definitions: [(&str, Value); 4] = [
        (
            "origin",
            json!({
                "state": "ENABLED", "variants": {"user": "user", "request": "request", "nowhere": "nowhere"},
                "defaultVariant": "nowhere", "targeting": {"if": [{"var": "origin"}, {"var": "origin"}]},
            }),
        ),
        ("beta", switch("alice")),
        ("staff", switch("bob")),
        (
            "theme",
            json!({
                "state": "ENABLED", "variants": {"dark": "#000", "light": "#fff"}, "defaultVariant": "light",
                "targeting": {"if": [{"==": [{"var": "targetingKey"}, "alice"]}, "dark"]},
            }),
        ),
    ];
    service.set_flag("plain", "dark");
    for (key, definition) in definitions {
        service.set_definition(key, definition).unwrap();
    }
    service
}

/// Returns a provider without a stream, because the opening of a stream would count as a change.
pub(crate) fn provider(service: &LocalServer) -> FlipswitchProvider {
    let builder = support::builder(service).secret("the secret of the applications in these tests");
    builder.enable_realtime(false).polling_interval(Duration::from_secs(3_600)).build().unwrap()
}
