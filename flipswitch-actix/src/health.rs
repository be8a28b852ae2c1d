//! Health probes.

use std::future::{Ready, ready};

use actix_web::{
    Handler, HttpRequest, HttpResponse,
    http::{StatusCode, header},
};
use flipswitch::{FlipswitchProvider, integration::HealthProbe};

/// Creates a handler for GET and HEAD that responds with a provider's [`Health`](flipswitch::Health) as JSON: with 200, or
/// with 503 once the provider is shut down.
///
/// With the query `?ready`, it also responds with 503 until the flag service has responded once; `?live` is the
/// default. An outage changes neither status: flags keep their last values, and taking the process out of service would not
/// help. Use `?ready` only if no request may be served with defaults.
///
/// Pass it to [`web::to`](actix_web::web::to): `web::get()` does not match HEAD requests, which some load balancers use as
/// probes.
///
/// ```
/// use actix_web::{App, web};
/// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app = App::new().route("/health/flags", web::to(flipswitch_actix::health(provider)));
/// ```
#[must_use]
pub fn health(provider: FlipswitchProvider) -> impl Handler<(HttpRequest,), Output = HttpResponse> {
    move |request| respond(&provider, &request)
}

fn respond(provider: &FlipswitchProvider, request: &HttpRequest) -> Ready<HttpResponse> {
    let probe = HealthProbe::new(provider.health(), request.uri().query());
    // actix-web uses the types of a different version of `http`.
    let status = StatusCode::from_u16(probe.status().as_u16()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CONTENT_TYPE, "application/json"));
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    ready(response.body(probe.json()))
}
