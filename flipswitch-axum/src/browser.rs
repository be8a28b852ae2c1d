//! Routes that serve flags to browsers.

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{OriginalUri, Request},
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use flipswitch::{
    FlipswitchProvider,
    integration::{BrowserBody, BrowserRequest, BrowserRoute, BrowserService, MAX_BROWSER_BODY},
};

use crate::extract::scope;

/// Creates routes that serve flags to browsers over OFREP. A page that uses the OpenFeature web SDK then reads the flags for
/// the user of the request, as handlers do. Needs the feature `browser`, which is on by default.
///
/// The routes must be inside the [layer](crate::FlipswitchLayer), which finds the user. A targeting key in the browser's request
/// is ignored. The API key stays on the server. No flag is public unless [`public`](BrowserRoutes::public) names it.
///
/// ```
/// use axum::Router;
/// use flipswitch_axum::{FlipswitchLayer, FlipswitchProvider, flipswitch::serde_json::json};
///
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true, "theme": "light", "beta": false}));
/// let flags = flipswitch_axum::browser(provider.clone()).public(["new-checkout", "theme"]);
/// let app: Router = Router::new()
///     .nest("/flags", flags.into_router())
///     .layer(FlipswitchLayer::new(provider));
/// ```
///
/// In the page, with `@openfeature/web-sdk` and `@openfeature/ofrep-web-provider`:
///
/// ```js
/// import { connect } from "/flags/flipswitch.js";
/// const { client } = await connect(OpenFeature, OFREPWebProvider);
/// client.getBooleanValue("new-checkout", false);
/// ```
///
/// [`to_ofrep_json`](flipswitch::Flags::to_ofrep_json) embeds the first values in the page. A [`Lifespan`](crate::Lifespan)
/// ends the event streams when the server drains; without one, shut the provider down before the server waits for its
/// connections.
pub fn browser(provider: FlipswitchProvider) -> BrowserRoutes {
    BrowserRoutes(BrowserService::new(provider))
}

/// Routes for browsers, made by [`browser`].
#[derive(Clone, Debug)]
#[must_use = "routes do nothing until they are added with `.nest(path, routes.into_router())`"]
pub struct BrowserRoutes(BrowserService);

impl BrowserRoutes {
    flipswitch::__browser_options!();

    /// Returns a router. Nest it at any path inside the layer, or merge it to serve the routes at the root.
    pub fn into_router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        BrowserRoute::ALL.into_iter().fold(Router::new(), |router, route| {
            let service = self.0.clone();
            router.route(route.path(), any(move |request: Request| respond(service, route, request)))
        })
    }
}

async fn respond(service: BrowserService, route: BrowserRoute, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
    let head = BrowserRequest::new(route, parts.method.as_str(), uri.path(), uri.query(), |name| {
        parts.headers.get_all(name).iter().map(HeaderValue::as_bytes)
    });
    let body = if route.reads_body(parts.method.as_str()) { body } else { Body::empty() };
    let body = to_bytes(body, MAX_BROWSER_BODY).await.ok();
    let answer = service.respond(&head, scope(&parts.extensions), body).await;
    let body = match answer.body {
        BrowserBody::Full(body) => Body::from(body),
        BrowserBody::Events(events) => Body::from_stream(events),
        _ => Body::empty(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    response.into_response()
}
